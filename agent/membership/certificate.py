"""The mesh's signed word that a node is a member (design §4). A core.

A certificate is a msgpack array, under 330 bytes, so that a record that carries it fits one
packet. Its signature covers the exact bytes of the array without the signature, behind a prefix
that no other signed thing has. Made by `issuer.py`; checked by everyone who meets a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Annotated

import msgspec

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey
from agent.membership import naming, spell, wire

VERSION = 1
# A member record (certificate, endpoints, signature) must stay below 1,000 bytes (design §5).
MAX_BYTES = 330
# Clocks of machines that have not reached a time server yet are often minutes off.
CLOCK_SKEW_S = 300
# Long enough to be switched off over a holiday; renewal starts at two thirds of it.
LIFETIME_S = 90 * 86400
_MAX_TIME_S = 2**40
_PREFIX = b"covey-certificate-v1\0"

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Name = Annotated[str, msgspec.Meta(pattern=naming.NAME_PATTERN)]
Tag = Annotated[str, msgspec.Meta(pattern=naming.TAG_PATTERN)]
Roles = Annotated[tuple[str, ...], msgspec.Meta(max_length=len(naming.ROLES))]
Tags = Annotated[tuple[Tag, ...], msgspec.Meta(max_length=naming.MAX_TAGS)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Time = Annotated[int, msgspec.Meta(ge=0, le=_MAX_TIME_S)]


class Certificate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A membership certificate; what it says counts only once `verify` has passed.

    `mesh_id`, `node` and `issuer` are 32 bytes, `signature` 64; times are unix seconds.
    """

    version: int
    mesh_id: Key
    node: Key
    name: Name
    roles: Roles
    tags: Tags
    ipv4_counter: Counter
    not_before: Time
    not_after: Time
    issuer: Key
    signature: Signature

    @classmethod
    def decode(cls, raw: bytes) -> Certificate:
        """Read the bytes of `encode`; raises MembershipError for anything else."""
        if len(raw) > MAX_BYTES:
            raise MembershipError(f"the certificate is too long ({len(raw)} bytes)")
        certificate = wire.decode(raw, cls, "the certificate", VERSION, MembershipError)
        try:
            canonical = (
                naming.check_roles(certificate.roles) == certificate.roles
                and naming.check_tags(certificate.tags) == certificate.tags
            )
        except UsageError:
            canonical = False
        if not canonical:
            raise MembershipError("the certificate is damaged")
        return certificate

    def encode(self) -> bytes:
        """Return the certificate's bytes, at most MAX_BYTES."""
        return msgspec.msgpack.encode(self)

    @property
    def node_id(self) -> NodeId:
        """The member."""
        return _node_id(self.node)

    @property
    def issuer_id(self) -> NodeId:
        """Who signed it."""
        return _node_id(self.issuer)

    @property
    def ipv6(self) -> IPv6Address:
        """The member's canonical overlay address."""
        return addresses.overlay_ipv6(self.mesh_id, self.node_id)

    def ipv4(self, network: IPv4Network) -> IPv4Address:
        """Return the member's overlay address in the mesh's IPv4 network."""
        return addresses.overlay_ipv4(network, self.node_id, self.ipv4_counter)

    def signed_by(self, root: NodeId) -> bool:
        """Say whether `root` signed it, at whatever time and for whichever mesh."""
        return self.issuer == root.ed25519 and root.verify(self.signature, self.signed_bytes())

    def signed_bytes(self) -> bytes:
        """Return what the signature covers: the prefix, and the array without its last element."""
        return _PREFIX + msgspec.msgpack.encode(msgspec.structs.astuple(self)[:-1])


def sign(
    key: NodeKey,
    *,
    mesh_id: bytes,
    node: NodeId,
    name: str,
    roles: Iterable[str],
    tags: Iterable[str],
    ipv4_counter: int,
    not_before: int,
    not_after: int,
) -> Certificate:
    """Return a certificate signed by `key`; times are unix seconds, the counter is 0 … 65535.

    Raises UsageError for a name, role or tag that cannot be, or when they are too long together.
    """
    if not 0 <= ipv4_counter <= 0xFFFF or not 0 <= not_before <= not_after <= _MAX_TIME_S:
        raise ValueError(f"counter {ipv4_counter} or times {not_before}, {not_after} out of range")
    unsigned = Certificate(
        version=VERSION,
        mesh_id=mesh_id,
        node=node.ed25519,
        name=naming.check_name(name),
        roles=naming.check_roles(roles),
        tags=naming.check_tags(tags),
        ipv4_counter=ipv4_counter,
        not_before=not_before,
        not_after=not_after,
        issuer=key.id.ed25519,
        signature=bytes(64),
    )
    excess = len(unsigned.encode()) - MAX_BYTES
    if excess > 0:
        raise UsageError(
            f"name, roles and tags of {name} are {excess} bytes too long for a certificate",
            hint="Use shorter or fewer tags.",
        )
    return msgspec.structs.replace(unsigned, signature=key.sign(unsigned.signed_bytes()))


def verify(certificate: Certificate, root: NodeId, mesh_id: bytes, now: float) -> None:
    """Return if the certificate makes its node a member of this mesh at `now` (unix seconds).

    Raises MembershipError with the reason: another mesh, not signed by the root, a bad signature,
    expired, or not yet valid (CLOCK_SKEW_S is allowed for).
    """
    whose = _whose(certificate)
    if certificate.mesh_id != mesh_id:
        raise MembershipError(
            f"{whose} is for another mesh",
            hint="A node is in one mesh: join this one with a ticket.",
        )
    if addresses.mesh_id(root) != mesh_id:
        raise MembershipError(f"{whose} was checked against the root key of another mesh")
    if certificate.issuer_id != root:
        raise MembershipError(
            f"{whose} was signed by {certificate.issuer_id.short}, which is not the mesh's root",
            hint="Only a node with the mesh's root key issues certificates.",
        )
    if not certificate.signed_by(root):
        raise MembershipError(f"{whose} has a bad signature")
    check_time(certificate, now)


def check_time(certificate: Certificate, now: float) -> None:
    """Raise MembershipError when the certificate has expired at `now`, or is not yet valid."""
    whose = _whose(certificate)
    if now > certificate.not_after:
        ago = spell.duration(now - certificate.not_after)
        raise MembershipError(
            f"{whose} expired {ago} ago", hint="Join again with a new ticket, or check the clock."
        )
    if now < certificate.not_before - CLOCK_SKEW_S:
        wait = spell.duration(certificate.not_before - now)
        raise MembershipError(
            f"{whose} is not yet valid: it begins in {wait}", hint="Check this machine's clock."
        )


def _whose(certificate: Certificate) -> str:
    return f"the certificate of {certificate.name} ({certificate.node_id.short})"


@lru_cache(maxsize=4096)
def _node_id(ed25519: bytes) -> NodeId:
    """Return one NodeId per key, since it keeps the WireGuard key that it had to compute."""
    return NodeId(ed25519)
