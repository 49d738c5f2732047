"""The slots' state on the boot partition, read and written in its place. A shell.

A write never makes a file anew: GRUB writes to the blocks that it was found in.
"""

from __future__ import annotations

import os
from pathlib import Path

from image.node import slotblocks
from image.node.slotblocks import Stored
from image.node.slots import Event, State, apply

FOLDER = Path("/boot/esp/covey")


class SlotStore:
    """Both blocks, in a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._paths = [folder / name for name in slotblocks.FILES]

    def read(self) -> Stored:
        """Return what counts; raises StateError when neither block is whole."""
        return slotblocks.latest(self._blocks())

    def change(self, event: Event) -> State:
        """Store and return the state after an event; one that changes nothing writes nothing.

        Raises StateError or UsageError where the event may not happen, and OSError.
        """
        stored = self.read()
        state = apply(stored.state, event)
        if state != stored.state:
            self._write(*slotblocks.following(stored, state))
        return state

    def repair(self) -> bool:
        """Make both blocks whole, if one is; say whether that took a write. Raises as `read`."""
        write = slotblocks.repair(self._blocks())
        if write:
            self._write(*write)
        return write is not None

    def _blocks(self) -> tuple[bytes, bytes]:
        zero, one = (_read(path) for path in self._paths)
        return zero, one

    def _write(self, index: int, block: bytes) -> None:
        with os.fdopen(os.open(self._paths[index], os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
