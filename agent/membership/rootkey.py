"""The root key on its way into a safe: a file on a stick or another disk, and back for one command.

A shell. A copy is never written over anything and is read back before it counts. Used by
`directory.py` and by commands that take `--root-key FILE`.
"""

from __future__ import annotations

import base64
import contextlib
import os
from pathlib import Path

from agent.errors import StateError, UsageError
from agent.identity import keyfile, privatefile
from agent.identity.keys import NodeId, NodeKey


def load(path: Path, root: NodeId) -> NodeKey:
    """Return the root key in a file.

    Raises StateError when it cannot be read, UsageError when it is another mesh's.
    """
    key = keyfile.load(path)
    if key.id != root:
        raise UsageError(
            f"{path} does not hold this mesh's root key",
            hint=f"This mesh's root key is …{root.short}, the file's is …{key.id.short}.",
        )
    return key


def copy_out(key: NodeKey, to: Path) -> None:
    """Write the root key into the new file `to`, mode 0600, and read it back.

    A file that holds this key already is left as it is. Raises StateError; a file that was made
    here is then gone again.
    """
    if os.path.lexists(to):
        _refuse_unless_same(key, to)
        return
    try:
        # Not by a temporary file and a link, as elsewhere: FAT, on most sticks, has no links.
        descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(to, error) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), privatefile.FILE_MODE)
            file.write(base64.b64encode(key.seed) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(to.parent)
        if keyfile.load(to).id != key.id:
            raise StateError(f"what was written to {to} reads back as another key")
    except BaseException as error:
        with contextlib.suppress(OSError):
            to.unlink()
        if isinstance(error, OSError):
            raise _unwritable(to, error) from None
        if isinstance(error, StateError):
            raise StateError(
                f"the copy of the root key cannot be kept: {error.message}",
                hint="Mount a disk that has no permissions with umask=077, or name another file.",
            ) from None
        raise


def remove(path: Path) -> None:
    """Remove a file of the state directory for good; raises StateError."""
    try:
        path.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise StateError(
            f"cannot remove {path}: {error.strerror}", hint="Run as the user who owns it."
        ) from None


def _refuse_unless_same(key: NodeKey, path: Path) -> None:
    with contextlib.suppress(StateError):
        if keyfile.load(path).id == key.id:
            return
    raise StateError(
        f"{path} is there already, and is not this root key",
        hint="Name a file that does not exist: nothing is ever written over.",
    )


def _sync_directory(path: Path) -> None:
    """Make a name that came or went survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write {path}: {error.strerror}", hint="Check that its directory is there and free."
    )
