"""What the operator wants to run, kept across restarts: deployments.json in the state directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.api import DeployRequest
from agent.errors import StateError
from agent.identity import privatefile

_VERSION = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    wishes: tuple[DeployRequest, ...]


class WishList:
    """The stored wishes; the daemon holds the state directory's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[DeployRequest, ...]:
        """Return the stored wishes; raises StateError for a damaged file, which is left alone."""
        raw = privatefile.read(self._path, "list of deployments")
        if raw is None:
            return ()
        try:
            file = msgspec.json.decode(raw, type=_File)
        except msgspec.DecodeError as error:
            raise StateError(
                f"{self._path} is damaged: {error}", hint="Move it away and deploy anew."
            ) from None
        if file.version != _VERSION:
            raise StateError(
                f"{self._path} has format {file.version}, and this agent knows {_VERSION}",
                hint="Update Covey on this node; nothing was changed.",
            )
        return file.wishes

    def write(self, wishes: Iterable[DeployRequest]) -> None:
        """Replace the stored wishes. Raises StateError."""
        file = _File(_VERSION, tuple(wishes))
        privatefile.replace(self._path, msgspec.json.encode(file) + b"\n")
