"""Joining: the question, the answer, and what each side checks. A core.

    newcomer                                issuer
    JoinRequest(invite id, secret, name) ─▶ answer(): redeem, then issue
    check_reply()                        ◀─ JoinReply(certificate, root key, network, members)

The control plane carries both and has authenticated both ends, so the newcomer's node id is not in
the request. A refusal crosses it as the error that `answer` raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Annotated

import msgspec

from agent import endpoint
from agent.errors import MembershipError, PeerError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import issuer, wire
from agent.membership.certificate import Certificate, Key
from agent.membership.invites import InviteBook
from agent.membership.ticket import Addresses, InviteId, Secret, Ticket

PROTOCOL = "/covey/join/1"
VERSION = 1
_CertificateBytes = Annotated[bytes, msgspec.Meta(max_length=certificates.MAX_BYTES)]
_Text = Annotated[str, msgspec.Meta(max_length=64)]


class JoinRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """A newcomer's question; `name` is the name it would like."""

    version: int = VERSION
    invite_id: InviteId
    secret: Secret
    name: _Text

    def __repr__(self) -> str:
        return f"JoinRequest(name={self.name!r}, …)"

    @classmethod
    def to(cls, ticket: Ticket, name: str) -> JoinRequest:
        """Return the question that goes with a ticket."""
        return cls(invite_id=ticket.invite_id, secret=ticket.secret, name=name)

    @classmethod
    def decode(cls, raw: bytes) -> JoinRequest:
        """Read the bytes of `encode`; raises PeerError for anything else."""
        return wire.decode(raw, cls, "the join request", VERSION, PeerError)

    def encode(self) -> bytes:
        """Return the request's bytes."""
        return msgspec.msgpack.encode(self)


class MemberInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member as it is told and stored: its certificate's bytes, and where it was last seen.

    Each endpoint is HOST:PORT on the underlay: UDP for WireGuard and discovery, TCP for control.
    """

    certificate: _CertificateBytes
    wireguard_endpoints: Addresses = ()
    control_addresses: Addresses = ()
    discovery_endpoints: Addresses = ()


class JoinReply(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """The issuer's answer: the newcomer's certificate, the root key, the network, who is there."""

    version: int = VERSION
    certificate: _CertificateBytes
    root: Key
    ipv4_network: _Text
    members: tuple[MemberInfo, ...] = ()

    @classmethod
    def decode(cls, raw: bytes) -> JoinReply:
        """Read the bytes of `encode`; raises PeerError for anything else."""
        return wire.decode(raw, cls, "the join reply", VERSION, PeerError)

    def encode(self) -> bytes:
        """Return the reply's bytes."""
        return msgspec.msgpack.encode(self)


@dataclass(frozen=True)
class Member:
    """A member whose certificate was read; it was verified when it came in. Else as MemberInfo."""

    certificate: Certificate
    wireguard_endpoints: tuple[str, ...] = ()
    control_addresses: tuple[str, ...] = ()
    discovery_endpoints: tuple[str, ...] = ()

    @property
    def node_id(self) -> NodeId:
        """The member's node id."""
        return self.certificate.node_id

    def info(self) -> MemberInfo:
        """Return the form that is told and stored."""
        return MemberInfo(
            certificate=self.certificate.encode(),
            wireguard_endpoints=self.wireguard_endpoints,
            control_addresses=self.control_addresses,
            discovery_endpoints=self.discovery_endpoints,
        )

    @classmethod
    def of(cls, info: MemberInfo) -> Member:
        """Read an info; raises MembershipError (certificate) or UsageError (an endpoint)."""
        for text in (*info.wireguard_endpoints, *info.control_addresses, *info.discovery_endpoints):
            endpoint.split(text)
        return cls(
            certificate=Certificate.decode(info.certificate),
            wireguard_endpoints=info.wireguard_endpoints,
            control_addresses=info.control_addresses,
            discovery_endpoints=info.discovery_endpoints,
        )


def answer(
    request: JoinRequest,
    peer: NodeId,
    book: InviteBook,
    root_key: NodeKey,
    members: Iterable[Certificate],
    network: IPv4Network,
    now: float,
    lifetime_s: float = certificates.LIFETIME_S,
) -> tuple[InviteBook, Certificate]:
    """Return the book after the invite was redeemed, and the newcomer's certificate.

    `peer` is who the control plane proved is asking. The caller must store both before it replies.
    Raises TicketError, MembershipError or UsageError; then nothing has changed.
    """
    new_book, invite = book.redeem(request.invite_id, request.secret, peer, now)
    certificate = issuer.issue(
        root_key, members, peer, request.name, invite.roles, invite.tags, network, now, lifetime_s
    )
    return new_book, certificate


def check_reply(ticket: Ticket, reply: JoinReply, node: NodeId, now: float) -> Certificate:
    """Return the newcomer's certificate out of a reply to its request.

    Raises MembershipError unless the root key is the ticket's mesh's, and the certificate is valid
    at `now`, for this mesh, and for `node`; and when the network cannot be an overlay's.
    """
    root = NodeId(reply.root)
    if addresses.mesh_id(root) != ticket.mesh_id:
        raise MembershipError(
            "the answer came from another mesh than the ticket's",
            hint="Ask for a new ticket (`agent invite`).",
        )
    certificate = Certificate.decode(reply.certificate)
    certificates.verify(certificate, root, ticket.mesh_id, now)
    if certificate.node_id != node:
        raise MembershipError(
            f"the answer holds the certificate of another node, {certificate.node_id.short}"
        )
    try:
        issuer.check_network(reply.ipv4_network)
    except UsageError as error:
        raise MembershipError(f"the answer cannot be used: {error.message}") from None
    return certificate


def known_members(reply: JoinReply, now: float) -> tuple[Member, ...]:
    """Return those members of a checked reply whose certificates are valid at `now`.

    The others are left out: an expired member is no reason to refuse a newcomer.
    """
    root = NodeId(reply.root)
    known = []
    for info in reply.members:
        try:
            member = Member.of(info)
            certificates.verify(member.certificate, root, addresses.mesh_id(root), now)
        except (MembershipError, UsageError):
            continue
        known.append(member)
    return tuple(known)
