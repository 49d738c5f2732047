"""Stories on virtual time: two owners never act on one ring, and one owner is there soon after."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import Sim, Weather, calm, node_id, troubled

from agent.ownership import duty
from agent.ownership.lease import LeaseBook
from agent.ownership.messages import Report
from agent.ownership.owner import Phase, Want

pytestmark = pytest.mark.slow

FIVE = 5


def running(count: int = FIVE, seed: int = 1, **want: object) -> Sim:
    """Return a mesh in which the deployment `m` runs."""
    sim = Sim(count, [Want("m", **want)], seed)  # type: ignore[arg-type] # the fields of Want
    sim.settle(lambda: is_ready(sim), 10)
    sim.run(3)
    return sim


def is_ready(sim: Sim, name: str = "m") -> bool:
    held = sim.owned(sim.first(name)).get(name, ())
    return (
        sim.owners(name) == [sim.first(name)] and len(held) == 1
        and held[0].report.phase == Phase.READY and sim.heads(name) == [held[0].head]
    )  # fmt: skip


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_whatever_happens_nobody_shares_a_lease_and_calm_returns(first: int) -> None:
    for seed in range(first, first + 10):
        calm(troubled(seed))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(
    seed=st.integers(0, 2**32), count=st.integers(2, 5), loss=st.floats(0, 0.5),
    delay=st.floats(0.001, 2.0), drift=st.floats(0, 0.04),
    steps=st.lists(
        st.tuples(st.sampled_from("crash start split heal oneway hint drain undrain".split()),
                  st.integers(0, 4), st.integers(0, 4), st.floats(0, 3)), max_size=8,
    ),
)  # fmt: skip
def test_no_story_that_hypothesis_finds_breaks_it(
    seed: int, count: int, loss: float, delay: float, drift: float,
    steps: list[tuple[str, int, int, float]],
) -> None:  # fmt: skip
    sim = Sim(count, [Want("m")], seed, Weather(loss, 0.2, (0.0, delay)), drift)
    sim.run(4)
    for step, a, b, seconds in steps:
        one, other = node_id(a % count), node_id(b % count)
        if step == "crash" and len(sim.alive()) > 1:
            sim.crash(one, 0.5)
        elif step == "start":
            sim.start_dead()
        elif step == "split":
            sim.split({one})
        elif step == "heal":
            sim.heal()
        elif step == "oneway" and one != other:
            sim.block(one, other, both=False)
        elif step == "hint" and one != other:
            sim.hint(one, other)
        elif step in ("drain", "undrain"):
            sim.drain(one, on=step == "drain")
        sim.run(seconds)
    sim.heal()
    sim.weather = Weather()
    sim.run(12)
    calm(sim)


@pytest.mark.parametrize("break_it", ["clock", "book", "fence"])
def test_the_stories_would_find_a_broken_rule(
    break_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rule is needed: without it, some story fails."""
    if break_it == "clock":
        monkeypatch.setattr(duty, "OWN_LEASE_S", 4.0)
    elif break_it == "book":
        claim = LeaseBook.claim

        def forgets(book: LeaseBook, name: str, *rest: object) -> object:
            book._leases.pop(name, None)
            return claim(book, name, *rest)  # type: ignore[arg-type] # as it was called

        monkeypatch.setattr(LeaseBook, "claim", forgets)
    else:
        monkeypatch.setattr("simulation.Fence.admit", lambda *_: True)
    with pytest.raises(AssertionError):
        for seed in range(60):
            calm(troubled(seed))


@pytest.mark.parametrize("hinted", [0.0, 1.0])
@pytest.mark.parametrize("head_dies_too", [True, False])
def test_a_new_owner_has_the_lease_within_two_seconds(hinted: float, head_dies_too: bool) -> None:
    for seed in range(6):
        sim = Sim(FIVE, [Want("m")], seed)
        first = sim.first("m")
        head = first if head_dies_too else next(n for n in sim.nodes if n != first)
        sim.wants = {"m": Want("m", prefer=head)}
        sim.settle(lambda: is_ready(sim), 10)  # noqa: B023 - used at once
        sim.run(2 + sim.rng.random())
        sim.crash(first, hinted)
        sim.settle(lambda: sim.owners("m") == [sim.first("m")], 2.0)  # noqa: B023 - the same


def test_a_ring_goes_on_under_the_new_owner_without_a_build() -> None:
    sim = running(prefer=node_id(3))
    first, (head,) = sim.first("m"), sim.heads("m")
    assert first != head
    before = sim.nodes[head].running["m"]
    sim.crash(first)
    sim.settle(lambda: is_ready(sim), 4)
    assert sim.nodes[head].running["m"] == before
    sim.start(first)
    sim.settle(lambda: sim.owners("m") == [first], 6)
    assert sim.nodes[head].running["m"] == before


