"""The root key's word that a node may issue, and who signs for the mesh. A core.

    root key ── grant ──▶ an issuer's node key ── certificate, revocation list, key change

A grant travels inside whatever its issuer signs, so that everything can be judged against the
root's public key alone, while the root key itself lies in a safe. It holds two times and a
signature; whose it is follows from what it is embedded in. Used by `certificate.py`,
`revocation.py` and `keyring.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from agent.errors import MembershipError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey
from agent.membership.wire import CLOCK_SKEW_S, MAX_TIME_S, Signature, Time

# The root key need be fetched from its safe once a year at most.
LIFETIME_S = 365 * 86400
_PREFIX = b"covey-grant-v1\0"


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The right to issue between two times (unix seconds); 77 bytes at most when embedded."""

    not_before: Time
    not_after: Time
    signature: Signature

    def covers(self, not_before: int, not_after: int) -> bool:
        """Say whether something valid between these times is within the grant."""
        return self.not_before <= not_before and not_after <= self.not_after

    def valid_at(self, now: float) -> bool:
        """Say whether it lasts at `now` (unix seconds), CLOCK_SKEW_S allowed before it."""
        return self.not_before - CLOCK_SKEW_S <= now <= self.not_after


def sign(root_key: NodeKey, issuer: NodeId, not_before: int, not_after: int) -> Grant:
    """Return the grant by which `issuer` may issue between two times (unix seconds)."""
    if not 0 <= not_before <= not_after <= MAX_TIME_S:
        raise ValueError(f"times {not_before}, {not_after} are out of range")
    message = _message(root_key.id, issuer.ed25519, not_before, not_after)
    return Grant(not_before, not_after, root_key.sign(message))


@lru_cache(maxsize=1024)
def is_genuine(grant: Grant, root: NodeId, issuer: bytes) -> bool:
    """Say whether `root` gave this grant to `issuer` (an Ed25519 key), at whatever time."""
    message = _message(root, issuer, grant.not_before, grant.not_after)
    return root.verify(grant.signature, message)


@dataclass(frozen=True)
class Signer:
    """Who signs for the mesh: the root key (then `grant` is None), or a node key with its grant."""

    key: NodeKey = field(repr=False)
    root: NodeId
    grant: Grant | None

    def __post_init__(self) -> None:
        """Raise ValueError for a key that is not the root's and has no grant of its own."""
        if self.grant is None:
            if self.key.id != self.root:
                raise ValueError("only the root key signs without a grant")
        elif not is_genuine(self.grant, self.root, self.public):
            raise ValueError("the grant is for another key")

    @classmethod
    def of_root(cls, root_key: NodeKey) -> Signer:
        """Return the root key as a signer."""
        return cls(root_key, root_key.id, None)

    @property
    def public(self) -> bytes:
        """The Ed25519 key (32 bytes) that verifies what is signed."""
        return self.key.id.ed25519

    @property
    def mesh_id(self) -> bytes:
        """The mesh that it signs for, 32 bytes."""
        return addresses.mesh_id(self.root)


def check_signer(what: str, signer: bytes, grant: Grant | None, root: NodeId) -> None:
    """Raise MembershipError unless `signer` is the root, or shows a genuine grant of the root.

    `what` begins the message, as "the revocation list". Times are the caller's to check.
    """
    if signer == root.ed25519:
        if grant is not None:
            raise MembershipError(f"{what} is the root's own and carries a grant")
        return
    if grant is None:
        raise MembershipError(
            f"{what} was signed by {NodeId(signer).short}, which has no grant of the mesh's root",
            hint="Only the root key, and issuers to which it gave a grant, sign for the mesh.",
        )
    if not is_genuine(grant, root, signer):
        raise MembershipError(f"{what} carries a grant that the mesh's root did not give")


def _message(root: NodeId, issuer: bytes, not_before: int, not_after: int) -> bytes:
    fields = (addresses.mesh_id(root), issuer, not_before, not_after)
    return _PREFIX + msgspec.msgpack.encode(fields)
