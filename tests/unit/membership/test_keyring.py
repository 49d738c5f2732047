"""The network key's change: signed, in order, and nobody is cut off, whatever the clocks say."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.errors import MembershipError, UsageError
from agent.identity.keys import NodeKey
from agent.membership import grant as grants
from agent.membership import keyring
from agent.membership.grant import Signer
from agent.membership.keyring import MIN_OVERLAP_S, KeyChange, KeyRing, OfferedKey

ROOT = NodeKey(b"r" * 32)
ISSUERS = [NodeKey(bytes([number]) * 32) for number in (61, 62, 63)]
NOW = 1_800_000_000.0
HOUR_S = 3600.0
FIRST = b"1" * 32
RING = KeyRing.founding(FIRST)


def signer(number: int = 0, after_s: int = 10**8) -> Signer:
    key = ISSUERS[number]
    return Signer(key, ROOT.id, grants.sign(ROOT, key.id, int(NOW) - 100, int(NOW) + after_s))


def rotated(
    ring: KeyRing = RING, key: bytes = b"2" * 32, now: float = NOW, who: int = 0
) -> tuple[KeyRing, KeyChange]:
    return ring.rotate(signer(who), key, now, HOUR_S, shortest_s=MIN_OVERLAP_S)


def offered(ring: KeyRing, now: float = NOW) -> OfferedKey:
    return ring.offer(now)[0]


def learn(ring: KeyRing, other: KeyRing, now: float) -> KeyRing:
    for each in other.offer(now):
        ring = ring.learn(each, ROOT.id, now)
    return ring


def test_a_mesh_begins_with_one_key() -> None:
    for now in (0.0, NOW, 1e12):
        assert RING.at(now).sending == FIRST
        assert RING.at(now).accepting == (FIRST,)
    assert RING.changing(NOW) is None and RING.next_step(NOW) is None
    assert RING.offer(NOW) == (OfferedKey(FIRST, b""),)


def test_a_change_step_by_step() -> None:
    ring, change = rotated()
    new = b"2" * 32
    assert (change.generation, change.active_at, change.retired_at) == (1, NOW + 1800, NOW + 3600)
    for after_s, sending, accepting in (
        (0, FIRST, (new, FIRST)),
        (1799, FIRST, (new, FIRST)),
        (1800, new, (new, FIRST)),
        (3599, new, (new, FIRST)),
        (3600, new, (new,)),
    ):
        keys = ring.at(NOW + after_s)
        assert (keys.sending, keys.accepting) == (sending, accepting)
    assert [ring.next_step(NOW + s) for s in (0, 1800, 3600)] == [NOW + 1800, NOW + 3600, None]
    assert ring.changing(NOW + 3599) == change
    assert ring.changing(NOW + 3600) is None
    assert len(ring.pruned(NOW + 3899).keys) == 2
    assert len(ring.pruned(NOW + 3900).keys) == 1
    assert ring.pruned(NOW) is ring


def test_the_change_does_not_hold_the_key() -> None:
    ring, change = rotated()
    assert b"2" * 32 not in change.encode()
    assert "2222" not in repr(ring)
    assert "2222" not in repr(ring.offer(NOW))


def test_who_hears_of_a_change_sends_with_the_old_key_until_it_has_the_new_one() -> None:
    ring, change = rotated()
    late = RING.announce(KeyChange.decode(change.encode()), ROOT.id, NOW)
    assert late.pending == (change,)
    assert late.announce(change, ROOT.id, NOW) is late
    assert late.at(NOW + 9999).accepting == (FIRST,)
    learnt = learn(late, ring, NOW + 1900)
    assert learnt == ring
    assert learnt.at(NOW + 1900).sending == b"2" * 32
    assert learn(learnt, ring, NOW + 1900) is learnt
    assert learnt.announce(change, ROOT.id, NOW) is learnt


def test_a_node_that_was_off_for_years_learns_the_present_key() -> None:
    ring, now = RING, NOW
    for number in range(5):
        ring, _ = rotated(ring, bytes([number]) * 32, now)
        now += 2 * HOUR_S
        ring = ring.pruned(now)
    assert len(ring.keys) == 1 and ring.keys[0].generation == 5
    late = learn(RING, ring, now + 10**8)  # when the grant of who changed it is long over
    assert late.at(now).sending == ring.at(now).sending
    assert late.at(now).accepting == ring.at(now).accepting


def test_a_second_change_is_refused_until_the_first_is_done() -> None:
    ring, change = rotated()
    heard = RING.announce(change, ROOT.id, NOW)
    for busy in (ring, heard):
        with pytest.raises(MembershipError, match="changed already, for another 59 minutes"):
            rotated(busy, b"3" * 32, NOW + 10)
    ring, change = rotated(ring, b"3" * 32, NOW + HOUR_S)
    assert change.generation == 2


@pytest.mark.parametrize("overlap_s", [0.0, 1.0, MIN_OVERLAP_S - 1, 31 * 86400, float("nan")])
def test_impossible_overlaps(overlap_s: float) -> None:
    with pytest.raises(UsageError, match="overlap cannot be"):
        RING.rotate(signer(), b"2" * 32, NOW, overlap_s, shortest_s=MIN_OVERLAP_S)


def test_in_an_emergency_two_seconds_are_enough() -> None:
    ring, change = RING.rotate(signer(), b"2" * 32, NOW + 0.9, 2, shortest_s=keyring.SHORTEST_S)
    assert ring.at(NOW + 3).accepting == (b"2" * 32,)
    with pytest.raises(UsageError):
        RING.rotate(signer(), b"2" * 32, NOW, 1, shortest_s=0)
    assert change.retired_at - change.active_at == 1


def test_two_changes_at_once_end_alike_for_everyone() -> None:
    one, change_one = rotated(key=b"2" * 32, now=NOW + 60, who=0)
    two, change_two = rotated(key=b"3" * 32, now=NOW, who=1)
    for both in (learn(one, two, NOW + 70), learn(two, one, NOW + 70)):
        assert both.at(NOW + 1700).sending == FIRST
        assert both.at(NOW + 1900).sending == b"3" * 32  # it becomes active first
        assert set(both.at(NOW + 3640).accepting) == {FIRST, b"2" * 32, b"3" * 32}
        assert both.at(NOW + 3660).accepting == (b"3" * 32,)
    assert change_one.generation == change_two.generation == 1


def test_an_old_change_that_comes_late_is_history() -> None:
    stray, stray_change = rotated(key=b"9" * 32, who=2)
    ring = RING
    for number in range(2):
        ring, _ = rotated(ring, bytes([number]) * 32, NOW + number * 2 * HOUR_S)
    now = NOW + 4 * HOUR_S
    assert ring.announce(stray_change, ROOT.id, now) is ring
    assert ring.learn(offered(stray), ROOT.id, now) is ring


def forge(change: KeyChange, key: NodeKey, **changes: object) -> KeyChange:
    changed = msgspec.structs.replace(change, signer=key.id.ed25519, **changes)
    return msgspec.structs.replace(changed, signature=key.sign(changed.signed_bytes()))


def test_who_may_not_change_the_key() -> None:
    _, change = rotated()
    other = NodeKey(b"o" * 32)
    for bad, words in (
        (forge(change, other), "grant that the mesh's root did not give"),
        (forge(change, other, grant=None), "has no grant"),
        (forge(change, ISSUERS[0], mesh_id=bytes(32)), "for another mesh"),
        (forge(change, ISSUERS[0], made_at=int(NOW) - 101), "outside its issuer's grant"),
        (msgspec.structs.replace(change, signature=bytes(64)), "bad signature"),
        (forge(change, ISSUERS[0], generation=0), "impossible times"),
        (forge(change, ISSUERS[0], active_at=change.retired_at + 1), "impossible times"),
        (forge(change, ISSUERS[0], active_at=change.made_at - 1), "impossible times"),
        (forge(change, ISSUERS[0], retired_at=change.made_at + 31 * 86400), "impossible times"),
        (forge(change, ISSUERS[0], made_at=int(NOW) + 301), "impossible times"),
    ):
        with pytest.raises(MembershipError, match=words):
            RING.announce(bad, ROOT.id, NOW)
        with pytest.raises(MembershipError, match=words):
            RING.learn(OfferedKey(b"2" * 32, bad.encode()), ROOT.id, NOW)
    by_root, _ = RING.rotate(Signer.of_root(ROOT), b"4" * 32, NOW, HOUR_S, shortest_s=MIN_OVERLAP_S)
    assert learn(RING, by_root, NOW) == by_root


def test_another_key_under_a_good_change_is_refused() -> None:
    ring, change = rotated()
    for known in (RING, RING.announce(change, ROOT.id, NOW)):
        with pytest.raises(MembershipError, match="that its change does not name"):
            known.learn(OfferedKey(b"x" * 32, change.encode()), ROOT.id, NOW)
    # a first key is never learnt: anyone could offer one
    assert RING.learn(OfferedKey(b"x" * 32, b""), ROOT.id, NOW) is RING
    with pytest.raises(MembershipError, match="damaged"):
        RING.learn(OfferedKey(b"x" * 32, b"junk"), ROOT.id, NOW)
    assert KeyRing.of_offer(ring.offer(NOW), ROOT.id, NOW) == ring


@settings(max_examples=100)
@given(st.data())
def test_no_flipped_byte_is_believed(data: st.DataObject) -> None:
    raw = bytearray(rotated()[1].encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MembershipError):
        RING.announce(KeyChange.decode(bytes(raw)), ROOT.id, NOW)


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_membership_error(raw: bytes) -> None:
    with pytest.raises(MembershipError):
        KeyChange.decode(raw)


def test_a_malicious_issuers_flood_stays_bounded() -> None:
    ring = RING
    for number in range(40):
        other, change = rotated(key=bytes([number + 3]) * 32, now=NOW + number, who=1)
        ring = ring.announce(change, ROOT.id, NOW + number)
        if number % 2:
            ring = learn(ring, other, NOW + number)
    assert len(ring.keys) <= keyring.MAX_KEYS
    assert len(ring.pending) <= keyring.MAX_KEYS


SKEW_S = 120


class Rotation(RuleBasedStateMachine):
    """Members whose clocks are up to two minutes off, who learn from each other, late or never.

    The first ones are issuers and rotate when they believe that they may, also two at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.made = 0
        self.changes: dict[bytes, KeyChange] = {}  # by key

    @initialize(
        offsets=st.lists(st.sampled_from([-SKEW_S // 2, 0, SKEW_S // 2]), min_size=3, max_size=5)
    )
    def begin(self, offsets: list[int]) -> None:
        self.offsets = offsets
        self.rings = [RING for _ in offsets]

    def clock(self, who: int) -> float:
        return self.now + self.offsets[who]

    @rule(who=st.integers(0, 1), overlap_s=st.sampled_from([MIN_OVERLAP_S, 3600, 86400]))
    def rotate(self, who: int, overlap_s: float) -> None:
        self.made += 1
        key = random.Random(self.made).randbytes(32)
        now = self.clock(who)
        try:
            self.rings[who], change = self.rings[who].rotate(
                signer(who), key, now, overlap_s, shortest_s=MIN_OVERLAP_S
            )
        except MembershipError:
            assert self.rings[who].changing(now) is not None
        else:
            self.changes[key] = change

    @rule(who=st.integers(0, 4), other=st.integers(0, 4))
    def learn_from(self, who: int, other: int) -> None:
        who, other = who % len(self.rings), other % len(self.rings)
        for each in self.rings[other].offer(self.clock(other)):
            self.rings[who] = self.rings[who].learn(each, ROOT.id, self.clock(who))

    @rule()
    def all_meet(self) -> None:
        for who in range(len(self.rings)):
            for other in range(len(self.rings)):
                self.learn_from(who, other)

    @rule(who=st.integers(0, 4))
    def hear_of_all(self, who: int) -> None:
        who %= len(self.rings)
        for change in self.changes.values():
            self.rings[who] = self.rings[who].announce(change, ROOT.id, self.clock(who))

    @rule(seconds=st.sampled_from([1, 119, 601, 43200]))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.rings = [ring.pruned(self.clock(who)) for who, ring in enumerate(self.rings)]

    @rule(of=st.integers(0, 9), step=st.sampled_from(["active_at", "retired_at"]),
          off_s=st.sampled_from([-SKEW_S, -61, -45, -1, 0, 1, 45, 61, SKEW_S]))  # fmt: skip
    def wait_for_a_step(self, of: int, step: str, off_s: int) -> None:
        """To a moment at which some clocks have passed a step of a change and others have not."""
        changes = list(self.changes.values())
        if changes:
            self.now = max(self.now, getattr(changes[of % len(changes)], step) + off_s)

    def knows(self, who: int) -> bool:
        """Whether a member has every key that another member still accepts by a change."""
        mine = {key.key for key in self.rings[who].keys}
        wanted = {
            key.key
            for other, ring in enumerate(self.rings)
            for key in ring.keys
            if key.change and key.key in ring.at(self.clock(other)).accepting
        }
        return wanted <= mine

    @invariant()
    def who_has_learnt_hears_and_is_heard(self) -> None:
        if not hasattr(self, "rings"):
            return
        learnt = [who for who in range(len(self.rings)) if self.knows(who)]
        for one in learnt:
            for two in learnt:
                sent = self.rings[one].at(self.clock(one)).sending
                assert sent in self.rings[two].at(self.clock(two)).accepting

    @invariant()
    def who_has_not_is_heard_until_the_old_key_ends(self) -> None:
        """A member that learnt nothing of the only change there was is not cut off before time."""
        if len(self.changes) != 1:
            return
        (change,) = self.changes.values()
        if self.now >= change.retired_at - SKEW_S:
            return
        for who, ring in enumerate(self.rings):
            for other, theirs in enumerate(self.rings):
                sent = ring.at(self.clock(who)).sending
                if sent == FIRST:
                    assert sent in theirs.at(self.clock(other)).accepting
                if self.now < change.active_at - SKEW_S:
                    assert sent == FIRST


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
