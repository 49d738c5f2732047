"""The files of the state directory and its lock. A shell: it reads, checks and writes, no more.

    lock           held while an agent runs on the directory, has its pid
    node.key       this node's seed; root.key: the mesh's, where it lives
    mesh.json      name, root's public key, network; written last: with it a node is a member
    certificate    this node's certificate; an issuer's holds its grant
    members.json   all members, and where they were last seen
    networkkeys.json, revocations.json: the mesh's network keys, and who is out
    invites.json   the issuer's invites

Every file is 0600 and replaced whole. A damaged file is an error that names it, and is never
overwritten: whoever writes a file has read it before. Used by `store.py` and `standing.py` only.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import CoveyError, MembershipError, StateError, UsageError
from agent.identity import addresses, keyfile, privatefile
from agent.identity.keys import NodeId, NodeKey
from agent.membership import issuer, rootkey, statefiles
from agent.membership.certificate import Certificate
from agent.membership.invites import InviteBook
from agent.membership.join import Member
from agent.membership.keyring import KeyChange, KeyRing, RingKey
from agent.membership.revocation import RevocationList, Revocations

_log = logging.getLogger(__name__)

_JOIN_AGAIN = "Restore it from a backup, or move it away and join again with a new ticket."
_MEMBERS_HINT = (
    "Restore it from a backup. "
    "A node without the mesh's root key may move it away, and learns the members anew."
)
_MEMBERSHIP_FILES = (
    "node.key",
    "root.key",
    "networkkeys.json",
    "certificate",
    "members.json",
    "revocations.json",
    "invites.json",
)
_REVOCATIONS_HINT = (
    "Restore it from a backup. "
    "A node that is no issuer may move it away, and learns from the others who is out."
)
_INVITES_HINT = "Restore it from a backup, or move it away: tickets not yet used are then void."


@dataclass(frozen=True)
class Mesh:
    """Which mesh a node is in."""

    name: str
    root: NodeId
    ipv4_network: IPv4Network

    @property
    def id(self) -> bytes:
        """The mesh id, 32 bytes."""
        return addresses.mesh_id(self.root)

    @property
    def ipv6_prefix(self) -> IPv6Network:
        """The mesh's /48."""
        return addresses.mesh_prefix(self.id)


