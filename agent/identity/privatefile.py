"""Files that only their owner may read, written so that a crash leaves the old or the new one.

For keys and the state directory. Not for caches, logs or anything large: a file is read and
written whole. Used by `keyfile.py` and `agent.membership.store`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from agent.errors import StateError

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
# Far above any file we write (members.json of 10,000 members is about 10 MB): a file larger than
# this is not ours, and reading it must not take the machine's memory.
MAX_FILE_BYTES = 64 * 1024 * 1024
_TEMPORARY_SUFFIX = ".tmp"


def ensure_directory(path: Path) -> None:
    """Make the directory with mode 0700; one that is there already may not be writable by others.

    Raises StateError when it cannot be made, is no directory, or group or others may write to it.
    """
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileExistsError:
        raise StateError(
            f"{path} is not a directory", hint="Remove it, or name another directory."
        ) from None
    except OSError as error:
        raise StateError(
            f"cannot make the directory {path}: {error.strerror}",
            hint="Run as a user who may, or name another directory.",
        ) from None
    if mode & 0o022:
        raise StateError(
            f"directory {path} can be written by others (mode {mode:04o})",
            hint=f"Run `chmod 700 {path}`.",
        )


def read(path: Path, what: str) -> bytes | None:
    """Return the file's bytes, or None when there is no such file.

    `what` names it in messages, as "key file". Raises StateError when group or others may read or
    write it, when it is no regular file, or when it cannot be read.
    """
    try:
        # O_NONBLOCK: a FIFO put in the file's place must not hang us at open.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, what, error) from None
    try:
        _refuse_unless_private(path, what, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise _unreadable(path, what, error) from None
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Write the file with mode 0600, whole or not at all: temporary file, fsync, rename, fsync.

    Raises StateError when it cannot be written; the file that was there is then unchanged.
    """
    try:
        temporary = _write_temporary(path, data)
        try:
            temporary.rename(path)
        except OSError:
            temporary.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None


def create(path: Path, data: bytes) -> bool:
    """Write the file like `replace`, but never over another: returns False when one is there.

    Raises StateError when it cannot be written.
    """
    try:
        temporary = _write_temporary(path, data)
        try:
            # A rename would overwrite; a hard link fails when the name is taken.
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None
    return True


def sweep(directory: Path) -> int:
    """Remove temporary files that a crash left; returns how many. Only while nobody writes there.

    Raises StateError when one cannot be removed.
    """
    count = 0
    for path in directory.glob(f".*{_TEMPORARY_SUFFIX}"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from None
        count += 1
    return count


def _refuse_unless_private(path: Path, what: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StateError(
            f"{what} {path} is not a regular file", hint="Move it away, or restore the file."
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise StateError(
            f"{what} {path} can be read by others (mode {mode:04o})",
            hint=f"Run `chmod 600 {path}` if nobody else can have read it.",
        )
    if status.st_size > MAX_FILE_BYTES:
        raise StateError(
            f"{what} {path} is too large to be ours ({status.st_size} bytes)",
            hint="Restore it from a backup.",
        )


def _write_temporary(path: Path, data: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(_TEMPORARY_SUFFIX, f".{path.name}.", path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _sync_directory(path: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(path: Path, what: str, error: OSError) -> StateError:
    return StateError(
        f"cannot read {what} {path}: {error.strerror}",
        hint="Run as the user who owns it.",
    )


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write {path}: {error.strerror}",
        hint="Check the directory's owner and the free space, then try again.",
    )
