"""Writes an update into the slot that does not run, byte for byte what was signed. A shell.

    signed manifest, two lines     verified before anything else is read, or written
    the part `root`                into the slot; what follows it is for later versions

Its first block is written last, so what was half written is no file system, whatever becomes of the
slots' state. Then all of it is read back from the disk.

    state      while                           cut here, the machine starts
    as it was  the manifest is checked         what runs
    empty      written, read back              what runs
    on trial   from the end on                 the new version, three times at most

What came of a transfer that broke stays where it is, and the next try may go on behind it
(`partial.py`); all of it is hashed again then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from agent.errors import EnvironmentFault, StateError
from image.node import manifest, partial
from image.node.machine import Machine
from image.node.manifest import MAX_BYTES, ROOT, Manifest, Part, PartCheck, UpdateRefused
from image.node.partial import Partial
from image.node.slots import State, Writing, Written

CHUNK_BYTES = 1 << 20
_FIRST_BYTES = 4096

Phase = Literal["writing", "reading back"]
Read = Callable[[int], bytes]
"""Returns at most so many bytes; b"" at the end."""
Tell = Callable[[Phase, int, int], None]
"""Hears the phase, the bytes that are done, and all."""


def install(
    read: Read, machine: Machine, tell: Tell, run: Path, start: int = 0
) -> tuple[Manifest, State]:
    """Install the update that `read` gives; return its manifest, and the slots' state.

    Behind the manifest it gives the part from byte `start` on, which `partial.py` has noted in
    `run`. Raises UpdateRefused for one that is not for this machine, or is not what was signed,
    StateError while the running version has not proved itself, or without such a note, and
    EnvironmentFault for the disk.
    """
    head = read_head(read)
    found = manifest.verify(head, machine.release.keys)
    slot = machine.target
    device = machine.device(slot)
    try:
        with os.fdopen(os.open(device, os.O_RDWR), "r+b", buffering=0) as disk:
            manifest.check(
                found, arch=machine.release.arch, flavour=machine.release.flavour,
                running=machine.release.version,
                floor=machine.floor(), slot_bytes=disk.seek(0, os.SEEK_END),
            )  # fmt: skip
            part = found.part(ROOT)
            if found.parts[0] != part:
                raise UpdateRefused("the update does not begin with what goes into the slot")
            came = _Came(run, partial.etag(head), start)
            machine.store.change(Writing(machine.running))
            machine.keep_head(slot, head)
            _write(disk.fileno(), part, read, tell, came)
            _read_back(disk.fileno(), part, tell)
    except OSError as error:
        raise EnvironmentFault(
            f"slot {slot} cannot be written: {error.strerror or error}",
            hint="The version that runs stays. If it happens again, the disk is worn out.",
        ) from None
    return found, machine.store.change(Written(machine.running))


def read_head(read: Read) -> bytes:
    """Return the signed manifest's two lines; raises UpdateRefused where there are none."""
    head = bytearray()
    lines = 0
    # One by one: what follows belongs to the slot.
    while lines < 2 and len(head) < MAX_BYTES and (byte := read(1)):
        head += byte
        lines += byte == b"\n"
    return bytes(head)


class _Came:
    """What has come of the part so far, and came in a try before."""

    def __init__(self, run: Path, etag: str, start: int) -> None:
        before = partial.take(run)
        if not start:
            before = Partial(etag, 0, b"")
        elif before is None or (before.etag, before.size) != (etag, start):
            raise StateError(
                "what came of this update before is not here any more", hint="Update again."
            )
        self.before = before.size
        self.size, self.first = before.size, before.first
        self._run = run
        self._etag = etag

    def keep(self) -> None:
        """Note it for the next try."""
        partial.keep(self._run, Partial(self._etag, self.size, self.first))


def _write(disk: int, part: Part, read: Read, tell: Tell, came: _Came) -> None:
    """Write a part to a device, its first block last. Raises UpdateRefused, and OSError."""
    _write_at(disk, bytes(_FIRST_BYTES), 0)
    os.fsync(disk)
    checked = PartCheck(part)
    checked.feed(came.first)
    for chunk in _stored(disk, len(came.first), came.before):
        checked.feed(chunk)
    try:
        for chunk in _chunks(read, part.size - came.size):
            checked.feed(chunk)
            kept = chunk[: max(0, _FIRST_BYTES - came.size)]
            _write_at(disk, chunk[len(kept) :], came.size + len(kept))
            came.first += kept
            came.size += len(chunk)
            tell("writing", came.size, part.size)
    finally:
        if 0 < came.size < part.size:
            came.keep()
    checked.finish()
    os.fsync(disk)
    _write_at(disk, came.first, 0)
    os.fsync(disk)


def _stored(disk: int, start: int, end: int) -> Iterator[bytes]:
    """Yield bytes [start, end) of a device."""
    while start < end and (chunk := os.pread(disk, min(end - start, CHUNK_BYTES), start)):
        start += len(chunk)
        yield chunk


def _read_back(disk: int, part: Part, tell: Tell) -> None:
    """Raise EnvironmentFault unless the device has what was written to it."""
    # From the disk, not out of memory.
    os.posix_fadvise(disk, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(disk, 0, os.SEEK_SET)
    checked = PartCheck(part)
    at = 0
    try:
        for chunk in _chunks(lambda limit: os.read(disk, limit), part.size):
            checked.feed(chunk)
            at += len(chunk)
            tell("reading back", at, part.size)
        checked.finish()
    except UpdateRefused:
        raise EnvironmentFault(
            "the disk does not keep what is written to it: the new version reads otherwise",
            hint="The version that runs stays. Put it onto another disk soon.",
        ) from None


def _chunks(read: Read, size: int) -> Iterator[bytes]:
    """Yield `size` bytes in pieces, fewer where they end before."""
    while size and (chunk := read(min(size, CHUNK_BYTES))):
        size -= len(chunk)
        yield chunk


def _write_at(disk: int, raw: bytes, at: int) -> None:
    view = memoryview(raw)
    while view:
        done = os.pwrite(disk, view, at)
        view, at = view[done:], at + done