class Directory:
    """The state directory at `path`. Its lock must be held around everything that writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locked: int | None = None

    def lock(self) -> Self:
        """Take the directory for this process; use as `with state.lock():`, or call `unlock`.

        Makes the directory if need be and removes what a crash half wrote. Raises StateError, with
        the other's pid, when an agent already runs on it.
        """
        if self._locked is not None:
            raise RuntimeError(f"{self.path} is already locked by this object")
        privatefile.ensure_directory(self.path)
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"cannot open {path}: {error.strerror}", hint="Run as the user who owns it."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            swept = privatefile.sweep(self.path)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StateError(
                f"an agent already runs on {self.path} (pid {pid or 'unknown'})",
                hint="Stop it with `agent down`, or name another state directory.",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StateError(
                f"cannot lock {path}: {error.strerror}", hint="Check the disk, then try again."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        if swept:
            _log.info("state.swept path=%s files=%d", self.path, swept)
        self._locked = descriptor
        return self

    def unlock(self) -> None:
        """Give the directory back; without a lock this does nothing."""
        if self._locked is None:
            return
        os.ftruncate(self._locked, 0)
        os.close(self._locked)
        self._locked = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unlock()

    def require_lock(self) -> None:
        """Raise RuntimeError unless this object holds the lock: two writers would lose invites."""
        if self._locked is None:
            raise RuntimeError(f"hold the lock of {self.path} before changing it")

    def node_key(self) -> NodeKey:
        """Return this node's key, made at the first call. Raises StateError."""
        return keyfile.load_or_create(self.path / "node.key")

    def create_root_key(self) -> NodeKey:
        """Return the root key that lives here, made at the first call. Raises StateError."""
        self.require_lock()
        return keyfile.load_or_create(self.path / "root.key")

    def read_certificate(self) -> Certificate | None:
        """Return this node's certificate, or None when there is none. Raises StateError."""
        path = self.path / "certificate"
        hint = _JOIN_AGAIN
        raw = privatefile.read(path, "certificate")
        if raw is None:
            return None
        try:
            return Certificate.decode(raw)
        except MembershipError as error:
            raise StateError(f"{path}: {error.message}", hint=error.hint or hint) from None

    def write_certificate(self, certificate: Certificate) -> None:
        """Store this node's certificate. Raises StateError."""
        self.require_lock()
        privatefile.replace(self.path / "certificate", certificate.encode())

    def read_members(self) -> dict[NodeId, Member]:
        """Return the stored members; empty when there is no such file. Raises StateError."""
        path = self.path / "members.json"
        raw = privatefile.read(path, "member list")
        if raw is None:
            return {}
        file = statefiles.decode(raw, statefiles.MembersFile, str(path), _MEMBERS_HINT)
        try:
            members = [Member.of(info) for info in file.members]
        except CoveyError as error:
            raise statefiles.damaged(str(path), error.message, _MEMBERS_HINT) from None
        return {member.node_id: member for member in members}

    def write_members(self, members: Iterable[Member]) -> None:
        """Store the members. Raises StateError."""
        self.require_lock()
        file = statefiles.MembersFile(members=tuple(member.info() for member in members))
        privatefile.replace(self.path / "members.json", statefiles.encode(file))

    def read_invites(self) -> InviteBook:
        """Return the stored invites; empty when there is no such file. Raises StateError."""
        path = self.path / "invites.json"
        raw = privatefile.read(path, "invite book")
        if raw is None:
            return InviteBook()
        return InviteBook(
            statefiles.decode(raw, statefiles.InvitesFile, str(path), _INVITES_HINT).invites
        )

    def write_invites(self, book: InviteBook) -> None:
        """Store the invites. Raises StateError."""
        self.require_lock()
        file = statefiles.InvitesFile(invites=book.invites)
        privatefile.replace(self.path / "invites.json", statefiles.encode(file))

    def read_root_key(self, root: NodeId) -> NodeKey | None:
        """Return the mesh's root key if it lives here. Raises StateError when it is damaged."""
        path = self.path / "root.key"
        key = keyfile.load_if_there(path)
        if key is None or key.id == root:
            return key
        _log.warning("state.foreign_root_key path=%s key=%s mesh_root=%s", path, key.id, root)
        return None

    def move_root_key(self, key: NodeKey, to: Path) -> None:
        """Move the root key `key` out of this directory into the new file `to`.

        The copy is read back before the key here is removed; a file that holds this key already (an
        earlier attempt was cut short) is as good. Raises StateError; then the key is still here.
        """
        self.require_lock()
        path = self.path / "root.key"
        if to.resolve() == path.resolve():
            raise UsageError(f"{to} is where the root key lies already", hint="Name another file.")
        rootkey.copy_out(key, to)
        rootkey.remove(path)
        _log.info("root_key.moved to=%s", to)

    def wipe(self, also: Iterable[str] = ()) -> tuple[str, ...]:
        """Remove keys, certificate and all that is known of the mesh; return the files' names.

        `also` are names (patterns too) of other files of the directory with secrets. Raises
        StateError when one cannot be removed.
        """
        self.require_lock()
        privatefile.sweep(self.path)
        removed = []
        # mesh.json first: a wipe that is cut short leaves no member.
        for pattern in ("mesh.json", *_MEMBERSHIP_FILES, *also):
            for path in sorted(self.path.glob(pattern)):
                rootkey.remove(path)
                removed.append(path.name)
        _log.info("state.wiped path=%s files=%d", self.path, len(removed))
        return tuple(removed)

    def read_network_keys(self, root: NodeId) -> KeyRing | None:
        """Return the stored network keys of the mesh of `root`, or None. Raises StateError."""
        path = self.path / "networkkeys.json"
        raw = privatefile.read(path, "network key file")
        if raw is None:
            return None
        file = statefiles.decode(raw, statefiles.NetworkKeysFile, str(path), _JOIN_AGAIN)
        if file.root != root.ed25519:
            return None
        try:
            keys = [
                RingKey(stored.key, KeyChange.decode(stored.change) if stored.change else None)
                for stored in file.keys
            ]
            pending = tuple(KeyChange.decode(raw) for raw in file.pending)
        except MembershipError as error:
            raise statefiles.damaged(str(path), error.message, _JOIN_AGAIN) from None
        except ValueError as error:
            raise statefiles.damaged(str(path), str(error), _JOIN_AGAIN) from None
        if not keys:
            raise statefiles.damaged(str(path), "it holds no key", _JOIN_AGAIN)
        return KeyRing(tuple(sorted(keys, key=lambda key: key.order)), pending)

    def write_network_keys(self, root: NodeId, ring: KeyRing) -> None:
        """Store the network keys. Raises StateError."""
        self.require_lock()
        file = statefiles.NetworkKeysFile(
            root=root.ed25519,
            keys=tuple(
                statefiles.StoredKey(key.key, key.change.encode() if key.change else b"")
                for key in ring.keys
            ),
            pending=tuple(change.encode() for change in ring.pending),
        )
        privatefile.replace(self.path / "networkkeys.json", statefiles.encode(file))

    def read_revocations(self, root: NodeId) -> Revocations:
        """Return the stored revocations of the mesh of `root`; empty without a file.

        Raises StateError.
        """
        path = self.path / "revocations.json"
        raw = privatefile.read(path, "revocation list")
        if raw is None:
            return Revocations()
        file = statefiles.decode(raw, statefiles.RevocationsFile, str(path), _REVOCATIONS_HINT)
        try:
            lists = [RevocationList.decode(raw) for raw in file.lists]
        except MembershipError as error:
            raise statefiles.damaged(str(path), error.message, _REVOCATIONS_HINT) from None
        mesh_id = addresses.mesh_id(root)
        return Revocations.of(made for made in lists if made.mesh_id == mesh_id)

    def write_revocations(self, revocations: Revocations) -> None:
        """Store the revocations. Raises StateError."""
        self.require_lock()
        lists = tuple(made.encode() for made in revocations.lists.values())
        file = statefiles.RevocationsFile(lists=lists)
        privatefile.replace(self.path / "revocations.json", statefiles.encode(file))

    def read_mesh(self) -> Mesh | None:
        """Return the mesh, or None when this node is in none. Raises StateError."""
        path = self.path / "mesh.json"
        hint = _JOIN_AGAIN
        raw = privatefile.read(path, "mesh file")
        if raw is None:
            return None
        file = statefiles.decode(raw, statefiles.MeshFile, str(path), hint)
        try:
            network = issuer.check_network(file.ipv4_network)
        except UsageError as error:
            raise statefiles.damaged(str(path), error.message, hint) from None
        return Mesh(file.name, NodeId(file.root), network)

    def write_mesh(self, mesh: Mesh) -> None:
        """Store the mesh. Raises StateError."""
        self.require_lock()
        file = statefiles.MeshFile(
            name=mesh.name,
            root=mesh.root.ed25519,
            ipv4_network=str(mesh.ipv4_network),
        )
        privatefile.replace(self.path / "mesh.json", statefiles.encode(file))
