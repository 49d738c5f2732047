"""What came of an update whose transfer broke, noted for the next try: /run/covey/partial. A shell.

The bytes are in the slot, but for its first block, which is written last (`install.py`). The note
lasts until the next start: nobody has to know what a power cut left of them.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from agent.unreadable import UNREADABLE
from image.node.startup import write_private

_FILE = "partial"


class Partial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`size` bytes of the part are there, `first` for the slot's first block; `etag` says whose."""

    etag: str
    size: int
    first: bytes


def etag(head: bytes) -> str:
    """Return what tells an update from others, by its signed manifest."""
    return hashlib.sha256(head).hexdigest()


def read(run: Path) -> Partial | None:
    """Return what is noted; None for nothing."""
    try:
        return msgspec.json.decode((run / _FILE).read_bytes(), type=Partial)
    except (OSError, *UNREADABLE):
        return None


def take(run: Path) -> Partial | None:
    """Return what is noted, and forget it: the slot is about to be written."""
    found = read(run)
    with contextlib.suppress(FileNotFoundError):
        (run / _FILE).unlink()
    return found


def keep(run: Path, found: Partial) -> None:
    """Note it. Raises OSError."""
    write_private(run / _FILE, msgspec.json.encode(found))
