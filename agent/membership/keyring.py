"""How the mesh changes its network key so that nobody is cut off. A core.

    rotate        learnt           active_at             retired_at
      |  members fetch the key  |  all who have it send   |  the old key is
      |  and accept it at once  |  with it                |  accepted no more

A change is signed and told to everyone; it holds the new key's hash alone, and the key itself comes
over an authenticated stream. Half of the overlap passes before the first member sends with the new
key, and half of it between the first that does and the first that drops the old one: so clocks may
differ by that half, and who learns late still hears from everyone until `active_at`, and is heard
by everyone until `retired_at`.

Two issuers may change the key at once. Both keys are then of the same generation: the one that
becomes active first is sent with (the lower hash of two), the other is accepted as long as the key
before. Whoever knows both decides alike, in whatever order they came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId
from agent.membership import grant as grants
from agent.membership import spell, wire
from agent.membership.grant import Grant, Signer
from agent.membership.networkkeys import KEY_BYTES, NetworkKeys
from agent.membership.wire import CLOCK_SKEW_S, Key, Signature, Time

VERSION = 1
# Each half must be longer than two clocks differ (some minutes on machines without a time server).
MIN_OVERLAP_S = 20 * 60
# In an emergency: two seconds are two whole ones, and what is not told by then is cut off.
SHORTEST_S = 2
MAX_OVERLAP_S = 30 * 86400
# A retired key is forgotten this much later, when no clock can still want it.
FORGET_AFTER_S = CLOCK_SKEW_S
# One change at a time, or as many as there are issuers that rotate in the same minute.
MAX_KEYS = 8
_PREFIX = b"covey-key-change-v1\0"
_HASH_PREFIX = b"covey-network-key-v1\0"

Generation = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
SignedBytes = Annotated[bytes, msgspec.Meta(max_length=512)]


class KeyChange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """That a key becomes the sending one, and when all older ones end; unix seconds."""

    version: int
    mesh_id: Key
    generation: Generation
    key_hash: Key
    made_at: Time
    active_at: Time
    retired_at: Time
    signer: Key
    grant: Grant | None
    signature: Signature

    @classmethod
    def decode(cls, raw: bytes) -> KeyChange:
        """Read the bytes of `encode`; raises MembershipError for anything else."""
        return wire.decode(raw, cls, "the key change", VERSION, MembershipError)

    def encode(self) -> bytes:
        """Return the change's bytes."""
        return msgspec.msgpack.encode(self)

    def signed_bytes(self) -> bytes:
        """Return what the signature covers: the prefix, and the array without its last element."""
        return _PREFIX + msgspec.msgpack.encode(msgspec.structs.astuple(self)[:-1])

    @property
    def rank(self) -> tuple[int, bytes]:
        """Which of one generation is sent with: the lowest."""
        return (self.active_at, self.key_hash)


class OfferedKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A network key on its way to a member, and its change; empty for the mesh's first key."""

    key: Key
    change: SignedBytes

    def __repr__(self) -> str:
        return "OfferedKey(…)"


Offer = Annotated[tuple[OfferedKey, ...], msgspec.Meta(max_length=MAX_KEYS)]


def key_hash(key: bytes) -> bytes:
    """Return the hash (32 bytes) by which a change names a network key."""
    return hashlib.sha256(_HASH_PREFIX + key).digest()


def verify(change: KeyChange, root: NodeId, now: float) -> None:
    """Return if the change is the mesh's; raises MembershipError.

    Its signer's grant must have lasted when it was made, not now: a node that was off for long
    learns the present key, whoever brought it.
    """
    if change.mesh_id != addresses.mesh_id(root):
        raise MembershipError("the key change is for another mesh")
    grants.check_signer("the key change", change.signer, change.grant, root)
    if change.grant is not None and not change.grant.covers(change.made_at, change.made_at):
        raise MembershipError("the key change lies outside its issuer's grant")
    if not NodeId(change.signer).verify(change.signature, change.signed_bytes()):
        raise MembershipError("the key change has a bad signature")
    times = (change.made_at, change.active_at, change.retired_at, change.made_at + MAX_OVERLAP_S)
    if list(times) != sorted(times) or change.made_at > now + CLOCK_SKEW_S or not change.generation:
        raise MembershipError("the key change has impossible times")