def test_a_lost_head_is_replaced_and_does_not_come_back_as_a_second_one() -> None:
    sim = running(prefer=node_id(3))
    sim.crash(node_id(3))
    sim.settle(lambda: is_ready(sim), 8)
    (head,) = sim.heads("m")
    assert head == sim.first("m")
    sim.start(node_id(3))
    sim.run(6)
    assert sim.heads("m") == [head]


@pytest.mark.parametrize("owns_too", [True, False])
def test_a_head_that_drains_goes_on_until_another_one_answers(owns_too: bool) -> None:
    sim = running(prefer=node_id(3))
    (head,) = sim.heads("m")
    if owns_too:
        sim = running(prefer=sim.first("m"))
        (head,) = sim.heads("m")
    sim.drain(head)
    answers = []
    for _ in range(400):
        sim.run(0.02)
        answers.append(
            any(
                n.running.get("m", Report()).phase == Phase.READY
                for n in sim.nodes.values()
                if n.core is not None
            )
        )
    assert all(answers), "one of them answers at any time"
    calm(sim)
    assert sim.first("m") != head
    (moved,) = sim.heads("m")
    assert moved != head
    sim.drain(head, on=False)
    sim.run(6)
    calm(sim)
    assert sim.heads("m") == [moved], "what runs is not moved back"


def test_the_old_head_goes_on_while_the_new_one_does_not_come_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sim = running(prefer=node_id(3))
    monkeypatch.setattr(Sim, "_built", lambda *_: None)
    sim.drain(node_id(3))
    sim.run(10)
    assert sim.nodes[node_id(3)].running["m"].phase == Phase.READY
    assert len(sim.heads("m")) == 2
    owner = sim.first("m")
    held = {holding.head: holding for holding in sim.owned(owner)["m"]}
    assert not held[node_id(3)].main
    sim.drain(node_id(3), on=False)
    sim.run(6)
    assert sim.heads("m") == [node_id(3)]


def test_a_file_of_a_draining_node_stays_and_is_not_started_there() -> None:
    sim = running(only=node_id(3))
    sim.drain(node_id(3))
    sim.run(6)
    assert sim.heads("m") == [node_id(3)]
    sim.crash(node_id(3), 1.0)
    sim.run(6)
    sim.start(node_id(3))
    sim.nodes[node_id(3)].draining = {node_id(3)}
    sim.run(6)
    assert sim.heads("m") == []
    sim.drain(node_id(3), on=False)
    sim.settle(lambda: is_ready(sim), 10)


def test_where_all_drain_somebody_owns_still() -> None:
    sim = running()
    for node in sim.nodes:
        sim.drain(node)
    sim.run(8)
    assert sim.owners("m") == [sim.first("m")]
    assert len(sim.heads("m")) == 1


@pytest.mark.parametrize("with_head", [True, False])
def test_a_split_has_one_ring_on_each_side_and_a_healed_one_has_one(with_head: bool) -> None:
    sim = running(prefer=node_id(3))
    first, (head,) = sim.first("m"), sim.heads("m")
    sim.split({first, head} if with_head else {first})
    sim.run(10)
    assert len(sim.heads("m")) == 2
    assert len(sim.owners("m")) == 2
    sim.heal()
    sim.run(8)
    calm(sim)
    assert sim.first("m") == first


def test_a_silent_head_is_not_replaced_at_once() -> None:
    """Its beats are lost for two seconds, and its ring goes on: nothing is built."""
    sim = running(prefer=node_id(3))
    first = sim.first("m")
    sim.block(node_id(3), first, both=False)
    sim.run(2.5)
    assert sim.heads("m") == [node_id(3)]
    sim.heal()
    sim.run(3)
    assert sim.heads("m") == [node_id(3)]
    calm(sim)


def test_only_the_node_with_the_file_may_be_the_head() -> None:
    sim = running(only=node_id(2))
    assert sim.heads("m") == [node_id(2)]
    sim.crash(node_id(2))
    sim.run(8)
    assert sim.heads("m") == []
    assert sim.owners("m") == []
    sim.start(node_id(2))
    sim.settle(lambda: is_ready(sim), 8)


