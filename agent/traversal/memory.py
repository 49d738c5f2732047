"""Where members were reached directly, kept for the next start: a restart then takes no signalling.

{"12D3Koo…": "192.88.99.12:51820", …} in the state directory. A hint and no more: a place counts
only once the member answers from it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path as FilePath

from agent import endpoint
from agent.errors import CoveyError
from agent.identity import privatefile
from agent.identity.keys import NodeId
from agent.paths.messages import Place

_log = logging.getLogger(__name__)

PLACES_MAX = 1024


class PathMemory:
    """The file and what it holds."""

    def __init__(self, file: FilePath) -> None:
        self._file = file
        self._written: dict[NodeId, Place] = {}
        self._places: dict[NodeId, Place] = {}  # longest known first

    def load(self) -> None:
        """Read the file; what is wrong with it is logged, and the file then not used."""
        try:
            raw = privatefile.read(self._file, "list of paths")
            found = {} if raw is None else json.loads(raw)
            self._places = {
                NodeId.parse(node): endpoint.split(place) for node, place in found.items()
            }
        except (CoveyError, ValueError, AttributeError, TypeError, RecursionError) as error:
            _log.warning("%s is not used: %s", self._file, error)
            self._places = {}
        self._written = dict(self._places)

    def take(self, places: dict[NodeId, Place]) -> None:
        """Take places that are newer than those of the file."""
        self._places |= places

    def place(self, node: NodeId) -> Place | None:
        """Return where a member was reached last."""
        return self._places.get(node)

    def save(self, places: dict[NodeId, Place], members: Collection[NodeId]) -> None:
        """Keep these places, and of the other members what was known of them.

        The file is written if that is news; raises StateError when it cannot be.
        """
        merged = {node: place for node, place in self._places.items() if node not in places}
        merged |= places
        kept = {node: place for node, place in merged.items() if node in members}
        for node in list(kept)[: max(0, len(kept) - PLACES_MAX)]:
            del kept[node]
        self._places = kept
        if kept == self._written:
            return
        text = {str(node): endpoint.join(*place) for node, place in kept.items()}
        privatefile.replace(self._file, json.dumps(text, indent=1).encode() + b"\n")
        self._written = dict(kept)