@dataclass(frozen=True)
class RingKey:
    """A network key that is here; `change` is None for the mesh's first."""

    key: bytes = field(repr=False)
    change: KeyChange | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a key that is none, or not the one that its change names."""
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a network key holds {KEY_BYTES} bytes")
        if self.change is not None and key_hash(self.key) != self.change.key_hash:
            raise ValueError("the key is not the one that the change names")

    @property
    def generation(self) -> int:
        """How many changes there were before it."""
        return self.change.generation if self.change else 0

    @property
    def active_at(self) -> int:
        """From when on it is sent with, unix seconds."""
        return self.change.active_at if self.change else 0

    @property
    def order(self) -> tuple[int, int, bytes]:
        """Newest first, and within a generation the one that is sent with first."""
        rank = self.change.rank if self.change else (0, b"")
        return (-self.generation, *rank)


@dataclass(frozen=True)
class KeyRing:
    """The keys that a member has, newest first, and the changes whose key it lacks. A value."""

    keys: tuple[RingKey, ...]
    pending: tuple[KeyChange, ...] = ()

    @classmethod
    def founding(cls, key: bytes) -> KeyRing:
        """Return the ring of a new mesh."""
        return cls((RingKey(key),))

    def at(self, now: float) -> NetworkKeys:
        """Return the keys at `now` (unix seconds)."""
        accepted = tuple(key for key in self.keys if now < self._ends(key))
        best = {key.generation: key for key in reversed(accepted)}
        # A newcomer whose clock is behind may have no key that is active: then the next one.
        active = [key for key in best.values() if key.active_at <= now]
        sending = active[-1] if active else min(best.values(), key=lambda key: key.active_at)
        return NetworkKeys(sending.key, tuple(key.key for key in accepted))

    def changing(self, now: float) -> KeyChange | None:
        """Return the change that is not finished at `now`, if there is one."""
        return next((change for change in self._changes() if change.retired_at > now), None)

    def next_step(self, now: float) -> float | None:
        """Return when, after `now`, `at` gives something else by time alone; None: never."""
        times = [t for c in self._changes() for t in (c.active_at, c.retired_at) if t > now]
        return min(times, default=None)

    def rotate(
        self, signer: Signer, key: bytes, now: float, overlap_s: float, *, shortest_s: float
    ) -> tuple[KeyRing, KeyChange]:
        """Return the ring with a new key, and the signed change to tell everyone.

        The old key is accepted for another `overlap_s`, the new one sent with after half of it.
        Raises UsageError for an impossible overlap, MembershipError while a change is under way.
        """
        if not max(shortest_s, SHORTEST_S) <= overlap_s <= MAX_OVERLAP_S:
            raise UsageError(
                f"the overlap cannot be {overlap_s:g} seconds",
                hint=f"Give {spell.duration(max(shortest_s, SHORTEST_S))} to 30 days: members that "
                "are off all that time have to join again.",
            )
        under_way = self.changing(now)
        if under_way is not None:
            left = spell.duration(under_way.retired_at - now)
            raise MembershipError(
                f"the network key is being changed already, for another {left}",
                hint="Wait until then; two changes at once could cut a member off.",
            )
        unsigned = KeyChange(
            version=VERSION,
            mesh_id=signer.mesh_id,
            generation=max(self._newest, *(c.generation for c in self.pending), 0) + 1,
            key_hash=key_hash(key),
            made_at=int(now),
            active_at=int(now + overlap_s / 2),
            retired_at=int(now + overlap_s),
            signer=signer.public,
            grant=signer.grant,
            signature=bytes(64),
        )
        signature = signer.key.sign(unsigned.signed_bytes())
        change = msgspec.structs.replace(unsigned, signature=signature)
        return self._with(RingKey(key, change)), change

    def announce(self, change: KeyChange, root: NodeId, now: float) -> KeyRing:
        """Return the ring that knows of a change; the same object when it brings nothing new.

        Raises MembershipError when it is not to be believed.
        """
        if change in self._changes() or change.generation < self._finished(now):
            return self
        verify(change, root, now)
        pending = sorted((*self.pending, change), key=lambda c: (-c.generation, *c.rank))
        return KeyRing(self.keys, tuple(pending[:MAX_KEYS]))

    def learn(self, offered: OfferedKey, root: NodeId, now: float) -> KeyRing:
        """Return the ring with a key that a member gave; the same object if that is nothing new.

        A first key is never learnt this way. Raises MembershipError when it is not to be believed.
        """
        if not offered.change:
            return self
        change = KeyChange.decode(offered.change)
        if any(key.change == change for key in self.keys):
            return self
        if change.generation < self._finished(now):
            return self
        if change not in self.pending:
            verify(change, root, now)
        if key_hash(offered.key) != change.key_hash:
            raise MembershipError("a network key came that its change does not name")
        return self._with(RingKey(offered.key, change))

    def offer(self, now: float) -> tuple[OfferedKey, ...]:
        """Return the keys that are not retired, to tell a member."""
        return tuple(
            OfferedKey(key.key, key.change.encode() if key.change else b"")
            for key in self.keys
            if now < self._ends(key)
        )

    def pruned(self, now: float) -> KeyRing:
        """Return the ring without keys that ended long ago, and changes that came to nothing."""
        keys = tuple(k for k in self.keys if now < self._ends(k) + FORGET_AFTER_S)
        finished = self._finished(now)
        pending = tuple(c for c in self.pending if c.generation >= finished)
        if len(keys) == len(self.keys) and len(pending) == len(self.pending):
            return self
        return KeyRing(keys, pending)

    @classmethod
    def of_offer(cls, offer: Iterable[OfferedKey], root: NodeId, now: float) -> KeyRing:
        """Return a newcomer's ring, from its issuer's signed reply; raises MembershipError."""
        keys = []
        for offered in offer:
            change = KeyChange.decode(offered.change) if offered.change else None
            if change is not None:
                verify(change, root, now)
                if key_hash(offered.key) != change.key_hash:
                    raise MembershipError("a network key came that its change does not name")
            keys.append(RingKey(offered.key, change))
        if not keys:
            raise MembershipError("the answer holds no network key")
        return cls(tuple(sorted(keys, key=lambda key: key.order)))

    @property
    def _newest(self) -> int:
        return max(key.generation for key in self.keys)

    def _changes(self) -> list[KeyChange]:
        return [*(key.change for key in self.keys if key.change), *self.pending]

    def _finished(self, now: float) -> int:
        """The newest generation here whose change is done: older ones are history."""
        changes = [key.change for key in self.keys if key.change]
        return max((c.generation for c in changes if c.retired_at <= now), default=0)

    def _ends(self, key: RingKey) -> float:
        """When a key is accepted no more, as far as the keys that are here say."""
        same = [k.change for k in self.keys if k.generation == key.generation and k.change]
        newer = [k.change for k in self.keys if k.generation > key.generation and k.change]
        ends = [
            max(c.retired_at for c in newer if c.generation == generation)
            for generation in {c.generation for c in newer}
        ]
        if key.change is not None and any(c.rank < key.change.rank for c in same):
            ends.append(max(c.retired_at for c in same))
        return min(ends, default=float("inf"))

    def _with(self, new: RingKey) -> KeyRing:
        keys = sorted((*self.keys, new), key=lambda key: key.order)
        return KeyRing(tuple(keys[:MAX_KEYS]), tuple(c for c in self.pending if c != new.change))
