"""A file that is being fetched: NAME.part, and NAME.journal that says which pieces it has.

A piece counts once its bytes are on the disk and then its line is in the journal, so a kill at any
byte costs the pieces that were under way and nothing else. The part has the full size from the
start, with holes; it is no model until it has been checked and renamed. Used by `fetch.py`.

    journal:  {"plan": …, "origin": …}     which pieces, of which file at which source
              12                           piece 12 is there

A split model has a part for each of its files (NAME-00001-of-00003.part), and one journal; pieces
are counted as if the files lay one after another, and none lies in two of them.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import glob
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec

from agent.engine import splits
from agent.errors import EnvironmentFault
from agent.models import pieces as cutting
from agent.models.manifest import starts_of
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

    def __init__(
        self, path: Path, plan: Sequence[Piece], sizes: Sequence[int], origin: str = ""
    ) -> None:
        """Open `path` (…part), or the parts of a split model, or go on where they were left.

        `sizes`: the bytes of each file when whole. What another plan or another file at the source
        left is thrown away. Raises EnvironmentFault where it cannot be written.
        """
        self.path = path
        self.journal = path.with_suffix(".journal")
        self.pieces = plan
        header = Header(cutting.digest(plan), origin)
        self.files = splits.files(path, len(sizes))
        self._starts = starts_of(sizes)
        there = all(file.exists() for file in self.files)
        self.done: set[int] = _read(self.journal, header, len(plan)) if there else set()
        self._parts: list[int] = []
        self._lines = -1
        # A write may still run in its thread when the fetch is cancelled and the file closed.
        self._writing = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.done:
                discard(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            for file, size in zip(self.files, sizes, strict=True):
                self._parts.append(os.open(file, flags, 0o600))
                os.ftruncate(self._parts[-1], size)
            self._lines = os.open(self.journal, flags, 0o600)
            # Written anew: the kill may have left half a line.
            lines = [msgspec.json.encode(header).decode(), *map(str, sorted(self.done))]
            fresh = "".join(f"{line}\n" for line in lines).encode()
            os.ftruncate(self._lines, os.pwrite(self._lines, fresh, 0))
            os.lseek(self._lines, 0, os.SEEK_END)
            for part in self._parts:
                os.fsync(part)
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
        number = bisect.bisect_right(self._starts, piece.start) - 1
        start, at = piece.start - self._starts[number], 0
        try:
            with self._writing, memoryview(raw) as view:
                part = self._parts[number]
                while at < piece.size:
                    at += os.pwrite(part, view[at:], start + at)
                os.fdatasync(part)
                os.write(self._lines, f"{index}\n".encode())
                os.fdatasync(self._lines)
        except OSError as error:
            raise _fault(self.path, error, piece.size) from None
        self.done.add(index)

    def close(self) -> None:
        """Close both; harmless when done twice."""
        with self._writing:
            for descriptor in (*self._parts, self._lines):
                if descriptor >= 0:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            # A write that still waits fails, whatever else is opened with these numbers.
            self._parts, self._lines = [-1] * len(self._parts), -1

    def discard(self) -> None:
        """Close both, and throw both away."""
        self.close()
        discard(self.path)


def present(path: Path) -> list[Path]:
    """Return what there is of `path`, or of the files of a split model called like it."""
    alike = path.parent.glob(f"{glob.escape(path.stem)}-*{glob.escape(path.suffix)}")
    return sorted(file for file in (path, *alike) if splits.whole(file) == path and file.exists())


def discard(path: Path) -> None:
    """Throw a part (or those of a split model) and its journal away, if there are any."""
    path.with_suffix(".journal").unlink(missing_ok=True)
    for file in present(path):
        file.unlink(missing_ok=True)


def begin_with(path: Path, plan: Sequence[Piece], done: Sequence[int]) -> None:
    """Write the journal of a part of which these pieces are there already."""
    header = msgspec.json.encode(Header(cutting.digest(plan))).decode()
    journal = path.with_suffix(".journal")
    with journal.open("w") as file:
        file.write("".join(f"{line}\n" for line in (header, *done)))
        file.flush()
        os.fsync(file.fileno())


def allocated(path: Path) -> int:
    """Return how many bytes of the disk a model takes, split or not; 0 where there is none."""
    found = 0
    for file in present(path):
        with contextlib.suppress(FileNotFoundError):
            found += file.stat().st_blocks * 512
    return found


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
