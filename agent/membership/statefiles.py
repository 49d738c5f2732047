"""What the files of the state directory hold, and how they are read. A core: bytes in, bytes out.

Every JSON file is an object with a version. `store.py` puts them on the disk.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from agent.errors import StateError
from agent.membership.certificate import Name
from agent.membership.invites import Invite
from agent.membership.join import MemberInfo
from agent.membership.wire import Key
from agent.unreadable import UNREADABLE

VERSION = 1
_T = TypeVar("_T", bound=msgspec.Struct)


class MeshFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """mesh.json: which mesh this node is in. `root` (Ed25519) is 32 bytes."""

    version: int = VERSION
    name: Name
    root: Key
    ipv4_network: str


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network key (32 bytes) and the bytes of its change; none for the mesh's first key."""

    key: Key
    change: bytes = b""


class NetworkKeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """networkkeys.json: the keys of the mesh of `root`, and changes whose key is not here yet."""

    version: int = VERSION
    root: Key
    keys: tuple[StoredKey, ...]
    pending: tuple[bytes, ...] = ()


class RevocationsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """revocations.json: the bytes of the newest known list of each signer."""

    version: int = VERSION
    lists: tuple[bytes, ...]


class MembersFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """members.json: every known member, this node too."""

    version: int = VERSION
    members: tuple[MemberInfo, ...]


class InvitesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """invites.json: the issuer's invites, oldest first."""

    version: int = VERSION
    invites: tuple[Invite, ...]


class _Head(msgspec.Struct, frozen=True):
    version: int


def encode(value: msgspec.Struct) -> bytes:
    """Return the file's bytes: indented JSON, bytes as base64."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(raw: bytes, kind: type[_T], path: str, hint: str) -> _T:
    """Return what the file holds; `path` and `hint` are for the message.

    Raises StateError when the bytes are damaged or a newer Covey wrote them.
    """
    try:
        version = msgspec.json.decode(raw, type=_Head).version
        if version > VERSION:
            raise StateError(
                f"{path} was written by a newer Covey (format {version}, ours is {VERSION})",
                hint="Update Covey on this node; nothing was changed.",
            )
        if version < VERSION:
            raise damaged(path, f"it says version {version}", hint)
        return msgspec.json.decode(raw, type=kind)
    except UNREADABLE as error:
        raise damaged(path, str(error), hint) from None


def damaged(path: str, reason: str, hint: str) -> StateError:
    """Return the error for a file that cannot be read; the file itself is left as it is."""
    return StateError(f"{path} is damaged: {reason.rstrip('.')}", hint=hint)
