"""Writes an image to a disk or into a file, and reads it back. A shell.

The first MiB, which has the partition table, comes last: a disk that was written to half is empty
for every computer, and not an appliance that fails later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import EnvironmentFault, UsageError
from image.flashing.source import CHUNK_BYTES

_BLOCK_BYTES = 4096
# So often it waits for the disk; otherwise memory takes all of it, and the last percent minutes.
_SYNC_BYTES = 16 << 20
# A disk that had a table keeps a copy of it at its end, where some programs look first.
_TABLE_BYTES = 1 << 20
# linux/fs.h; not in Python's fcntl module.
_BLKRRPART, _BLKFLSBUF = 0x125F, 0x1261

# What is done, and how many bytes of it.
Say = Callable[[str, int], None]


@contextmanager
def disk(path: str) -> Iterator[int]:
    """Open a disk for this process alone. Raises UsageError if it is in use by now."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_EXCL)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise UsageError(f"{path} is in use", hint="End what uses it, and try again.") from None
        raise _fault(path, error) from None
    try:
        yield descriptor
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _BLKRRPART)
    finally:
        os.close(descriptor)


@contextmanager
def file(path: Path) -> Iterator[int]:
    """Open a new file, which takes its place when the block ends without an error."""
    new = path.with_name(f".{path.name}.new")
    try:
        # It may have a ticket in it.
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise _fault(str(path), error) from None
    try:
        yield descriptor
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write(target: int, name: str, size: int, chunks: Iterable[bytes], say: Say) -> None:
    """Write all chunks, `size` bytes in all, to an open disk or file, and read them back.

    `name` is for messages. Raises EnvironmentFault if it fails, or holds something else then.
    """
    try:
        wanted = _write(target, size, chunks, say)
        _forget(target)
        found = _read(target, size, say)
    except OSError as error:
        raise _fault(name, error) from None
    if found != wanted:
        raise EnvironmentFault(
            f"{name} does not hold what was written to it",
            hint="It is worn out, or smaller than it says: take another one.",
        )


def _write(target: int, size: int, chunks: Iterable[bytes], say: Say) -> bytes:
    end = os.lseek(target, 0, os.SEEK_END)
    is_file = end == 0
    if is_file:
        os.ftruncate(target, size)
    else:
        _put(target, bytes(CHUNK_BYTES), 0)
        _put(target, bytes(min(_TABLE_BYTES, end - size)), end - min(_TABLE_BYTES, end - size))
    digest, at, waited = hashlib.sha256(), 0, 0
    head = b""
    for chunk in chunks:
        digest.update(chunk)
        if at == 0:
            head = chunk
        elif not is_file:
            _put(target, chunk, at)
        else:
            _put_sparse(target, chunk, at)
        at += len(chunk)
        if at - waited >= _SYNC_BYTES:
            os.fdatasync(target)
            waited = at
        say("Writing", at)
    os.fsync(target)
    _put(target, head, 0)
    os.fsync(target)
    return digest.digest()


def _read(target: int, size: int, say: Say) -> bytes:
    digest, at = hashlib.sha256(), 0
    while at < size and (chunk := os.pread(target, min(CHUNK_BYTES, size - at), at)):
        digest.update(chunk)
        at += len(chunk)
        say("Reading back", at)
    return digest.digest()


def _forget(target: int) -> None:
    """Have the kernel read the disk, and not its memory of what was written."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, _BLKFLSBUF)
    os.posix_fadvise(target, 0, 0, os.POSIX_FADV_DONTNEED)


def _put_sparse(target: int, chunk: bytes, at: int) -> None:
    for offset in range(0, len(chunk), _BLOCK_BYTES):
        block = chunk[offset : offset + _BLOCK_BYTES]
        if block.count(0) != len(block):
            _put(target, block, at + offset)


def _put(target: int, raw: bytes, at: int) -> None:
    view = memoryview(raw)
    while view:
        written = os.pwrite(target, view, at)
        view, at = view[written:], at + written


def _fault(name: str, error: OSError) -> EnvironmentFault:
    hints = {
        errno.EACCES: "Writing to a disk takes root: try again with sudo.",
        errno.EPERM: "Writing to a disk takes root: try again with sudo.",
        errno.ENOSPC: "Make room there.",
        errno.EIO: "The disk is broken, or was pulled out: try another one.",
    }
    return EnvironmentFault(
        f"{name} cannot be written: {error.strerror or error}", hint=hints.get(error.errno or 0, "")
    )
