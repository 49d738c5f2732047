"""The parts that this node has of models, for the rings whose head it is.

A part is named by its content: two models may have the same header. What was cut from a file that
has not changed since is not cut again: a ring that broke is often built as it was. Of a stored
model that is not here, the head's own parts are fetched.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from agent.deploy import pruning
from agent.deploy.stored import Stored
from agent.engine import cut
from agent.engine.gguf_file import GgufFile
from agent.models.fetch import Watch

PARTS = "parts"  # in the state folder

_Key = tuple[str, int, int, int, int]
"""A model's first file, the bytes and latest change (ns) of all its files, and the layers."""


class Parts:
    """The parts in `folder`; any thread may cut, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[_Key, cut.PartFile] = {}
        self._fetching: dict[Path, asyncio.Lock] = {}
        self._used: dict[str, frozenset[Path]] = {}  # by ring

    async def fetch(
        self, stored: Stored, model: str, span: tuple[int, int], watch: Watch
    ) -> Path:  # fmt: skip
        """Return layers [first, last) = `span` of a stored model (its id), of whoever has it.

        Raises CoveyError; what came by then is used the next time.
        """
        path = self._folder / f"{model}-{span[0]}-{span[1]}.gguf"
        # Two deployments of one model have the same parts. It appears whole or not at all.
        async with self._fetching.setdefault(path, asyncio.Lock()):
            if not path.is_file():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                await stored.part(model, span, path, watch)
        return path

    async def use(self, ring: str, files: Collection[Path]) -> None:
        """Note which parts a ring has loaded here; of those that none has, the oldest go."""
        self._used[ring] = frozenset(files)
        used = frozenset[Path]().union(*self._used.values())
        await asyncio.to_thread(self._prune, used)

    def leave(self, ring: str) -> None:
        """Note that a ring has nothing loaded here any more."""
        self._used.pop(ring, None)

    def _prune(self, used: Collection[Path]) -> None:
        with self._lock:
            pruning.prune(self._folder, used)

    def cut(self, path: Path, ranges: Sequence[tuple[int, int]], ring: str) -> list[cut.PartFile]:
        """Return a part for each range of layers [first, last), in order.

        `ring` tells apart what is written at the same time. Raises what `cut.write_part` raises.
        """
        with self._lock:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = []
            with GgufFile(path) as model:
                statuses = [part.path.stat() for part in model.parts]
                size = sum(status.st_size for status in statuses)
                changed_ns = max(status.st_mtime_ns for status in statuses)
                for first, last in ranges:
                    key = str(path), size, changed_ns, first, last
                    known = self._known.get(key)
                    if known is None or not known.path.is_file():
                        fresh = self._folder / f"{ring}-{first}.new"
                        part = cut.write_part(model, first, last, fresh)
                        named = fresh.rename(self._folder / f"{part.sha256}.gguf")
                        known = self._known[key] = replace(part, path=named)
                    found.append(known)
            return found
