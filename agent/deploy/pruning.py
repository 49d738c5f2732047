"""Which parts of models go, so that those of rings that were do not fill a disk.

Each way to cut a model leaves parts of its own, and a ring that lost a node or moved may be cut
again as it was, so the last ones are worth keeping. For `parts.py` and `stages.py`, whose folders
hold nothing that cannot be had again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

# Parts that nobody uses may take as much as those in use, and this much in any case (bytes).
SPARE_BYTES = 1 << 30
# A part is made, or fetched, before it is in use.
YOUNG_S = 3600.0


@dataclass(frozen=True)
class Kept:
    """A part: its bytes on the disk, and when it was used last (unix seconds)."""

    path: Path
    size: int
    used_at: float


def doomed(parts: Sequence[Kept], used: Collection[Path], now: float) -> list[Path]:
    """Return which parts go, those that were not used for longest; `used` are those in use now."""
    room = max(SPARE_BYTES, sum(part.size for part in parts if part.path in used))
    found = []
    for part in sorted(parts, key=lambda part: part.used_at, reverse=True):
        if part.path in used:
            continue
        room -= part.size
        if room < 0 and not 0 <= now - part.used_at < YOUNG_S:
            found.append(part.path)
    return found


def prune(folder: Path, used: Collection[Path]) -> None:
    """Note that the parts `used` are, and remove of the others in `folder` those that go."""
    now, kept = time.time(), []
    for path in folder.glob("*.gguf"):
        with contextlib.suppress(OSError):  # another ring may have removed it
            if path in used:
                os.utime(path)
            status = path.stat()
            kept.append(Kept(path, status.st_size, status.st_mtime))
    for path in doomed(kept, used, now):
        with contextlib.suppress(OSError):
            path.unlink()
            _log.info("part %s was not used for long and is gone", path.name)
