"""What an operator asks of the authority through the local API: the requests' bodies. A core.

Used by `service.py`; the command line writes them, the API reads them. NODE is a name, a node id or
an unambiguous end of one.
"""

from __future__ import annotations

import msgspec

from agent.membership.naming import DEFAULT_ROLES


class _Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON body; unknown fields are an error."""


class InviteWish(_Wish, frozen=True):
    """A ticket for `uses` newcomers in the next `ttl_s` seconds, and what they shall be."""

    ttl_s: float = 3600.0
    uses: int = 1
    roles: tuple[str, ...] = DEFAULT_ROLES
    tags: tuple[str, ...] = ()


class RevokeWish(_Wish, frozen=True):
    """Put a node out of the mesh for good."""

    node: str
    reason: str = ""


class RenameWish(_Wish, frozen=True):
    """Give a node another name; no node: this one."""

    name: str
    node: str = ""


class GrantWish(_Wish, frozen=True):
    """Give a node these roles and tags (None: as they are), signed anew.

    `root_key` is the absolute path of the root key's file, for what only the root key signs.
    """

    node: str
    roles: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    root_key: str = ""


class RotateWish(_Wish, frozen=True):
    """Change the network key; the old one is accepted for another `overlap_s`."""

    overlap_s: float = 86400.0
    force: bool = False


class LeaveWish(_Wish, frozen=True):
    """Take this node out of the mesh; `force`: even if nobody could let others in afterwards."""

    force: bool = False


class MoveRootKeyWish(_Wish, frozen=True):
    """Move the root key to a new file: an absolute path."""

    path: str
