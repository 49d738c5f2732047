"""The plan: what it keeps to, what it says, and what it refuses."""

import re
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import CoveyError, ModelError, PeerError, UsageError
from agent.placement.inputs import OVERHEAD, ROW_S, STAGE_S, Aims, Link, Links, Model, Node
from agent.placement.plan import plan
from agent.placement.results import Plan
from agent.placement.rings import plan_rings, ways

# pytest's importlib mode does not put a test's folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

import brute

MIB, GIB = 2**20, 2**30
HEAD = Node("h", "head", 10**12)
LAN = Link(0.0004, bytes_s=1.25e8)
DSL = Link(0.060, bytes_s=1.25e6)


def others(count: int, free: int = 10**12) -> list[Node]:
    return [Node(f"n{i}", f"node{i}", free) for i in range(count)]


def fast(node: str, gib: float, gb_s: float = 50.0, **more: object) -> Node:
    return Node(
        node, node, int(gib * GIB), decode_bytes_s=gb_s * 1e9, prefill_flop_s=gb_s * 2e10,
        **more,  # type: ignore[arg-type] # fields of Node
    )  # fmt: skip


def model(layers: int = 32, gib: float = 8.0, **more: object) -> Model:
    """A model of so many GiB in layers, and an eighth of that on the head."""
    layer = int(gib * GIB / layers)
    return Model(
        (layer,) * layers, int(gib * GIB / 8), output_bytes=int(gib * GIB / 16), row_bytes=16384,
        **more,  # type: ignore[arg-type] # fields of Model
    )  # fmt: skip


def everywhere(link: Link) -> Links:
    return Links(otherwise=link)


def links(nodes: list[Node], usual: Link, **special: Link) -> Links:
    measured = {(a.node, b.node): usual for a in nodes for b in nodes if a is not b}
    return Links(measured | {(pair[0], pair[1]): link for pair, link in special.items()})


def held(found: Plan, needs: Model, context: int = 0) -> dict[str, float]:
    result = {found.stages[0].node: float(needs.head_bytes)}
    for stage in found.stages:
        layers = sum(needs.layer_bytes[stage.first : stage.last])
        cache = (stage.last - stage.first) * needs.kv_bytes * context
        result[stage.node] = result.get(stage.node, 0) + layers + cache
    return result


# ------------------------------------------------------------------ what every plan keeps to


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_plan_covers_the_model_and_keeps_to_memory_cuts_and_wishes(seed: int) -> None:
    case = brute.random_case(np.random.default_rng(seed))
    needs, aims = case.model, case.aims
    try:
        found = plan(needs, case.nodes, aims, case.links)
    except CoveyError as error:
        assert error.message
        return
    stages, nodes = found.stages, {node.node: node for node in case.nodes}
    assert stages[0].first == 0
    assert stages[-1].last == len(needs.layer_bytes)
    assert all(before.last == after.first for before, after in pairwise(stages))
    assert all(stage.first < stage.last for stage in stages)
    assert stages[0].node == stages[-1].node
    assert len({stage.node for stage in stages}) == max(1, len(stages) - 1)
    for node, size in held(found, needs, aims.context).items():
        assert size * OVERHEAD + needs.buffer_bytes <= nodes[node].free_bytes
    assert [one.node for one in found.memory] == list(found.nodes)
    assert all(one.needed <= one.free + 1 for one in found.memory)
    if not found.whole:
        assert all(stage.first % needs.period == 0 for stage in stages)
        assert all(needs.allows(stage.first, stage.last) for stage in stages)
    least, most = aims.counts
    assert least <= len(found.nodes) <= (most or 99)
    assert aims.through <= set(found.nodes)
    assert aims.head in ("", stages[0].node)
    assert nodes[stages[0].node].head_allowed
    assert not aims.head_tags or nodes[stages[0].node].tags & aims.head_tags
    assert not any(nodes[node].tags & aims.never for node in found.nodes)
    assert found.token_s > 0
    assert found.tokens_s > 0
    assert found.first_s > 0
    named = " ".join(found.reasons)
    assert all(node.name in named for node in case.nodes)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_it_is_never_slower_than_one_node_nor_with_a_node_more(seed: int) -> None:
    case = brute.random_case(np.random.default_rng(seed))
    aims = Aims("latency", context=case.aims.context)
    without_rule = replace(case.model, allows=lambda _start, _stop: True)

    def token_s(nodes: list[Node], wish: Aims) -> float:
        try:
            return plan(without_rule, nodes, wish, case.links).token_s
        except CoveyError:
            return float("inf")

    best = token_s(case.nodes, aims)
    assert best <= token_s(case.nodes, replace(aims, nodes=1)) * (1 + 1e-9)
    if len(case.nodes) > 1:
        assert best <= token_s(case.nodes[:-1], aims) * (1 + 1e-9)


