"""What of the catalogue fits: on one node, on several, over RPC, or what is missing."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.deploy import offers
from agent.deploy.messages import Answer, Facts, Request, StageState
from agent.deploy.needs import cuts_of, default_context, model_needs, whole_bytes
from agent.deploy.offers import Fit, Offers, fit, sizes_of
from agent.engine.gguf_file import GgufFile
from agent.errors import PeerError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.models import bundled, catalogue
from agent.placement.inputs import Node

GIB = 2**30


def nodes(*gib: float) -> list[Node]:
    return [Node(f"n{n}", f"box{n}", int(size * GIB)) for n, size in enumerate(gib)]


def how(name: str, *gib: float, quantisation: int = 0) -> Fit:
    entry = catalogue.find(name)
    return fit(entry, entry.files[quantisation], nodes(*gib))


def test_a_model_goes_on_one_node_on_several_or_nowhere() -> None:
    assert how("qwen3-4b", 2, 8).said == "fits one node (box1)"
    three = how("llama-3.1-8b", 3, 3, 3)
    assert three.said == f"3 nodes ({', '.join(three.nodes)})"
    assert sorted(three.nodes) == ["box0", "box1", "box2"]
    assert how("llama-3.1-8b", 2, 2).said.startswith("needs 3.")
    assert re.fullmatch(r"5 nodes \((box\d, ){4}…\)", how("llama-3.3-70b", *7 * [11]).said)
    assert how("deepseek-v3.1", quantisation=1).said.startswith("needs 8")


def test_what_cannot_be_cut_is_spread_by_rpc_where_no_node_holds_it() -> None:
    assert how("gemma-3-27b", 64).said == "fits one node (box0)"
    spread = how("gemma-3-27b", 20, 20)
    assert (spread.engine, spread.said) == ("rpc", "2 nodes (box0, box1) with --engine rpc")
    assert how("gemma-3-27b", 4, 4).said.endswith(" GiB more with --engine rpc")


def test_needs_by_shape_are_those_of_the_file() -> None:
    entry = catalogue.find(bundled.NAME)
    with GgufFile(bundled.path()) as file:
        facts = file.facts()
    cuts = cuts_of(bundled.path())
    assert sizes_of(entry, entry.files[0], cuts) == model_needs(facts, default_context(facts), cuts)


@settings(max_examples=40, deadline=None)
@given(gib=st.lists(st.floats(0, 6), max_size=4))
def test_what_is_missing_would_do_on_one_more_node(gib: list[float]) -> None:
    """So the working space counted here is that of plans, too."""
    found = how("llama-3.2-3b", *gib)
    if found.nodes:
        assert set(found.nodes) <= {f"box{n}" for n in range(len(gib))}
    else:
        assert found.missing_bytes > 0
        assert how("llama-3.2-3b", *gib, sum(gib) + found.missing_bytes / GIB + 0.01).nodes


@given(spare=st.integers(-(2**20), 2**20))
def test_one_node_holds_what_plans_say_it_holds(spare: int) -> None:
    entry = catalogue.find("qwen3-8b")
    sizes = sizes_of(entry, entry.files[0], "it is cut nowhere")
    needed = whole_bytes(sizes, offers.usual_context(entry, entry.files[0]))
    found = fit(entry, entry.files[0], [Node("n", "box", needed + 1 + spare)])
    # A byte less is a matter of rounding.
    assert bool(found.nodes) == (spare >= 0) or spare == -1


KEYS = [NodeKey(bytes([number]) * 32).id for number in range(1, 4)]


class FakeMesh:
    """Three workers: one tells, one is silent, one talks nonsense."""

    def live_workers(self, now: float) -> list[Any]:
        return [
            SimpleNamespace(node_id=key, certificate=SimpleNamespace(name=name))
            for key, name in zip(KEYS, ("desk", "away", "odd"), strict=True)
        ]


async def ask(node: NodeId, request: Request, timeout_s: float) -> Answer:
    if node == KEYS[1]:
        raise PeerError("it does not answer")
    if node == KEYS[2]:
        return StageState(phase="unknown")
    return Facts(free_bytes=8 * GIB, cores=4)


async def test_the_workers_that_answer_are_those_that_count() -> None:
    found = await Offers(FakeMesh(), ask).describe("Qwen3-4B")  # type: ignore[arg-type]
    assert found["workers"] == [{"node": str(KEYS[0]), "name": "desk", "free_bytes": 8 * GIB}]
    (model,) = found["models"]
    assert model["cuttable"] is True
    (file,) = model["files"]
    assert file["fit"] == "fits one node (desk)"
    assert file["nodes"] == ["desk"]
    assert file["source"].startswith("hf:Qwen/")
    assert file["exact"] is True

    async def drains(node: NodeId, request: Request, timeout_s: float) -> Answer:
        return Facts(free_bytes=8 * GIB, cores=4, draining=node != KEYS[1])

    found = await Offers(FakeMesh(), drains).describe("Qwen3-4B")  # type: ignore[arg-type]
    assert [worker["name"] for worker in found["workers"]] == ["away"]
    everything = await Offers(FakeMesh(), ask).describe()  # type: ignore[arg-type]
    assert len(everything["models"]) == len(catalogue.entries())
    with pytest.raises(UsageError, match="no model 'covey-maxi'"):
        await Offers(FakeMesh(), ask).describe("covey-maxi")  # type: ignore[arg-type]