def test_a_lost_head_is_followed_by_the_next_that_may_be_it() -> None:
    order = node_id(3), node_id(1)
    sim = running(heads=order)
    assert sim.heads("m") == [node_id(3)]
    sim.crash(node_id(3), 1.0)
    sim.settle(lambda: sim.heads("m") == [node_id(1)] and is_ready(sim), 8)
    sim.crash(node_id(1), 1.0)
    sim.run(8)
    assert sim.heads("m") == [], "nobody else may be"
    sim.start(node_id(3))
    sim.settle(lambda: sim.heads("m") == [node_id(3)] and is_ready(sim), 8)


def test_nobody_is_head_before_it_is_known_who_may_be_and_what_runs_goes_on() -> None:
    sim = Sim(FIVE, [Want("m", heads=())], 1)
    sim.run(10)
    assert sim.heads("m") == []
    sim.wants = {"m": Want("m", heads=(node_id(2),))}
    sim.settle(lambda: sim.heads("m") == [node_id(2)] and is_ready(sim), 8)
    sim.wants = {"m": Want("m", heads=())}
    sim.run(8)
    assert sim.heads("m") == [node_id(2)]


def test_what_is_removed_ends_and_is_owned_no_more() -> None:
    sim = running()
    sim.wants = {"m": Want("m", removed=True)}
    sim.settle(lambda: not sim.heads("m") and not sim.owners("m"), 5)
    before = sim.sent
    sim.run(5)
    sent = sim.sent - before
    sim.run(20)
    assert sim.sent - before == sent, "it is quiet after that"


def test_nothing_is_sent_while_nothing_is_deployed() -> None:
    sim = Sim(FIVE, [], 1)
    sim.run(20)
    assert sim.sent == 0


def test_an_owner_at_rest_sends_a_few_small_datagrams_a_second() -> None:
    sim = running(prefer=node_id(3))
    before = sim.sent
    sim.run(10)
    # To the head and two deputies each 0.5 s, and the head's answers.
    assert (sim.sent - before) / 10 == pytest.approx(8, abs=0.5)


def test_a_mesh_of_one_owns_and_runs_its_own() -> None:
    sim = running(count=1)
    assert sim.heads("m") == [node_id(0)]
    assert sim.sent == 0


@pytest.mark.parametrize("action", ["crash", "split"])
def test_two_that_go_at_once_are_replaced_when_presence_has_seen_it(action: str) -> None:
    sim = running(prefer=node_id(4))
    order = sorted(sim.nodes, key=lambda node: sim_rank(sim, node))
    act: Callable[[], None] = {
        "crash": lambda: [sim.crash(node) for node in order[:2]] and None,
        "split": lambda: sim.split(set(order[:2])),
    }[action]
    act()
    sim.settle(lambda: order[2] in sim.owners("m"), 8)
    sim.heal()
    sim.start_dead()
    sim.run(12)
    calm(sim)


def sim_rank(sim: Sim, node: object) -> int:
    from agent.ownership import rendezvous

    return rendezvous.order("m", sim.nodes).index(node)  # type: ignore[arg-type] # a node id


def test_a_new_head_is_none_of_those_that_refuse_and_one_that_runs_stays() -> None:
    owner = Sim(FIVE, [Want("m")], 1).first("m")
    free = next(node_id(n) for n in range(FIVE) if node_id(n) != owner)
    others = frozenset(node_id(n) for n in range(FIVE)) - {free}
    sim = Sim(FIVE, [Want("m", prefer=owner, avoid=others)], 1)
    sim.settle(lambda: is_ready(sim), 10)
    assert sim.heads("m") == [free]
    # Where it runs it is not refused, and nobody who would refuse takes it over.
    sim.wants = {"m": Want("m", prefer=owner, avoid=others | {free})}
    sim.run(5)
    assert sim.heads("m") == [free]
    sim.crash(free)
    sim.run(8)
    assert sim.heads("m") == []
    assert sim.owners("m") == []
    back = next(iter(others - {owner}))
    sim.wants = {"m": Want("m", prefer=owner, avoid=others - {back})}
    sim.settle(lambda: is_ready(sim), 10)
    assert sim.heads("m") == [back]


def test_a_head_that_drains_leaves_for_one_that_does_not_refuse() -> None:
    sim = running(prefer=node_id(0))
    (head,) = sim.heads("m")
    first = sim.first("m")
    free = next(node_id(n) for n in range(FIVE) if node_id(n) not in (head, first))
    avoid = frozenset(node_id(n) for n in range(FIVE)) - {free, head}
    sim.wants = {"m": Want("m", prefer=head, avoid=avoid)}
    sim.drain(head)
    sim.settle(lambda: is_ready(sim) and sim.heads("m") == [free], 20)