@given(
    layers=st.lists(st.integers(1, 100), min_size=3, max_size=10),
    head_bytes=st.integers(0, 300),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_among_equal_nodes_the_split_is_as_even_as_it_can_be(
    layers: list[int], head_bytes: int, data: st.DataObject
) -> None:
    needs, count = Model(tuple(layers), head_bytes), data.draw(st.integers(2, len(layers) - 1))
    found = plan(needs, [HEAD, *others(count - 1)], Aims(nodes=count, head="h"))
    splits = [
        [sum(layers[a:b]) for a, b in pairwise((0, 1, *cuts, len(layers)))]
        for cuts in combinations(range(2, len(layers)), count - 1)
    ]
    best = min(max(first + last + head_bytes, *rest) for first, *rest, last in splits)
    assert max(held(found, needs).values()) == best


# ------------------------------------------------------------------ what is chosen


def test_one_node_that_fits_is_one_node_though_others_idle() -> None:
    needs, nodes = model(), [fast("a", 20), fast("b", 20), fast("c", 20)]
    found = plan(needs, nodes, Aims("auto", streams=1), everywhere(LAN))
    assert found.whole
    assert "it fits on one node, and no ring of several is better" in found.reasons[0]
    out = [reason for reason in found.reasons if "left out: with it a token takes" in reason]
    assert len(out) == 2


def test_a_split_that_is_faster_than_one_slow_node_is_taken() -> None:
    nodes = [fast("slow", 20, 5.0), fast("quick", 8, 200.0, head_allowed=False)]
    found = plan(model(), nodes, Aims("latency"), everywhere(LAN))
    assert found.nodes == ("slow", "quick")
    alone = next(one for one in found.alternatives if one.title == "one node")
    assert alone.names == ("slow",)
    assert found.token_s < alone.token_s
    assert re_found(found, r"2 nodes: a token takes [\d.]+ ms, and on slow alone [\d.]+ ms")
    far = plan(model(), nodes, Aims("latency"), everywhere(Link(5.0)))
    assert far.whole


def re_found(found: Plan, pattern: str) -> bool:
    return any(re.search(pattern, reason) for reason in found.reasons)


def test_frames_take_the_short_way_round() -> None:
    """Four nodes in two places: each place is entered once."""
    nodes = [fast(name, 3.2) for name in "abcd"]
    near = links(nodes, DSL, ab=LAN, ba=LAN, cd=LAN, dc=LAN)
    found = plan(model(), nodes, Aims("latency"), near)
    assert len(found.nodes) == 4
    ring = [*found.nodes, found.nodes[0]]
    assert sum({one, other} in ({"a", "b"}, {"c", "d"}) for one, other in pairwise(ring)) == 2


def test_a_link_on_which_nothing_passes_is_gone_round() -> None:
    nodes = [fast(name, 4.5, head_allowed=name == "a") for name in "abc"]
    cut_off = links(nodes, LAN, ab=Link(0.001, bytes_s=0), bc=Link(0.001, loss=1.0))
    found = plan(model(), nodes, Aims("latency"), cut_off)
    assert found.nodes == ("a", "c", "b")
    held = replace(nodes[0], held=frozenset(range(32)))
    fetched = plan(model(), [held, *nodes[1:]], Aims("latency", horizon_tokens=1e6), cut_off)
    assert fetched.nodes == ("a", "c", "b")


def test_throughput_takes_more_nodes_than_latency_where_rows_overlap() -> None:
    nodes = [fast("a", 20, 20.0), fast("b", 20, 20.0), fast("c", 20, 20.0)]
    latency = plan(model(), nodes, Aims("latency", streams=12), everywhere(LAN))
    throughput = plan(model(), nodes, Aims("throughput", streams=12), everywhere(LAN))
    auto = plan(model(), nodes, Aims("auto", streams=12), everywhere(LAN))
    assert latency.whole
    assert len(throughput.nodes) == 3
    assert throughput.tokens_s > 1.2 * latency.tokens_s
    assert throughput.token_s < 1.1 * latency.token_s
    assert auto.stages == throughput.stages
    far = [plan(model(), nodes, Aims(objective, streams=12), everywhere(DSL))
           for objective in ("auto", "latency")]  # fmt: skip
    assert far[0].stages == far[1].stages


def test_batches_take_what_was_measured_of_them() -> None:
    """On CPUs a few rows take longer than their arithmetic at the rate of long prompts."""
    steep = (4.0, 6.0, 6.0, 8.5)
    guessed, known = fast("a", 20), fast("a", 20, batches=steep)
    needs = model()
    for streams, reads in ((1, 1.0), (2, 4.0), (3, 5.0), (4, 6.0), (8, 6.0), (16, 8.5)):
        aims = Aims("throughput", streams=streams, kept=0)
        found = [plan(needs, [node], aims) for node in (guessed, known)]
        assert found[0].token_s == found[1].token_s
        round_s = streams / found[1].tokens_s
        weights = sum(needs.layer_bytes) + needs.output_bytes
        own_s = STAGE_S + streams * ROW_S
        frames = [reads * weights / 5e10 + own_s]  # at once, or each alone
        frames.append(streams * (weights / 5e10 + STAGE_S + ROW_S))
        assert round_s <= min(frames) * 1.001
        assert round_s >= 0.99 * weights / 5e10
    # Prompts have many rows; what the first 16 cost hardly matters there.
    assert found[1].first_s == pytest.approx(found[0].first_s, rel=0.2)


def test_a_heads_own_work_for_each_token_counts() -> None:
    tight = replace(fast("tight", 20), stage_s=STAGE_S / 0.4, row_s=ROW_S / 0.4)
    free = fast("free", 20)
    for streams in (1, 8):
        aims = Aims("throughput", streams=streams, kept=0)
        rounds = [streams / plan(model(), [node], aims).tokens_s for node in (tight, free)]
        assert rounds[0] - rounds[1] == pytest.approx((STAGE_S + streams * ROW_S) * (1 / 0.4 - 1))
    both = plan(model(), [tight, free], Aims("latency"), everywhere(LAN))
    assert both.nodes == ("free",)


def test_jitter_is_in_the_mean_already() -> None:
    quiet, lively = Link(0.040, bytes_s=1e6), Link(0.040, jitter_s=0.010, bytes_s=1e6)
    assert lively.hop_s(4096) == quiet.hop_s(4096) == pytest.approx(0.020 + 0.004096)


def test_a_node_that_slows_a_busy_ring_is_left_out_with_the_figures() -> None:
    nodes = [
        fast("a", 20),
        fast("b", 20),
        fast("snail", 20, 2.0),
        fast("c", 20, tags=frozenset("x")),
    ]
    aims = Aims("throughput", streams=8, never=frozenset("x"))
    found = plan(model(), nodes, aims, everywhere(LAN))
    assert set(found.nodes) == {"a", "b"}
    assert re_found(
        found,
        r"snail: left out: the best ring with it makes [\d.]+ tokens/s instead of [\d.]+, and",
    )
    titles = {one.title: one for one in found.alternatives}
    assert titles["one node"].tokens_s < found.tokens_s
    assert titles["least latency"].token_s < found.token_s
    many = plan(
        model(), [*nodes, *(fast(f"s{i}", 20, 2.0) for i in range(5))], aims, everywhere(LAN)
    )
    assert many.stages == found.stages
    assert re_found(many, r"s0: left out: the fastest ring with it makes [\d.]+ tokens/s instead")


def test_the_context_and_a_draft_take_memory() -> None:
    nodes = [fast("a", 11.5), fast("b", 11.5)]
    needs = model(kv_bytes=4096)
    assert plan(needs, nodes, Aims(context=0), everywhere(LAN)).whole
    assert len(plan(needs, nodes, Aims(context=16384), everywhere(LAN)).nodes) == 2
    drafted = replace(needs, head_bytes=needs.head_bytes + GIB)
    assert len(plan(drafted, nodes, Aims(context=0), everywhere(LAN)).nodes) == 2


def test_weights_that_lie_somewhere_stay_there_until_moving_pays() -> None:
    """Today's ring is a little slower than the best; what that saves must pay for gigabytes."""
    everything = frozenset(range(32))
    nodes = [
        fast("file", 7.0, held=everything),
        fast("has", 8.0, 50.0, held=everything, head_allowed=False),
        fast("new", 8.0, 55.0, head_allowed=False),
    ]
    usual = everywhere(Link(0.001, bytes_s=1.25e7))
    free = plan(model(), nodes, Aims("latency"), usual)
    assert "new" in free.nodes
    kept = plan(model(), nodes, Aims("latency", horizon_tokens=1e4), usual)
    assert kept.nodes == ("file", "has")
    assert kept.moved == 0
    patient = plan(model(), nodes, Aims("latency", horizon_tokens=1e7), usual)
    assert patient.stages == free.stages
    assert patient.token_s == pytest.approx(free.token_s)
    assert patient.moved > GIB
    assert any("weights are fetched" in reason for reason in patient.reasons)


def test_tags_and_names_say_who_may_take_part() -> None:
    nodes = [
        fast("a", 8, tags=frozenset({"office"})), fast("b", 8, tags=frozenset({"office", "ssd"})),
        fast("c", 8, 500.0, tags=frozenset({"home"})), fast("d", 8, 500.0),
    ]  # fmt: skip
    usual = everywhere(LAN)
    found = plan(model(), nodes, Aims(only=frozenset({"office"})), usual)
    assert set(found.nodes) == {"a", "b"}
    assert "c: left out: it has no tag of office" in found.reasons
    found = plan(model(), nodes, Aims(never=frozenset({"home"}), without=frozenset("d")), usual)
    assert set(found.nodes) == {"a", "b"}
    assert "c: left out: it has the tag home" in found.reasons
    assert "d: left out: it was excluded" in found.reasons
    found = plan(model(), nodes, Aims(head_tags=frozenset({"ssd"})), usual)
    assert found.nodes[0] == "b"
    found = plan(model(), nodes, Aims(through=frozenset("ab")), usual)
    assert {"a", "b"} <= set(found.nodes)
    assert "2 of them were asked for by name" in found.reasons[0]
    assert plan(model(), nodes, Aims(head="a"), usual).nodes[0] == "a"


def test_a_node_without_room_is_told_what_its_least_share_needs() -> None:
    nodes = [fast("a", 6), fast("b", 8), Node("tiny", "tiny", 100 * MIB)]
    found = plan(model(), nodes, Aims("latency"), everywhere(LAN))
    assert "tiny: left out: 100.0 MiB free, its least share needs 0.3 GiB" in found.reasons


def test_what_is_not_measured_is_said_where_something_is() -> None:
    nodes = [fast("a", 8), Node("b", "b", 8 * GIB, head_allowed=False)]
    found = plan(model(), nodes, Aims("latency"), Links({("a", "b"): LAN}))
    assert "unmeasured, taken as 8 GB/s: b" in found.reasons
    assert not any("Mbit/s" in reason for reason in found.reasons), "one way is as the other"
    found = plan(model(), nodes, Aims("latency"))
    assert "unmeasured, taken as 40 ms and 20 Mbit/s: a → b, b → a" in found.reasons
    nothing = plan(model(), [replace(node, decode_bytes_s=None) for node in nodes], Aims())
    assert nothing.reasons[0].endswith("split by bytes, speeds and links are not known")
    assert not any(reason.startswith("predicted") for reason in nothing.reasons)


def test_a_prompt_goes_round_in_chunks() -> None:
    nodes = [fast("a", 8), fast("b", 8)]
    short, long = (
        plan(model(), nodes, Aims("latency", prompt=prompt), everywhere(LAN))
        for prompt in (512, 5120)
    )
    assert short.first_s < long.first_s < 10 * short.first_s, "two nodes work at the same time"
    one = plan(model(), [fast("a", 20)], Aims("latency", prompt=512), everywhere(LAN))
    ten = plan(model(), [fast("a", 20)], Aims("latency", prompt=5120), everywhere(LAN))
    assert ten.first_s == pytest.approx(10 * one.first_s, rel=0.01)


# ------------------------------------------------------------------ number of nodes


def test_the_fewest_nodes_on_which_it_fits_where_nothing_is_known() -> None:
    sizes = Model((100,) * 12, 100)
    found = plan(sizes, [Node("h", "head", 650), *others(5, 650)], Aims(head="h"))
    assert len(found.nodes) == 3
    assert "3 nodes: it needs 3 nodes' memory" in found.reasons[0]
    assert all(one.needed <= 650 for one in found.memory)


def test_a_number_of_nodes_is_kept_exactly_or_within_bounds() -> None:
    nodes, usual = [fast(name, 20) for name in "abcde"], everywhere(LAN)
    for count in range(1, 6):
        assert len(plan(model(), nodes, Aims(nodes=count), usual).nodes) == count
    assert len(plan(model(), nodes, Aims("latency", least=3), usual).nodes) == 3
    small = [fast(name, 3.0) for name in "abcdefg"]
    free = plan(model(), small, Aims("latency"), usual)
    assert len(free.nodes) > 3
    with pytest.raises(ModelError, match="no ring of at most 3 nodes can share it out") as caught:
        plan(model(), small, Aims("latency", most=3), usual)
    assert caught.value.hint == "It fits on more than 3 nodes."


def test_where_a_number_of_nodes_allows_no_split_more_nodes_are_tried() -> None:
    """Four nodes would need a part of four layers, which is barred here; five do not."""
    sizes = Model((100,) * 12, 0, 2, lambda start, stop: stop - start != 4)
    found = plan(sizes, [Node("h", "head", 520), *others(5, 520)], Aims(head="h"))
    assert len(found.nodes) == 5
    assert all(stage.last - stage.first == 2 for stage in found.stages)
    with pytest.raises(UsageError, match="12 layers in rounds of 2 can be cut over at most 5"):
        plan(sizes, [HEAD, *others(5)], Aims(nodes=6))


def test_the_first_part_is_as_long_as_the_cut_rule_wants() -> None:
    sizes = Model((100,) * 12, 0, 1, lambda start, stop: stop - start > 2)
    found = plan(sizes, [HEAD, *others(1)], Aims(nodes=2, head="h"))
    assert found.stages[0].last == 3
    one = Model((100,), 10)
    assert plan(one, [HEAD, *others(1)], Aims()).whole
    with pytest.raises(UsageError, match="a model of 1 layers can be cut over at most 1 nodes"):
        plan(one, [HEAD, *others(1)], Aims(nodes=2))
    barred = Model((100,) * 12, 0, 2, lambda start, stop: stop - start == 2)
    assert len(plan(barred, [HEAD, *others(5)], Aims(nodes=5)).nodes) == 5
    with pytest.raises(UsageError, match="12 layers in rounds of 2 cannot be cut over 3 nodes"):
        plan(barred, [HEAD, *others(5)], Aims(nodes=3))
    with pytest.raises(ModelError, match="needs about"):
        plan(replace(barred, layer_bytes=(GIB,) * 12), [Node("h", "head", GIB)] * 2, Aims())


# ------------------------------------------------------------------ what is refused


def test_impossible_wishes_are_refused_with_the_numbers() -> None:
    sizes = Model((100,) * 4, 50)
    with pytest.raises(PeerError, match="3 nodes was asked for, and 2 can be reached"):
        plan(sizes, [HEAD, *others(1)], Aims(nodes=3))
    with pytest.raises(UsageError, match="at most 3 nodes"):
        plan(sizes, [HEAD, *others(9)], Aims(nodes=4))
    for aims, said in (
        (Aims(nodes=0), "a ring of 0 nodes is impossible"),
        (Aims(least=3, most=2), "at least 3 and at most 2"),
        (Aims(streams=0), "0 streams"),
        (Aims(horizon_tokens=0), "more than 0 tokens"),
        (Aims(without=frozenset({"h"}), through=frozenset({"h"})), "head shall be in the ring, an"),
        (
            Aims(head_tags=frozenset({"gpu"})),
            "no node may be the ring's head: it needs a tag of gpu",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            plan(sizes, [HEAD], aims)
    with pytest.raises(PeerError, match="node …gone shall be in the ring and cannot be reached"):
        plan(sizes, [HEAD], Aims(head="gone"))
    with pytest.raises(PeerError, match="no node that may take part"):
        plan(sizes, [HEAD], Aims(only=frozenset({"gpu"})))


def test_a_model_that_does_not_fit_says_what_is_missing_and_what_would_help() -> None:
    big = Model((GIB,) * 4, 0)
    with pytest.raises(
        ModelError, match=r"needs about 5120 MiB .* have 3 MiB free, the large"
    ) as no:
        plan(big, [Node("h", "head", MIB), *others(2, MIB)], Aims())
    assert no.value.hint == "Add nodes or take a smaller quantisation."
    heavy = Model((GIB,) * 4, 4 * GIB)
    with pytest.raises(ModelError, match="head as head needs at least 6400 MiB and has 2048 MiB"):
        plan(heavy, [Node("h", "head", 2 * GIB), *others(2, 9 * GIB)], Aims(head="h"))
    cached = Model((GIB,) * 4, 0, kv_bytes=MIB)
    nodes = [Node("h", "head", 5 * GIB), *others(1, 5 * GIB)]
    with pytest.raises(ModelError, match="needs about") as caught:
        plan(cached, nodes, Aims(context=2048))
    assert "With half the context it would fit: 2048 tokens take 10240 MiB" in caught.value.hint
    with pytest.raises(ModelError, match="needs about") as caught:
        plan(big, [Node("h", "head", 6 * GIB), *others(2, GIB)], Aims(nodes=3))
    assert caught.value.hint == "It fits on another number of nodes; ask for none in particular."


def test_a_model_that_cannot_be_cut_runs_on_the_head_or_the_reason_is_told() -> None:
    sizes = Model((MIB,) * 4, 0, uncut="m.gguf is for embeddings")
    for count in (None, 1):
        found = plan(sizes, [HEAD, *others(3)], Aims(nodes=count, head="h"))
        assert found.nodes == ("h",)
        assert "it runs on one node, since m.gguf is for embeddings" in found.reasons[0]
    with pytest.raises(UsageError, match=r"runs on one node, not on 2: m\.gguf is for embeddings"):
        plan(sizes, [HEAD, *others(3)], Aims(nodes=2, head="h"))
    small = Node("h", "attic", MIB)
    with pytest.raises(ModelError, match="5 MiB of memory, and attic has 1 MiB free; it runs on"):
        plan(sizes, [small, *others(3)], Aims(head="h"))


# ------------------------------------------------------------------ many nodes, many rings


def test_sixty_four_nodes_have_an_answer_with_a_bound() -> None:
    rng = np.random.default_rng(1)
    nodes = [fast(f"n{i}", float(rng.uniform(1, 4)), float(rng.uniform(5, 200))) for i in range(64)]
    between = Links({
        (one.node, other.node): Link(brute.log_uniform(rng, 2e-4, 0.08), bytes_s=1e8)
        for one in nodes for other in nodes if one is not other
    })  # fmt: skip
    found = plan(model(80), nodes, Aims("latency", head="n0"), between)
    assert 3 <= len(found.nodes) < 12
    assert found.gap < 0.1
    assert re_found(found, r"within \d+\.\d % of the best")
    assert found.reasons[-1] == (
        f"{64 - len(found.nodes)} nodes left out: no better ring with them was found"
    )


def test_rings_share_nodes_and_streams() -> None:
    nodes = [fast("a", 20), fast("b", 20), fast("c", 6), fast("d", 8)]
    found = plan_rings(
        model(), nodes, Aims("throughput", context=4096, streams=9), 3, everywhere(LAN)
    )
    assert sorted(node for ring in found for node in ring.nodes) == ["a", "b", "c", "d"]
    assert sorted(len(ring.nodes) for ring in found) == [1, 1, 2]
    one = plan(model(), nodes, Aims("throughput", context=4096, streams=9), everywhere(DSL))
    free = plan_rings(
        model(), nodes, Aims("throughput", context=4096, streams=9), None, everywhere(DSL)
    )
    assert len(free) > 1
    assert sum(ring.tokens_s for ring in free) > one.tokens_s
    # Those that have to be heads are, and nobody else takes them before.
    named = plan_rings(
        model(), nodes, Aims("throughput", context=4096, streams=9), 2, everywhere(LAN), ["c", "a"]
    )
    assert [ring.nodes[0] for ring in named] == ["c", "a"]
    best, *others = ways(
        model(), nodes, Aims("throughput", context=4096, streams=9), everywhere(DSL)
    )
    assert [ring.nodes for ring in best] == [ring.nodes for ring in free]
    assert all(
        sum(ring.tokens_s for ring in way) <= sum(ring.tokens_s for ring in best) for way in others
    )
    assert {len(way) for way in others} <= {1, len(best) - 1, len(best) + 1}
    given = ways(model(), nodes, Aims("throughput", context=4096), everywhere(DSL), 3)
    assert [len(way) for way in given] == [3, 1, 2], "four do not fit"
    with pytest.raises(UsageError, match="4 nodes cannot make 5 rings"):
        plan_rings(model(), nodes, Aims(), 5)
    with pytest.raises(CoveyError):
        plan_rings(model(), nodes, Aims(), 4, everywhere(LAN))


def test_attention_to_a_long_text_is_arithmetic_where_that_is_slower() -> None:
    needs = model(kv_bytes=4096, attended=8192)
    reading = fast("reads", 64.0)
    attending = replace(fast("attends", 64.0), attended_s=1e9)
    long, short = Aims("latency", kept=4096), Aims("latency", kept=0)
    for node, wanted_s in ((reading, 4096 / reading.decode_bytes_s), (attending, 8192 / 1e9)):
        more = (
            plan(needs, [node], long, Links()).token_s - plan(needs, [node], short, Links()).token_s
        )
        assert more == pytest.approx(4096 * len(needs.layer_bytes) * wanted_s)
