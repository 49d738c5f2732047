"""Whether this node is to run nothing: an operator's wish, kept in the state directory.

`agent drain` sets it and `agent drain --off` takes it back. It survives a restart of the agent, but
for one that was wished `--once`. The daemon makes one and presence tells all of it; deployments
follow it.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from agent.errors import StateError
from agent.identity import privatefile
from agent.unreadable import UNREADABLE

FILE = "drain.json"
_VERSION = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    since: float  # unix seconds


class Drain:
    """The wish of this node; `on` is what counts now."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._on = self._kept = False

    @property
    def on(self) -> bool:
        """Whether this node drains."""
        return self._on

    def restore(self) -> None:
        """Read what was wished. Raises StateError for a damaged file, which is left alone."""
        raw = privatefile.read(self._path, "drain file")
        if raw is None:
            self._on = self._kept = False
            return
        try:
            file = msgspec.json.decode(raw, type=_File)
        except UNREADABLE as error:
            raise StateError(
                f"{self._path} is damaged: {error}",
                hint="Remove it; `agent drain` writes it anew.",
            ) from None
        if file.version != _VERSION:
            raise StateError(
                f"{self._path} has format {file.version}, and this agent knows {_VERSION}",
                hint="Update Covey on this node; nothing was changed.",
            )
        self._on = self._kept = True

    def once(self) -> bool:
        """Wish it until the agent ends; returns whether it was not wished before."""
        was, self._on = self._on, True
        return not was

    def set(self, on: bool) -> bool:
        """Keep the wish; returns whether it is another than before. Raises StateError."""
        was = self._on
        if on == was and on == self._kept:
            return False
        if on:
            privatefile.replace(self._path, msgspec.json.encode(_File(_VERSION, time.time())))
        else:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise StateError(
                    f"cannot remove {self._path}: {error.strerror}",
                    hint="Run the agent as the user who owns the state directory.",
                ) from None
        self._on = self._kept = on
        return on != was
