"""What another ring would gain, beside the one that runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import PeerError
from agent.placement.gain import Gain, compared, outline
from agent.placement.inputs import UNMEASURED, Aims, Link, Links, Model, Node
from agent.placement.moving import BACK_S, GAIN_LEAST, REST_S, SEEN_S, Moving
from agent.placement.plan import plan
from agent.placement.results import Stage

GIB = 2**30
LAN = Link(0.0004, bytes_s=1.25e8)
HORIZON = 50_000.0
MODEL = Model((GIB // 4,) * 32, GIB, output_bytes=GIB // 2, row_bytes=16384)


def node(name: str, gb_s: float | None, gib: float = 64.0) -> Node:
    speed = None if gb_s is None else gb_s * 1e9
    return Node(
        name, name, int(gib * GIB), decode_bytes_s=speed, prefill_flop_s=speed and 2 * speed
    )


def lan(*names: str, link: Link = LAN) -> Links:
    return Links({(a, b): link for a in names for b in names if a != b})


def aims(**changes: object) -> Aims:
    fields = {"objective": "latency", "head": "a", "nodes": 2, "horizon_tokens": HORIZON}
    return Aims(**fields | changes)  # type: ignore[arg-type] # fields of Aims


RING = (Stage("a", "a", 0, 1), Stage("b", "b", 1, 24), Stage("a", "a", 24, 32))
NODES = (node("a", 10), node("b", 10), node("c", 40))


def look(
    nodes: tuple[Node, ...] = NODES, wish: Aims | None = None, stages: tuple[Stage, ...] = RING,
    links: Links | None = None, model: Model = MODEL,
) -> Gain:  # fmt: skip
    return compared(model, nodes, wish or aims(), links or lan("a", "b", "c"), stages)


def test_a_faster_node_is_a_gain_and_its_weights_are_counted() -> None:
    found = look()
    assert found.plan.nodes == ("a", "c")
    assert found.guessed == ()
    assert found.share > GAIN_LEAST
    assert found.words == f"{100 * found.share:.0f} % fewer ms a token"
    lacking = sum(s.last - s.first for s in found.plan.stages[1:-1]) * GIB / 4
    assert found.fetch_s == pytest.approx(lacking / LAN.bytes_s)
    # The ring that runs is priced as its plan would be.
    there = plan(MODEL, NODES, aims(nodes=None, through=frozenset("b"), without=frozenset("c")),
                 lan("a", "b", "c"))  # fmt: skip
    best_with_b = look(stages=there.stages)
    assert best_with_b.saved_s == pytest.approx(there.token_s - best_with_b.plan.token_s)


def test_the_best_ring_gains_nothing_over_itself() -> None:
    best = look().plan
    again = look(stages=best.stages)
    assert again.plan.stages == best.stages
    assert again.share == pytest.approx(0)
    assert again.fetch_s == 0


def test_weights_that_cost_more_than_they_save_are_not_fetched() -> None:
    slow = lan("a", "b", "c", link=replace(LAN, bytes_s=1e5))
    assert look(links=slow).plan.nodes == ("a", "b")
    assert look(links=slow, wish=aims(horizon_tokens=1e9)).plan.nodes == ("a", "c")


def test_throughput_counts_all_streams() -> None:
    found = look(wish=aims(objective="throughput", streams=16))
    assert found.plan.nodes == ("a", "c")
    assert found.words.endswith("% more tokens/s")
    auto = look(wish=aims(objective="auto", streams=4))
    assert auto.share > GAIN_LEAST
    assert auto.plan.nodes == ("a", "c")


def test_a_ring_of_one_and_one_that_has_less_memory_free_by_now_are_priced() -> None:
    whole = (Stage("a", "a", 0, 32),)
    found = look(wish=aims(nodes=None), stages=whole)
    assert "c" in found.plan.nodes
    tight = (NODES[0], node("b", 10, gib=0.1), NODES[2])
    assert look(tight).share > GAIN_LEAST


def test_guesses_are_named() -> None:
    assert look((NODES[0], node("b", None), NODES[2])).guessed == ("b",)
    some = lan("a", "b", "c").measured | {("a", "c"): Link(0.001, bytes_s=UNMEASURED.bytes_s)}
    assert look(links=Links(some)).guessed == ("a → c",)


def test_a_node_of_the_ring_that_is_not_there_is_no_gain_but_a_fault() -> None:
    with pytest.raises(PeerError, match="b has stages of the ring"):
        look((NODES[0], NODES[2]))


def test_the_outline_changes_with_what_counts() -> None:
    same = outline(NODES, lan("a", "b"))
    assert outline(NODES, lan("a", "b")) == same
    nearly = (*NODES[:2], node("c", 40.1))
    assert outline(nearly, lan("a", "b")) == same
    assert outline((*NODES[:2], node("c", 30)), lan("a", "b")) != same
    assert outline(NODES[:2], lan("a", "b")) != same
    assert outline(NODES, lan("a", "b", link=replace(LAN, rtt_s=0.01))) != same


# ------------------------------------------------------------------ figures that waver

# Each figure is off by so much at most, either way.
WAVER = 0.1
SMALL = Model((GIB // 4,) * 6, GIB, output_bytes=GIB // 2, row_bytes=16384)
speeds = st.lists(st.sampled_from([4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 40.0]), min_size=3, max_size=4)
wavers = st.lists(
    st.lists(st.floats(1 - WAVER, 1 + WAVER), min_size=8, max_size=8), min_size=3, max_size=6
)


@settings(max_examples=20, deadline=None)
@given(truth=speeds, seen=wavers, objective=st.sampled_from(["latency", "auto"]))
def test_figures_that_waver_move_a_ring_a_few_times_and_never_back(
    truth: list[float], seen: list[list[float]], objective: str
) -> None:
    names = "abcd"[: len(truth)]
    wish = aims(objective=objective, nodes=None, streams=1 if objective == "latency" else 4)

    def figures(factors: list[float]) -> tuple[tuple[Node, ...], Links]:
        nodes = tuple(
            node(name, gb_s * factor)
            for name, gb_s, factor in zip(names, truth, factors, strict=False)
        )
        measured = {
            (a, b): replace(LAN, rtt_s=LAN.rtt_s * factors[4 + (i + j) % 4])
            for i, a in enumerate(names) for j, b in enumerate(names) if a != b
        }  # fmt: skip
        return nodes, Links(measured)

    moving, now = Moving(), 0.0
    stages = plan(SMALL, figures([1.0] * 8)[0][:2], wish, figures([1.0] * 8)[1]).stages
    been = [frozenset(stage.node for stage in stages)]
    for factors in seen:
        nodes, links = figures(factors)
        found = compared(SMALL, nodes, wish, links, stages)
        for _ in range(3):  # as often as it takes, whatever the rest
            now += BACK_S / 3
            if moving.judge(found, now, horizon_tokens=HORIZON).moves:
                left, stages = been[-1], found.plan.stages
                been.append(frozenset(stage.node for stage in stages))
                moving.moved(left, been[-1], now)
                break
    assert len(been) <= 4
    others = [one for one, after in pairwise(been) if one != after]
    assert been[-1] not in others


gains = st.lists(st.tuples(st.floats(-1, 0.99), st.floats(0, 600), st.integers(0, 3)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(gains)
def test_whatever_is_seen_moves_are_rare_and_ever_rarer(
    steps: list[tuple[float, float, int]],
) -> None:
    best = look()
    moving, now, moves = Moving(), 0.0, [float("-inf")]
    for share, seconds, where in steps:
        now += seconds
        to = replace(best.plan, stages=(Stage(f"n{where}", "n", 0, 32),))
        found = replace(best, share=share, plan=to, fetch_s=0.0, saved_s=0.1)
        if moving.judge(found, now, horizon_tokens=HORIZON).moves:
            assert share >= GAIN_LEAST
            moving.moved(frozenset({f"n{(where + 1) % 4}"}), frozenset({f"n{where}"}), now)
            assert now - moves[-1] >= REST_S * 2 ** (len(moves) - 2)
            moves.append(now)
    assert len(moves) <= 7


def test_a_gain_is_seen_for_a_while_before_it_moves_anything() -> None:
    moving, found = Moving(), look(links=lan("a", "b", "c", link=replace(LAN, bytes_s=1.25e9)))
    first = moving.judge(found, 100.0, horizon_tokens=HORIZON)
    assert not first.moves
    assert first.words == f"a better ring is known: {found.words}; it moves if that lasts"
    assert moving.waits
    assert moving.judge(found, 100.0 + SEEN_S, horizon_tokens=HORIZON).moves
    assert moving.judge(replace(found, share=0.1), 150.0, horizon_tokens=HORIZON).words.endswith(
        "that is not worth a move"
    )
    assert not moving.waits
    assert moving.judge(replace(found, share=0.01), 150.0, horizon_tokens=HORIZON).words == ""
    assert not moving.judge(found, 160.0, horizon_tokens=HORIZON).moves  # seen anew
    assert "take" in moving.judge(found, 300.0, horizon_tokens=10).words
    guess = replace(found, guessed=("b",))
    assert moving.judge(guess, 300.0, horizon_tokens=HORIZON).words.endswith("b not measured")


def test_nodes_that_were_left_are_come_back_to_for_much_alone() -> None:
    moving, found = Moving(), replace(look(), fetch_s=0.0, share=0.3)
    nodes = frozenset(found.plan.nodes)
    moving.moved(nodes, frozenset("ab"), 0.0)
    moving.judge(found, 1000.0, horizon_tokens=HORIZON)
    stays = moving.judge(found, 1100.0, horizon_tokens=HORIZON)
    assert not stays.moves
    assert stays.words.endswith("it was there before and left for a better one")
    assert moving.judge(replace(found, share=0.6), 1100.0, horizon_tokens=HORIZON).moves
    assert moving.judge(found, BACK_S, horizon_tokens=HORIZON).moves


def test_a_plan_that_is_begun_stays_unless_another_is_clearly_better() -> None:
    nodes = (node("a", 10), node("b", 10), node("c", 40), node("d", 40))
    links = lan("a", "b", "c", "d")
    for objective in ("latency", "throughput", "auto"):
        wish = aims(objective=objective, streams=4 if objective == "auto" else 1)
        begun = compared(MODEL, nodes[:3], wish, links, RING).plan
        assert begun.nodes == ("a", "c")
        # d is as good as c, and then a little better: what c fetches already counts more.
        for gb_s in (40.0, 41.0):
            both = (*nodes[:3], node("d", gb_s))
            assert compared(MODEL, both, wish, links, RING, begun).plan.stages == begun.stages
        better = (*nodes[:3], node("d", 400.0))
        assert compared(MODEL, better, wish, links, RING, begun).plan.nodes == ("a", "d")
        gone = (*nodes[:2], nodes[3])
        assert compared(MODEL, gone, wish, links, RING, begun).plan.nodes == ("a", "d")
