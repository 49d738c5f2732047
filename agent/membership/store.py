"""What a node knows of its mesh, kept across restarts. A shell around the cores beside it.

    with StateDir(path).lock() as state:
        membership = state.membership()          # None: in no mesh yet
        membership = state.create_mesh(…)        # or
        membership = state.accept(ticket, reply, now)

Every change is on the disk before the call returns, and a call that raises has changed nothing
that was promised to anyone. Not for configuration or models. Used by the daemon, and by the command
line while no daemon runs. Methods block for a few fsyncs; several threads may call them.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from agent import endpoint
from agent.errors import MembershipError, StateError
from agent.identity.addresses import DEFAULT_IPV4_NETWORK
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import issuer, join, naming
from agent.membership import ticket as tickets
from agent.membership.certificate import Certificate
from agent.membership.directory import Directory, Mesh
from agent.membership.invites import InviteBook, Random
from agent.membership.join import JoinReply, JoinRequest, Member
from agent.membership.ticket import Ticket

__all__ = ["FOUNDER_ROLES", "Member", "Membership", "Mesh", "StateDir"]

_log = logging.getLogger(__name__)

FOUNDER_ROLES = ("worker", "gateway", "issuer", "admin")
_NETWORK_KEY_BYTES = 32


class StateDir(Directory):
    """The state directory at `path`: `lock()` it, then ask for the node's membership."""

    def membership(self) -> Membership | None:
        """Return this node's membership, or None when it is in no mesh.

        Raises StateError when a file is damaged, open to others, or from a newer version.
        """
        mesh = self.read_mesh()
        return None if mesh is None else Membership(self, mesh)

    def create_mesh(
        self,
        name: str,
        node_name: str,
        now: float,
        *,
        network: IPv4Network = DEFAULT_IPV4_NETWORK,
        roles: Iterable[str] = FOUNDER_ROLES,
        tags: Iterable[str] = (),
        lifetime_s: float = certificates.LIFETIME_S,
        random: Random = secrets.token_bytes,
    ) -> Membership:
        """Make a mesh with this node as its first member, and keep its root key here.

        Raises UsageError for a name, network, role or tag that cannot be, StateError when this node
        already is in a mesh, or a file is damaged or cannot be written.
        """
        self.require_lock()
        naming.check_name(name)
        naming.check_name(node_name)
        roles, tags = naming.check_roles(roles), naming.check_tags(tags)
        issuer.check_network(str(network))
        self.refuse_second_mesh()
        key = self.node_key()
        root_key = self.create_root_key()
        # Only where mesh.json was lost but the root key was not are there any to keep.
        known = self._members_under(root_key.id)
        certificate = issuer.issue(
            root_key,
            [member.certificate for member in known.values()],
            key.id,
            node_name,
            roles,
            tags,
            network,
            now,
            lifetime_s,
        )
        mesh = Mesh(name, root_key.id, random(_NETWORK_KEY_BYTES), network)
        known[key.id] = Member(certificate)
        membership = self._become(mesh, certificate, known)
        _log.info("mesh.created name=%s root=%s node=%s", name, root_key.id, key.id)
        return membership

    def accept(self, ticket: Ticket, reply: JoinReply, now: float) -> Membership:
        """Check a join's reply and become the member that it makes this node.

        Joining its own mesh again replaces a node's certificate. Raises MembershipError when the
        reply does not fit the ticket and this node, StateError when it is in another mesh.
        """
        self.require_lock()
        key = self.node_key()
        certificate = join.check_reply(ticket, reply, key.id, now)
        self.refuse_second_mesh(allowed=ticket.mesh_id)
        mesh = Mesh(
            ticket.mesh_name,
            NodeId(reply.root),
            ticket.network_key,
            issuer.check_network(reply.ipv4_network),
        )
        known = self._members_under(mesh.root)
        known.update({member.node_id: member for member in join.known_members(reply, now)})
        known[key.id] = Member(certificate)
        membership = self._become(mesh, certificate, known)
        _log.info("mesh.joined name=%s node=%s members=%d", mesh.name, key.id, len(known))
        return membership

    def refuse_second_mesh(self, allowed: bytes | None = None) -> None:
        """Raise StateError when this node is in a mesh whose id is not `allowed`."""
        mesh = self.read_mesh()
        if mesh is not None and mesh.id != allowed:
            raise StateError(
                f"this node is already in the mesh {mesh.name}",
                hint="A node is in one mesh: use another state directory for another mesh.",
            )

    def _members_under(self, root: NodeId) -> dict[NodeId, Member]:
        """Return the stored members whose certificates this root signed, for a mesh joined anew."""
        stored = self.read_members()
        return {node: m for node, m in stored.items() if m.certificate.signed_by(root)}

    def _become(
        self, mesh: Mesh, certificate: Certificate, members: dict[NodeId, Member]
    ) -> Membership:
        """Store a membership; mesh.json last, so that a crash before it leaves no half member."""
        self.read_certificate()  # a damaged one is for a person to settle
        self.write_members(members.values())
        self.write_certificate(certificate)
        self.write_mesh(mesh)
        return Membership(self, mesh)


