"""A file that is being fetched: NAME.part, and NAME.journal that says which pieces it has.

A piece counts once its bytes are on the disk and then its line is in the journal, so a kill at any
byte costs the pieces that were under way and nothing else. The part has the full size from the
start, with holes; it is no model until it has been checked and renamed. Used by `fetch.py`.

    journal:  {"plan": …, "origin": …}     which pieces, of which file at which source
              12                           piece 12 is there
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec

from agent.errors import EnvironmentFault
from agent.models import pieces as cutting
from agent.models.pieces import Piece
from agent.models.room import size as for_people


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The journal's first line: the digest of the pieces, and what their source said of its file.

    `origin` is "" where hashes decide and it does not matter who sent a piece.
    """

    plan: str
    origin: str = ""


class PartFile:
    """An open part with its journal; `done` are the numbers of the pieces that are there."""

    def __init__(self, path: Path, plan: Sequence[Piece], size: int, origin: str = "") -> None:
        """Open `path` (…part, `size` bytes when whole), or go on where it was left.

        What another plan or another file at the source left is thrown away. Raises
        EnvironmentFault where it cannot be written.
        """
        self.path = path
        self.journal = path.with_suffix(".journal")
        self.pieces = plan
        header = Header(cutting.digest(plan), origin)
        self.done: set[int] = _read(self.journal, header, len(plan)) if path.exists() else set()
        self._part = self._lines = -1
        # A write may still run in its thread when the fetch is cancelled and the file closed.
        self._writing = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.done:
                path.unlink(missing_ok=True)
                self.journal.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._part = os.open(path, flags, 0o600)
            os.ftruncate(self._part, size)
            self._lines = os.open(self.journal, flags, 0o600)
            # Written anew: the kill may have left half a line.
            lines = [msgspec.json.encode(header).decode(), *map(str, sorted(self.done))]
            fresh = "".join(f"{line}\n" for line in lines).encode()
            os.ftruncate(self._lines, os.pwrite(self._lines, fresh, 0))
            os.lseek(self._lines, 0, os.SEEK_END)
            os.fsync(self._part)
            os.fsync(self._lines)
        except OSError as error:
            self.close()
            raise _fault(path, error, 0) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, index: int, raw: bytes | bytearray) -> None:
        """Put a piece on the disk, then into the journal. Blocks; raises EnvironmentFault."""
        piece = self.pieces[index]
        at = piece.start
        try:
            with self._writing, memoryview(raw) as view:
                while at < piece.end:
                    at += os.pwrite(self._part, view[at - piece.start :], at)
                os.fdatasync(self._part)
                os.write(self._lines, f"{index}\n".encode())
                os.fdatasync(self._lines)
        except OSError as error:
            raise _fault(self.path, error, piece.size) from None
        self.done.add(index)

    def close(self) -> None:
        """Close both; harmless when done twice."""
        with self._writing:
            for descriptor in (self._part, self._lines):
                if descriptor >= 0:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            self._part = self._lines = -1

    def discard(self) -> None:
        """Close both, and throw both away."""
        self.close()
        discard(self.path)


def discard(path: Path) -> None:
    """Throw a part and its journal away; nothing happens where there is none."""
    path.with_suffix(".journal").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def begin_with(path: Path, plan: Sequence[Piece], done: Sequence[int]) -> None:
    """Write the journal of a part of which these pieces are there already."""
    header = msgspec.json.encode(Header(cutting.digest(plan))).decode()
    journal = path.with_suffix(".journal")
    with journal.open("w") as file:
        file.write("".join(f"{line}\n" for line in (header, *done)))
        file.flush()
        os.fsync(file.fileno())


def allocated(path: Path) -> int:
    """Return how many bytes of the disk a file takes; 0 where there is none."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _read(journal: Path, header: Header, count: int) -> set[int]:
    """Return the pieces of a journal; none where it is of another plan, or damaged at its head."""
    try:
        # What follows the last newline was being written at the kill.
        first, *rest = journal.read_bytes().split(b"\n")[:-1]
        if msgspec.json.decode(first, type=Header) != header:
            return set()
    except (OSError, ValueError, UnicodeDecodeError):
        return set()
    done = set()
    for line in rest:
        if not line.isdigit() or len(line) > len(str(count)) or int(line) >= count:
            break  # a power cut may leave anything behind the last line that was flushed
        done.add(int(line))
    return done


def _fault(path: Path, error: OSError, needed: int) -> EnvironmentFault:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            disk = os.statvfs(path.parent)
            free = f"{for_people(disk.f_bavail * disk.f_frsize)} are free"
        except OSError:
            free = "nobody knows how much is free"
        return EnvironmentFault(
            f"the disk of {path.parent} is full: {for_people(needed)} more are needed next, {free}",
            hint="Free some space and pull again: what came is kept.",
        )
    return EnvironmentFault(f"cannot write {path}: {error.strerror}")
