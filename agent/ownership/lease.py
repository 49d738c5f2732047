"""Leases: a head node lets one owner at a time command a deployment's ring. A core.

    claim                                    answer
    -----                                    ------
    nobody has a live lease                  granted, with a new epoch
    the claimant's own claim, said again     granted, the same token for another LEASE_S
    a newer claim of the same claimant       granted, with a new epoch (it may have started anew)
    an older claim of the same claimant      none: it was delayed
    another one's lease lives                refused, naming who has it and for how long
    within LEASE_S of the grantor's start    refused: it may have forgotten a lease

A token is an epoch and its owner. Epochs grow with each new grant and never come again, also after
a restart: the caller stores how far this book may go before it goes there (`limit`). A command with
a token counts only while that is the last one granted. `now` is monotonic seconds on this node's
clock, which goes on while the machine sleeps. Used by `owner.py`, on the head's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from agent.identity.keys import NodeId

# Renewed each 0.5 s: two lost packets in a row do no harm, and a dead owner is replaced within 2 s.
LEASE_S = 1.5
MAX_EPOCH = 2**53

Epoch = Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)]
NodeBytes = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Token(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The right to command a ring: the grant's epoch, and the owner's node id (32 bytes)."""

    epoch: Epoch
    owner: NodeBytes

    @property
    def owner_id(self) -> NodeId:
        """Whose it is."""
        return NodeId(self.owner)


@dataclass(frozen=True)
class Granted:
    """The claimant may command until LEASE_S after its claim came."""

    token: Token


@dataclass(frozen=True)
class Refused:
    """Not now. `holder` has a lease for `left_s` more, renewed `age_s` ago; None: nobody may."""

    holder: Token | None
    age_s: float
    left_s: float


@dataclass
class _Lease:
    token: Token
    claim: int
    renewed_at: float
    released: bool = False

    def live(self, now: float) -> bool:
        return not self.released and now < self.renewed_at + LEASE_S


class LeaseBook:
    """The leases that one head node grants, one for each deployment."""

    def __init__(self, now: float, *, floor: int, limit: int) -> None:
        """Grant epochs above `floor`, up to `limit`; nothing in the first LEASE_S after `now`."""
        self._quiet_until = now + LEASE_S
        self._leases: dict[str, _Lease] = {}
        self.highest = floor
        self.limit = limit

    def claim(
        self, name: str, claimant: NodeId, claim: int, after: int, now: float
    ) -> Granted | Refused | None:
        """Answer a claim; `claim` numbers the claimant's claims, `after` is an epoch that it saw.

        None for a claim that is older than one already answered.
        """
        lease = self._leases.get(name)
        if lease is not None and lease.token.owner == claimant.ed25519:
            older = claim < lease.claim
            if (older and lease.live(now)) or (lease.released and claim <= lease.claim):
                return None
            if claim == lease.claim:
                # Also when it has run out: nobody else has had it since, or it would be theirs.
                lease.renewed_at = now
                return Granted(lease.token)
        elif lease is not None and lease.live(now):
            age = now - lease.renewed_at
            return Refused(lease.token, age, LEASE_S - age)
        if now < self._quiet_until:
            return Refused(None, 0.0, self._quiet_until - now)
        if self.highest >= self.limit:
            return Refused(None, 0.0, LEASE_S)
        # `after` counts when this node's own memory was lost (a backup was restored).
        epoch = after + 1 if self.highest < after < self.limit else self.highest + 1
        self.highest = epoch
        token = Token(epoch, claimant.ed25519)
        self._leases[name] = _Lease(token, claim, now)
        return Granted(token)

    def release(self, name: str, token: Token) -> None:
        """Take a lease back before its time; a token that is not the last one changes nothing."""
        lease = self._leases.get(name)
        if lease is not None and lease.token == token:
            lease.released = True

    def holder(self, name: str, now: float) -> Token | None:
        """Return whose lease lives."""
        lease = self._leases.get(name)
        return lease.token if lease is not None and lease.live(now) else None

    def admits(self, name: str, token: Token) -> bool:
        """Say whether a command with this token is to be obeyed: nobody got a later one.

        A lease that ran out is as good as a live one here, as long as nobody else has had it.
        """
        lease = self._leases.get(name)
        return lease is not None and lease.token == token and not lease.released
