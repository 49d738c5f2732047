"""What a backup holds of a host, and how it is laid there again.

A tar archive with three folders, `state`, `etc` and `gateway`, of regular files alone. Left out is
what a host has again by itself: models, layers, measurements, logs. Used by the modules
covey_backup and covey_restore on the host, on whatever Python Covey's release has.
"""

from __future__ import annotations

import contextlib
import grp
import io
import json
import os
import pwd
import sqlite3
import stat
import tarfile
from pathlib import PurePosixPath

# In the state directory: what is large, what belongs to the running agent, what is measured anew.
_LEFT_OUT = {
    "models", "parts", "stages", "headers", "engine", "lock", "agent.log", "agent.sock",
    "links.json",
}  # fmt: skip
# Tickets that were used since would be good again; without the file those not used are void.
_NOT_RESTORED = "invites.json"
_EPOCHS = "epochs.json"
_STORE = "gateway/gateway.db"
# Epochs that the node may have used since the backup are skipped: it takes a thousand at each
# start, and there are 2**53.
_EPOCHS_SKIPPED = 10**9
# A file that is replaced meanwhile is read again; the agent writes a few in a minute.
_TRIES = 10
# Of what is restored nothing is larger; the gateway's usage of years is some 100 MB.
_MOST_BYTES = 2 * 2**30


class ArchiveError(Exception):
    """What keeps it from being saved or restored, as a sentence."""


def pack(state, etc, gateway):
    """Return the archive (bytes) of the folders that are there, and how many files it holds.

    `gateway` is the path of its SQLite store, which is copied by SQLite itself, in use or not.
    """
    if not (state / "mesh.json").exists():
        raise ArchiveError(f"this host is in no mesh: {state}/mesh.json is not there")
    for _ in range(_TRIES):
        seen = _stamps(state)
        files = {f"state/{name}": state / name for name in seen}
        read = {name: path.read_bytes() for name, path in files.items()}
        if _stamps(state) == seen:
            break
    else:
        raise ArchiveError(f"{state} changes all the time; try again")
    if etc.is_dir():
        files.update((f"etc/{name}", etc / name) for name in _stamps(etc))
    if gateway.is_file():
        files[_STORE], read[_STORE] = gateway, _database(gateway)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, path in sorted(files.items()):
            data = read[name] if name in read else path.read_bytes()
            entry = archive.gettarinfo(path, name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue(), len(files)


def unpack(data):
    """Return {name: (entry, content)} of an archive; raises ArchiveError for another's."""
    found, total = {}, 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for entry in archive:
                path = PurePosixPath(entry.name)
                total += entry.size
                if not entry.isreg() or path.is_absolute() or ".." in path.parts:
                    raise ArchiveError(f"it holds {entry.name}, which backup.yml would not write")
                if total > _MOST_BYTES:
                    raise ArchiveError("it is too large for a backup")
                found[entry.name] = entry, archive.extractfile(entry).read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ArchiveError(f"what is in it cannot be read: {error}") from None
    if "state/mesh.json" not in found or "state/node.key" not in found:
        raise ArchiveError("it holds no node's key and mesh")
    return found


def lay(found, state, etc, gateway):
    """Write what `unpack` returned; mesh.json last, with which a state directory is a member's.

    Settings that are there already stay: the inventory's are newer. Raises ArchiveError where a
    node's key lies already.
    """
    if (state / "node.key").exists():
        raise ArchiveError(f"{state} holds a node's key already; restore.yml is for an empty host")
    places = {"state": state, "etc": etc, "gateway": gateway.parent}
    for name in sorted(found, key=lambda name: name == "state/mesh.json"):
        folder, _, rest = name.partition("/")
        if name == f"state/{_NOT_RESTORED}" or folder not in places:
            continue
        entry, content = found[name]
        if name == f"state/{_EPOCHS}":
            content = _skip_epochs(content)
        path = gateway if name == _STORE else places[folder] / rest
        if folder == "etc" and path.exists():
            continue
        path.parent.mkdir(mode=0o700 if folder != "etc" else 0o755, parents=True, exist_ok=True)
        _write(path, content, entry)


def _stamps(folder):
    """Return what tells each regular file's version, by its name below the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in _LEFT_OUT or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError):
            told = path.stat()
            found[str(name)] = (told.st_ino, told.st_mtime_ns, told.st_size)
    return found


def _database(path):
    with (
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(":memory:")) as copy,
    ):
        source.backup(copy)
        return copy.serialize()


def _skip_epochs(content):
    epochs = json.loads(content)
    return json.dumps({**epochs, "reserved": epochs["reserved"] + _EPOCHS_SKIPPED}).encode()


def _write(path, content, entry):
    """Write a file whole, with the rights and owner that it had if there are such users here."""
    part = path.with_name(f".{path.name}.restored")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if os.geteuid() == 0:
            with contextlib.suppress(KeyError):
                user, group = pwd.getpwnam(entry.uname).pw_uid, grp.getgrnam(entry.gname).gr_gid
                os.fchown(descriptor, user, group)
        os.fchmod(descriptor, stat.S_IMODE(entry.mode) & 0o777)
        file.flush()
        os.fsync(descriptor)
    part.replace(path)
