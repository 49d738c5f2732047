"""The mesh's signed word that a node is a member (design §4). A core.

A certificate is a msgpack array, at most 430 bytes, so that a record that carries it fits one
packet. Its signature covers the exact bytes of the array without the signature, behind a prefix
that no other signed thing has. Made by `issuer.py`; checked by everyone who meets a node.

    signed by         roles           grant in it
    ---------         -----           -----------
    the root          any             the member's own, if and only if it has the role issuer
    a granted issuer  none of issuer  the issuer's; the certificate lies within its time
                      and admin
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Annotated

import msgspec

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId
from agent.membership import grant as grants
from agent.membership import naming, spell, wire
from agent.membership.grant import Grant, Signer
from agent.membership.wire import CLOCK_SKEW_S, MAX_TIME_S, Key, Signature, Time

VERSION = 1
# A member record (certificate, endpoints, signature) must stay below 1,000 bytes (design §5).
MAX_BYTES = 430
# Long enough to be switched off over a holiday; renewal starts at two thirds of it.
LIFETIME_S = 90 * 86400
# The longest that any certificate lasts: those that only the root key can renew, as long as grants.
LONGEST_LIFETIME_S = max(LIFETIME_S, grants.LIFETIME_S)
_PREFIX = b"covey-certificate-v1\0"

Name = Annotated[str, msgspec.Meta(pattern=naming.NAME_PATTERN)]
Tag = Annotated[str, msgspec.Meta(pattern=naming.TAG_PATTERN)]
Roles = Annotated[tuple[str, ...], msgspec.Meta(max_length=len(naming.ROLES))]
Tags = Annotated[tuple[Tag, ...], msgspec.Meta(max_length=naming.MAX_TAGS)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


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
    grant: Grant | None
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

    @property
    def own_grant(self) -> Grant | None:
        """The member's own right to issue; None unless it has the role issuer."""
        return self.grant if "issuer" in self.roles else None

    @property
    def renewal_due(self) -> float:
        """From when on it is renewed: two thirds of its life, unix seconds."""
        return self.not_before + (self.not_after - self.not_before) * 2 / 3

    def valid_at(self, now: float) -> bool:
        """Say whether `now` (unix seconds) is within its time, CLOCK_SKEW_S allowed before it."""
        return self.not_before - CLOCK_SKEW_S <= now <= self.not_after

    def newer_than(self, other: Certificate, now: float) -> bool:
        """Say whether it replaces `other`, a certificate of the same node.

        One whose time is not come at `now` (issued by a clock that was ahead) is replaced by any.
        """
        if other.not_before - CLOCK_SKEW_S > now:
            return self != other
        return self._age < other._age

    @property
    def _age(self) -> tuple[int, int, bytes]:
        return (-self.not_before, -self.not_after, self.signature)

    def chains_to(self, root: NodeId) -> bool:
        """Say whether it is of the mesh of `root`, which stands behind it, at whatever time."""
        try:
            _check_chain(self, root)
        except MembershipError:
            return False
        return self.mesh_id == addresses.mesh_id(root)

    def signed_bytes(self) -> bytes:
        """Return what the signature covers: the prefix, and the array without its last element."""
        return _PREFIX + msgspec.msgpack.encode(msgspec.structs.astuple(self)[:-1])


def sign(
    signer: Signer,
    *,
    node: NodeId,
    name: str,
    roles: Iterable[str],
    tags: Iterable[str],
    ipv4_counter: int,
    not_before: int,
    not_after: int,
) -> Certificate:
    """Return a certificate of `signer`'s mesh; times are unix seconds, the counter is 0 … 65535.

    With the role issuer it carries a grant for the same time. Raises UsageError for a name, role or
    tag that cannot be, or when they are too long together; MembershipError for a role that only the
    root key gives.
    """
    if not 0 <= ipv4_counter <= 0xFFFF or not 0 <= not_before <= not_after <= MAX_TIME_S:
        raise ValueError(f"counter {ipv4_counter} or times {not_before}, {not_after} out of range")
    roles = naming.check_roles(roles)
    grant = signer.grant
    if grant is not None:
        if privileged(roles):
            raise needs_root_key(name, roles)
        if not grant.covers(not_before, not_after):
            raise ValueError(f"times {not_before}, {not_after} are outside the grant")
    elif "issuer" in roles:
        grant = grants.sign(signer.key, node, not_before, not_after)
    unsigned = Certificate(
        version=VERSION,
        mesh_id=signer.mesh_id,
        node=node.ed25519,
        name=naming.check_name(name),
        roles=roles,
        tags=naming.check_tags(tags),
        ipv4_counter=ipv4_counter,
        not_before=not_before,
        not_after=not_after,
        issuer=signer.public,
        grant=grant,
        signature=bytes(64),
    )
    excess = len(unsigned.encode()) - MAX_BYTES
    if excess > 0:
        raise UsageError(
            f"name, roles and tags of {name} are {excess} bytes too long for a certificate",
            hint="Use shorter or fewer tags.",
        )
    return msgspec.structs.replace(unsigned, signature=signer.key.sign(unsigned.signed_bytes()))


def privileged(roles: Iterable[str]) -> bool:
    """Say whether only the root key gives these roles."""
    return not naming.ROOT_ROLES.isdisjoint(roles)


def needs_root_key(name: str, roles: Iterable[str]) -> MembershipError:
    """Return the error for a certificate that cannot be issued while the root key is away."""
    role = next(role for role in roles if role in naming.ROOT_ROLES)
    return MembershipError(
        f"the role {role} of {name} takes the mesh's root key, which is not here",
        hint="Give it with `--root-key FILE`, or ask the node that has it.",
    )


def verify(certificate: Certificate, root: NodeId, mesh_id: bytes, now: float) -> None:
    """Return if the certificate makes its node a member of this mesh at `now` (unix seconds).

    Raises MembershipError with the reason: another mesh, not signed by the root or by an issuer
    with its grant, a bad signature, expired, or not yet valid (CLOCK_SKEW_S is allowed for).
    """
    whose = _whose(certificate)
    if certificate.mesh_id != mesh_id:
        raise MembershipError(
            f"{whose} is for another mesh",
            hint="A node is in one mesh: join this one with a ticket.",
        )
    if addresses.mesh_id(root) != mesh_id:
        raise MembershipError(f"{whose} was checked against the root key of another mesh")
    _check_chain(certificate, root)
    check_time(certificate, now)


def _check_chain(certificate: Certificate, root: NodeId) -> None:
    """Raise MembershipError unless root, grant and signature stand behind the certificate."""
    whose, grant = _whose(certificate), certificate.grant
    if certificate.issuer == root.ed25519:
        if (grant is not None) != ("issuer" in certificate.roles):
            raise MembershipError(f"{whose} has a grant without the role issuer, or the reverse")
        if grant is not None and not grants.is_genuine(grant, root, certificate.node):
            raise MembershipError(f"{whose} carries a grant that the mesh's root did not give")
    else:
        grants.check_signer(whose, certificate.issuer, grant, root)
        if privileged(certificate.roles):
            raise MembershipError(
                f"{whose} has roles that only the mesh's root gives",
                hint="Its issuer went beyond its grant: revoke that issuer.",
            )
        if grant is None or not grant.covers(certificate.not_before, certificate.not_after):
            raise MembershipError(f"{whose} lies outside its issuer's grant")
    if not certificate.issuer_id.verify(certificate.signature, certificate.signed_bytes()):
        raise MembershipError(f"{whose} has a bad signature")


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
