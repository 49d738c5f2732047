"""Who gets which ports: rules one by one, then any order of events by a state machine."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from relay_ends import ANNA, BERT, CARL, RELAY, key_of

from agent.errors import EnvironmentFault, MembershipError, UsageError
from agent.identity.keys import NodeId
from agent.relay.allocation import DAY_S, UNUSABLE_S, Allocation, Allocations, Limits
from agent.relay.pairs import Seat

NOW = 1_800_000_000.0
ME = RELAY.id
NODES = [key_of(f"node {n}").id for n in range(8)]
LIMITS = Limits(ports=range(20000, 20008), pairs_per_node=3)


def made(limits: Limits = LIMITS, nodes: list[NodeId] | None = None) -> Allocations:
    allocations = Allocations(ME, limits, Random(1))
    allocations.set_members([*(nodes or [ANNA.id, BERT.id, CARL.id, *NODES]), ME])
    return allocations


def test_both_sides_get_the_same_whoever_asks_first() -> None:
    allocations = made()
    first = allocations.allocate(ANNA.id, BERT.id, NOW)
    assert allocations.allocate(BERT.id, ANNA.id, NOW) is first
    assert allocations.allocate(ANNA.id, BERT.id, NOW) is first
    assert first.side(ANNA.id) != first.side(BERT.id)
    assert len(set(first.pair.ports)) == 2


@pytest.mark.parametrize(
    ("asker", "peer", "fault"),
    [
        (ANNA.id, ANNA.id, UsageError),
        (ANNA.id, ME, UsageError),
        (ME, ANNA.id, UsageError),
        (ANNA.id, key_of("stranger").id, MembershipError),
        (key_of("stranger").id, ANNA.id, MembershipError),
    ],
)
def test_who_is_turned_away(asker: NodeId, peer: NodeId, fault: type[Exception]) -> None:
    allocations = made()
    with pytest.raises(fault):
        allocations.allocate(asker, peer, NOW)
    assert len(allocations) == 0


def test_it_expires_unless_it_is_refreshed_by_either() -> None:
    allocations = made()
    found = allocations.allocate(ANNA.id, BERT.id, NOW)
    allocations.refresh(BERT.id, found.id, NOW + 119)
    allocations.expire(NOW + 238)
    assert allocations.get(found.id) is found
    assert allocations.next_expiry() == NOW + 239
    allocations.expire(NOW + 239)
    assert allocations.get(found.id) is None
    assert [r.allocation for r in allocations.take_removed()] == [found]
    assert allocations.take_removed() == []
    with pytest.raises(UsageError):
        allocations.refresh(ANNA.id, found.id, NOW + 239)


def test_only_its_nodes_may_refresh_or_release() -> None:
    allocations = made()
    found = allocations.allocate(ANNA.id, BERT.id, NOW)
    for call in (
        lambda: allocations.refresh(CARL.id, found.id, NOW),
        lambda: allocations.release(CARL.id, found.id),
    ):
        with pytest.raises(UsageError):
            call()
    allocations.release(BERT.id, found.id)
    assert len(allocations) == 0


def test_the_revoked_lose_theirs() -> None:
    allocations = made()
    lost = allocations.allocate(ANNA.id, BERT.id, NOW)
    kept = allocations.allocate(ANNA.id, CARL.id, NOW)
    allocations.set_members([ANNA.id, CARL.id])
    assert allocations.all() == [kept]
    assert [r.allocation for r in allocations.take_removed()] == [lost]


def test_being_asked_for_costs_a_node_nothing() -> None:
    allocations = made()
    for node in NODES[:3]:
        allocations.allocate(node, ANNA.id, NOW)
    mine = allocations.allocate(ANNA.id, BERT.id, NOW)
    for node in NODES[:2]:  # its own now, as it wants them as well
        allocations.allocate(ANNA.id, node, NOW)
    with pytest.raises(EnvironmentFault, match="at most 3"):
        allocations.allocate(ANNA.id, NODES[2], NOW)
    allocations.release(ANNA.id, mine.id)
    allocations.allocate(ANNA.id, NODES[2], NOW)


def test_when_all_is_taken_the_one_with_most_gives_way() -> None:
    allocations = made()  # 4 pairs
    hers = [allocations.allocate(ANNA.id, node, NOW + n) for n, node in enumerate(NODES[:3])]
    allocations.allocate(BERT.id, NODES[0], NOW)
    allocations.seat(hers[0].id, 0, Seat(("192.0.2.1", 1), "192.0.2.9", "eth0"), NOW + 9)
    allocations.allocate(CARL.id, NODES[0], NOW + 10)
    removed = allocations.take_removed()
    assert [r.allocation for r in removed] == [hers[1]]  # her least used
    assert "others need ports" in removed[0].reason
    with pytest.raises(EnvironmentFault, match="in use"):  # two each would be no more fair
        allocations.allocate(CARL.id, NODES[1], NOW + 10)


def test_bytes_count_against_who_sent_them() -> None:
    limits = Limits(ports=LIMITS.ports, node_bytes_day=1000, pair_bytes_day=100_000)
    allocations = made(limits)
    found = allocations.allocate(ANNA.id, BERT.id, NOW)
    other = allocations.allocate(ANNA.id, CARL.id, NOW)
    sent = [0, 0]
    sent[found.side(BERT.id)] = 1000
    allocations.count(found.id, (sent[0], sent[1]), NOW)
    assert allocations.all() == [other]
    assert allocations.left_bytes(other, NOW) == 1000
    with pytest.raises(EnvironmentFault, match="has used up"):
        allocations.allocate(CARL.id, BERT.id, NOW)
    allocations.allocate(CARL.id, BERT.id, NOW + DAY_S)


def test_a_spent_pair_may_not_come_back_by_allocating_anew() -> None:
    limits = Limits(ports=LIMITS.ports, pair_bytes_day=1000)
    allocations = made(limits)
    for size in (600, 400):
        found = allocations.allocate(ANNA.id, BERT.id, NOW)
        assert allocations.left_bytes(found, NOW) == size if size == 400 else 1000
        allocations.count(found.id, (size, 0), NOW)
        if allocations.get(found.id):
            allocations.release(ANNA.id, found.id)
    assert allocations.sent_bytes == 1000, "with what pairs sent that are gone"
    with pytest.raises(EnvironmentFault, match="this pair has used up"):
        allocations.allocate(BERT.id, ANNA.id, NOW)
    allocations.allocate(ANNA.id, CARL.id, NOW)


def test_a_port_of_another_program_rests() -> None:
    allocations = made(Limits(ports=range(20000, 20003)))
    found = allocations.allocate(ANNA.id, BERT.id, NOW)
    allocations.unusable(found, found.pair.ports[0], NOW)
    again = allocations.allocate(ANNA.id, BERT.id, NOW)
    assert found.pair.ports[0] not in again.pair.ports
    allocations.release(ANNA.id, again.id)
    allocations.expire(NOW + UNUSABLE_S)
    ports: set[int] = set()
    for _ in range(3):
        each = allocations.allocate(ANNA.id, BERT.id, NOW + UNUSABLE_S)
        ports |= set(each.pair.ports)
        allocations.release(ANNA.id, each.id)
    assert ports == {20000, 20001, 20002}


def test_ports_come_back_into_use_last() -> None:
    allocations = made()
    found = allocations.allocate(ANNA.id, BERT.id, NOW)
    allocations.release(ANNA.id, found.id)
    again = allocations.allocate(ANNA.id, BERT.id, NOW)
    assert not set(found.pair.ports) & set(again.pair.ports)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ports": range(20000, 20001)},
        {"ports": range(65530, 65540)},
        {"ports": range(10)},
        {"lifetime_s": 0},
        {"rate_bytes_s": 0},
        {"pairs_per_node": -1},
    ],
)
def test_limits_that_serve_nobody(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Limits(**wrong)  # type: ignore[arg-type]


class AnyOrder(RuleBasedStateMachine):
    """Members, strangers and time, in any order; what must hold after each step is below."""

    @initialize()
    def begin(self) -> None:
        self.now = NOW
        self.limits = Limits(
            ports=range(20000, 20009), pairs_per_node=3, pair_bytes_day=1000, node_bytes_day=2500
        )
        self.members = set(NODES)
        self.allocations = made(self.limits, NODES)
        self.live: dict[bytes, Allocation] = {}
        self.used: dict[tuple[int, frozenset[NodeId]], int] = {}

    node = st.sampled_from([*NODES, key_of("stranger").id])
    size = st.integers(0, 600)

    def follow(self) -> None:
        for removed in self.allocations.take_removed():
            assert self.live.pop(removed.allocation.id) is removed.allocation
            assert removed.reason

    @rule(asker=node, peer=node)
    def allocate(self, asker: NodeId, peer: NodeId) -> None:
        held = sum(asker in each.askers for each in self.allocations.all())
        try:
            found = self.allocations.allocate(asker, peer, self.now)
        except (UsageError, MembershipError):
            assert asker == peer or not {asker, peer} <= self.members
        except EnvironmentFault as fault:
            self.follow()
            if "in use" in fault.message:
                # Nobody else holds so much more that it would be unfair.
                most = max(sum(n in a.askers for a in self.allocations.all()) for n in self.members)
                assert most < held + 2
        else:
            self.follow()
            assert {asker, peer} == set(found.nodes) <= self.members
            assert found.expires_at == self.now + self.limits.lifetime_s
            assert self.live.setdefault(found.id, found) is found

    @rule(asker=node, number=st.integers(0, 3), renew=st.booleans())
    def refresh_or_release(self, asker: NodeId, number: int, renew: bool) -> None:
        found = next(iter(list(self.live.values())[number:]), None)
        if found is None:
            return
        try:
            if renew:
                self.allocations.refresh(asker, found.id, self.now)
            else:
                self.allocations.release(asker, found.id)
        except UsageError:
            assert asker not in found.nodes or found.expires_at <= self.now
        except EnvironmentFault:
            assert self.used  # a spent quota
        else:
            assert asker in found.nodes
        self.follow()

    @rule(number=st.integers(0, 3), first=size, second=size)
    def send(self, number: int, first: int, second: int) -> None:
        found = next(iter(list(self.live.values())[number:]), None)
        if found is None:
            return
        self.allocations.count(found.id, (first, second), self.now)
        key = (int(self.now // DAY_S), frozenset(found.nodes))
        self.used[key] = self.used.get(key, 0) + first + second
        self.follow()

    @rule(seconds=st.sampled_from([1.0, 50.0, 119.0, 121.0, DAY_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.allocations.expire(self.now)
        self.follow()

    @rule(member=st.sampled_from(NODES))
    def come_or_go(self, member: NodeId) -> None:
        self.members ^= {member}
        self.allocations.set_members(self.members)
        self.follow()

    @rule(number=st.integers(0, 3), side=st.integers(0, 1))
    def lose_a_port(self, number: int, side: int) -> None:
        found = next(iter(list(self.live.values())[number:]), None)
        if found is not None:
            self.allocations.unusable(found, found.pair.ports[side], self.now)
            self.follow()

    @invariant()
    def holds(self) -> None:
        there = self.allocations.all()
        assert {each.id: each for each in there} == self.live
        ports = [port for each in there for port in each.pair.ports]
        assert len(ports) == len(set(ports))
        assert set(ports) <= set(self.limits.ports)
        assert len({each.nodes for each in there}) == len(there)
        for each in there:
            assert each.nodes[0] < each.nodes[1]
            assert set(each.nodes) <= self.members
            assert each.askers and each.askers <= set(each.nodes)
            assert each.expires_at > self.now
            key = (int(self.now // DAY_S), frozenset(each.nodes))
            assert self.used.get(key, 0) < self.limits.pair_bytes_day
        for node in NODES:
            assert sum(node in each.askers for each in there) <= self.limits.pairs_per_node


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_order = AnyOrder.TestCase