class Membership:
    """This node as a member: its keys, its mesh, the members it knows, and what an issuer does.

    Made by StateDir. Only certificates that verified are among the members; they may have expired
    since, so ask `is_member` and not the list.
    """

    def __init__(self, state: Directory, mesh: Mesh) -> None:
        certificate = state.read_certificate()
        if certificate is None:
            raise StateError(
                f"{state.path / 'certificate'} is missing",
                hint="Restore it from a backup, or join again with a new ticket.",
            )
        self.mesh = mesh
        self.key: NodeKey = state.node_key()
        self.root_key: NodeKey | None = state.read_root_key(mesh.root)
        self._state = state
        # Held while a change is decided and written; reading replaces nothing, so needs no lock.
        self._changing = threading.Lock()
        self._certificate = certificate
        self._members = state.read_members()
        self._book = state.read_invites()
        if certificate.node_id != self.key.id or certificate.mesh_id != mesh.id:
            raise StateError(
                f"{state.path / 'certificate'} does not belong to this node's key and mesh",
                hint="Restore node.key, mesh.json and certificate from the same backup.",
            )

    @property
    def certificate(self) -> Certificate:
        """This node's certificate; it may have expired."""
        return self._certificate

    @property
    def ipv6(self) -> IPv6Address:
        """This node's canonical overlay address."""
        return self._certificate.ipv6

    @property
    def ipv4(self) -> IPv4Address:
        """This node's overlay address in the mesh's IPv4 network."""
        return self._certificate.ipv4(self.mesh.ipv4_network)

    def members(self) -> tuple[Member, ...]:
        """Return all known members, this node too."""
        return tuple(self._members.values())

    def peers(self) -> tuple[Member, ...]:
        """Return all known members but this node."""
        return tuple(m for m in self._members.values() if m.node_id != self.key.id)

    def find(self, node: NodeId) -> Member | None:
        """Return a member by its node id, or None."""
        return self._members.get(node)

    def is_member(self, node: NodeId, now: float) -> bool:
        """Say whether `node` is known and its certificate is valid at `now` (unix seconds)."""
        member = self._members.get(node)
        if member is None:
            return False
        try:
            certificates.check_time(member.certificate, now)
        except MembershipError:
            return False
        return True

    def verify(self, certificate: bytes, now: float) -> NodeId:
        """Return whose certificate these bytes are; raises MembershipError with what is wrong."""
        decoded = Certificate.decode(certificate)
        certificates.verify(decoded, self.mesh.root, self.mesh.id, now)
        return decoded.node_id

    def add_member(
        self,
        certificate: Certificate,
        now: float,
        *,
        wireguard_endpoints: Sequence[str] | None = None,
        control_addresses: Sequence[str] | None = None,
        discovery_endpoints: Sequence[str] | None = None,
    ) -> Member:
        """Remember a member, or what is new about one; the newer certificate is kept.

        Endpoints (HOST:PORT) that are None stay as they were, and the first 8 of a kind are kept.
        Writes only what changed. Raises MembershipError for a certificate that does not verify,
        UsageError for an endpoint that is none, StateError when the disk fails.
        """
        certificates.verify(certificate, self.mesh.root, self.mesh.id, now)
        with self._changing:
            node = certificate.node_id
            known = self._members.get(node, Member(certificate))
            newer = certificate if _is_newer(certificate, known.certificate) else known.certificate
            member = replace(
                known,
                certificate=newer,
                wireguard_endpoints=_endpoints(wireguard_endpoints, known.wireguard_endpoints),
                control_addresses=_endpoints(control_addresses, known.control_addresses),
                discovery_endpoints=_endpoints(discovery_endpoints, known.discovery_endpoints),
            )
            if self._members.get(node) != member:
                self._write_member(member)
            if node == self.key.id and newer != self._certificate:
                self._state.write_certificate(newer)
                self._certificate = newer
            return member

    # ----------------------------------------------------------------- issuer

    def invites(self) -> InviteBook:
        """Return the invite book; empty on a node that does not issue."""
        return self._book

    def invite(
        self,
        now: float,
        *,
        addresses: Sequence[str],
        ttl_s: float,
        uses: int = 1,
        roles: Iterable[str] = naming.DEFAULT_ROLES,
        tags: Iterable[str] = (),
        random: Random = secrets.token_bytes,
    ) -> Ticket:
        """Return a new ticket, once its invite is stored.

        `addresses` are HOST:PORT of this node's control plane. Raises MembershipError when this
        node does not hold the root key, UsageError for a value that cannot be, StateError.
        """
        self._require_root_key()
        with self._changing:
            book, invite, secret = self._book.create(
                random, now, ttl_s=ttl_s, uses=uses, roles=roles, tags=tags
            )
            blank = Ticket(
                version=tickets.VERSION,
                mesh_id=self.mesh.id,
                mesh_name=self.mesh.name,
                network_key=self.mesh.network_key,
                issuer=self.key.id.ed25519,
                invite_id=invite.id,
                secret=secret,
                addresses=(),
                not_after=invite.not_after,
            )
            made = blank.at(addresses)
            self._write_book(book)
        _log.info("invite.created id=%s uses=%d ttl_s=%g", invite.id.hex(), uses, ttl_s)
        return made

    def admit(
        self,
        request: JoinRequest,
        peer: NodeId,
        now: float,
        lifetime_s: float = certificates.LIFETIME_S,
    ) -> JoinReply:
        """Decide a join request of `peer`, store what follows, and return the reply to send.

        The book is stored before the member. A crash between the two leaves a use taken by a node
        that has no certificate yet: it asks again, takes no further use, and gets it. The other
        order could let one node more in than the invite allows.
        Raises TicketError, MembershipError or UsageError (nothing changed), or StateError (the
        newcomer may ask again).
        """
        root_key = self._require_root_key()
        if peer == self.key.id:
            raise MembershipError("this node issues the mesh's certificates, it need not join")
        with self._changing:
            members = [member.certificate for member in self._members.values()]
            book, certificate = join.answer(
                request,
                peer,
                self._book,
                root_key,
                members,
                self.mesh.ipv4_network,
                now,
                lifetime_s,
            )
            self._write_book(book)
            known = self._members.get(peer, Member(certificate))
            self._write_member(replace(known, certificate=certificate))
        _log.info("join.admitted node=%s name=%s", peer, certificate.name)
        return JoinReply(
            certificate=certificate.encode(),
            root=self.mesh.root.ed25519,
            ipv4_network=str(self.mesh.ipv4_network),
            members=tuple(member.info() for member in self.members() if member.node_id != peer),
        )

    def _require_root_key(self) -> NodeKey:
        if self.root_key is None:
            raise MembershipError(
                "this node cannot let others in: the mesh's root key is not here",
                hint="Use the node where `agent mesh create` was run.",
            )
        return self.root_key

    def _write_member(self, member: Member) -> None:
        members = {**self._members, member.node_id: member}
        self._state.write_members(members.values())
        self._members = members

    def _write_book(self, book: InviteBook) -> None:
        if book != self._book:
            self._state.write_invites(book)
            self._book = book


def _is_newer(one: Certificate, other: Certificate) -> bool:
    return (one.not_before, one.not_after) > (other.not_before, other.not_after)


def _endpoints(new: Sequence[str] | None, old: tuple[str, ...]) -> tuple[str, ...]:
    if new is None:
        return old
    kept = tuple(dict.fromkeys(new))[: tickets.MAX_ADDRESSES]
    for text in kept:
        endpoint.split(text)
    return kept
