"""Joining: the question, the answer, and what each side checks. A core.

    newcomer                             any member          issuer
    JoinRequest (node, name, and both ─▶ passes it on     ─▶ answer(): redeem, then issue
      keys' signatures)
    check_reply()                     ◀─ passes it on     ◀─ JoinReply, signed by the issuer

The request is signed by the ticket's key, which only who holds the ticket has, and by the
newcomer's node key; both signatures name the node. So whoever passes it on, or sees it, can do
nothing with it. A refusal crosses as the error that `answer` raises.
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
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer
from agent.membership.invites import InviteBook
from agent.membership.keyring import KeyRing, Offer
from agent.membership.revocation import RevocationList, Revocations
from agent.membership.ticket import Addresses, InviteId, Ticket
from agent.membership.wire import Key, Signature

PROTOCOL = "/covey/join/1"
VERSION = 1
_REQUEST_PREFIX = b"covey-join-request-v1\0"
_REPLY_PREFIX = b"covey-join-reply-v1\0"
_CertificateBytes = Annotated[bytes, msgspec.Meta(max_length=certificates.MAX_BYTES)]
_Text = Annotated[str, msgspec.Meta(max_length=64)]


class JoinRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """A newcomer's question: `node` (Ed25519) would like to be `name`, by an invite of `issuer`."""

    version: int = VERSION
    mesh_id: Key
    issuer: Key
    invite_id: InviteId
    node: Key
    name: _Text
    invite_signature: Signature
    node_signature: Signature

    @classmethod
    def to(cls, ticket: Ticket, name: str, key: NodeKey) -> JoinRequest:
        """Return the question that goes with a ticket, for the node of `key`."""
        made = cls(
            mesh_id=ticket.mesh_id,
            issuer=ticket.issuer,
            invite_id=ticket.invite_id,
            node=key.id.ed25519,
            name=name,
            invite_signature=bytes(64),
            node_signature=bytes(64),
        )
        message = made.signed_bytes()
        return msgspec.structs.replace(
            made,
            invite_signature=ticket.invite_key.sign(message),
            node_signature=key.sign(message),
        )

    @classmethod
    def decode(cls, raw: bytes) -> JoinRequest:
        """Read the bytes of `encode`; raises PeerError for anything else."""
        return wire.decode(raw, cls, "the join request", VERSION, PeerError)

    def encode(self) -> bytes:
        """Return the request's bytes."""
        return msgspec.msgpack.encode(self)

    def signed_bytes(self) -> bytes:
        """Return what both signatures cover: the prefix, and the array without them."""
        return _REQUEST_PREFIX + msgspec.msgpack.encode(msgspec.structs.astuple(self)[:-2])

    @property
    def node_id(self) -> NodeId:
        """Who wants to join."""
        return NodeId(self.node)

    @property
    def issuer_id(self) -> NodeId:
        """Who decides."""
        return NodeId(self.issuer)


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
    """The issuer's answer: the newcomer's certificate, the root key, the network, who is there.

    `keys` are the network's, `revocations` encoded lists. `signature` is by the ticket's issuer, so
    that who passes the answer on can change nothing of it.
    """

    version: int = VERSION
    certificate: _CertificateBytes
    root: Key
    ipv4_network: _Text
    keys: Offer
    revocations: tuple[bytes, ...]
    members: tuple[MemberInfo, ...]
    signature: Signature = bytes(64)

    @classmethod
    def decode(cls, raw: bytes) -> JoinReply:
        """Read the bytes of `encode`; raises PeerError for anything else."""
        return wire.decode(raw, cls, "the join reply", VERSION, PeerError)

    def encode(self) -> bytes:
        """Return the reply's bytes."""
        return msgspec.msgpack.encode(self)

    def signed_bytes(self) -> bytes:
        """Return what the signature covers: the prefix, and the array without its last element."""
        return _REPLY_PREFIX + msgspec.msgpack.encode(msgspec.structs.astuple(self)[:-1])

    def signed(self, key: NodeKey) -> JoinReply:
        """Return the reply with the signature of `key`."""
        return msgspec.structs.replace(self, signature=key.sign(self.signed_bytes()))


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


def check_request(request: JoinRequest, mesh_id: bytes) -> None:
    """Raise MembershipError unless the request is for this mesh and of the node that it names."""
    if request.mesh_id != mesh_id:
        raise MembershipError("the join request is for another mesh")
    if not request.node_id.verify(request.node_signature, request.signed_bytes()):
        raise MembershipError("the join request was not signed by the node that it names")


def answer(
    request: JoinRequest,
    book: InviteBook,
    signer: Signer,
    members: Iterable[Certificate],
    network: IPv4Network,
    now: float,
    lifetime_s: float | None = None,
) -> tuple[InviteBook, Certificate]:
    """Return the book after the invite was redeemed, and the newcomer's certificate.

    The caller has checked the request, and stores both before it replies. Raises TicketError,
    MembershipError or UsageError; then nothing has changed.
    """
    new_book, invite = book.redeem(
        request.invite_id, request.signed_bytes(), request.invite_signature, request.node_id, now
    )
    certificate = issuer.issue(
        signer,
        members,
        request.node_id,
        request.name,
        invite.roles,
        invite.tags,
        network,
        now,
        lifetime_s,
    )
    return new_book, certificate


def check_reply(ticket: Ticket, reply: JoinReply, node: NodeId, now: float) -> Certificate:
    """Return the newcomer's certificate out of a reply to its request.

    Raises MembershipError unless the ticket's issuer signed it, the root key is the ticket's
    mesh's, and the certificate is valid at `now`, for this mesh, and for `node`; and when the
    network cannot be an overlay's.
    """
    root = NodeId(reply.root)
    if addresses.mesh_id(root) != ticket.mesh_id:
        raise MembershipError(
            "the answer came from another mesh than the ticket's",
            hint="Ask for a new ticket (`agent invite`).",
        )
    if not ticket.issuer_id.verify(reply.signature, reply.signed_bytes()):
        raise MembershipError("the answer is not from the ticket's issuer")
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


def known_keys(reply: JoinReply, now: float) -> KeyRing:
    """Return the network keys of a checked reply; raises MembershipError."""
    return KeyRing.of_offer(reply.keys, NodeId(reply.root), now)


def known_revocations(reply: JoinReply, now: float) -> Revocations:
    """Return the revocations of a checked reply; what cannot be believed is left out."""
    found, root = Revocations(), NodeId(reply.root)
    for raw in reply.revocations:
        try:
            found = found.take(RevocationList.decode(raw), root, now)
        except MembershipError:
            continue
    return found


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
