"""What models need: from files that can be cut, that cannot, and that make embeddings."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from agent.deploy.needs import (
    cuts_of,
    default_context,
    draft_bytes,
    model_needs,
    spread_of,
    with_draft,
)
from agent.engine.cuttable import CutRule
from agent.engine.gguf_file import GgufFile, ModelFacts
from agent.errors import ModelError, UsageError
from agent.models import bundled
from agent.placement.inputs import Aims, Model, Node
from agent.placement.plan import plan
from agent.placement.results import Plan

# The models of the engine's tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

import bert_models

HEAD = Node("h", "head", 2**30)
OTHERS = [Node(f"n{number}", f"node{number}", 2**30) for number in range(3)]


def planned(
    needs: Model, head: Node, others: list[Node], nodes: int | None, context: int = 0
) -> Plan:
    return plan(needs, [head, *others], Aims(context=context, nodes=nodes, head=head.node))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    bert = bert_models.tiny(ranks=False, context=4096)
    return bert.write(tmp_path / "encoder.gguf", gguf.PoolingType.MEAN)


def facts_of(path: Path) -> ModelFacts:
    with GgufFile(path) as file:
        return file.facts()


def test_a_model_for_text_may_be_cut_and_keeps_what_it_read() -> None:
    facts = facts_of(bundled.path())
    assert cuts_of(bundled.path()) == CutRule()
    assert default_context(facts) == facts.context
    sizes = model_needs(facts, 100, CutRule())
    assert sizes.layer_bytes == facts.layer_bytes
    assert sizes.kv_bytes == facts.kv_bytes_per_token
    assert sizes.row_bytes == 4 * facts.n_embd
    assert default_context(replace(facts, context=2**17)) == 8192


def test_a_draft_model_lies_whole_on_the_head_and_is_counted_there() -> None:
    facts = facts_of(bundled.path())
    with GgufFile(bundled.path()) as file:
        weights = sum(tensor.size for tensor in file.tensors)
    cache = facts.layers * 100 * facts.kv_bytes_per_token
    needed = draft_bytes(facts, 100)
    assert needed == weights + cache
    sizes = model_needs(facts, 100, CutRule())
    both = with_draft(sizes, needed // 2)
    assert both.head_bytes == sizes.head_bytes + needed // 2
    # A head that just holds the model does not hold a draft of half its size, too.
    head = replace(HEAD, free_bytes=int(1.5 * (sum(sizes.layer_bytes) + sizes.head_bytes)))
    assert planned(sizes, head, OTHERS, None).whole
    assert not planned(both, head, OTHERS, None).whole
    with pytest.raises(ModelError, match="the model needs about"):
        planned(both, head, [], None)


def test_a_model_for_embeddings_stays_on_its_node(encoder: Path) -> None:
    facts = facts_of(encoder)
    reason = cuts_of(encoder)
    assert reason == "encoder.gguf is for embeddings, and computes each text in one piece"
    assert default_context(facts) == 2048
    sizes = model_needs(facts, 2048, reason)
    assert sizes.layer_bytes == facts.layer_bytes, "it keeps nothing"
    weights = facts.embedding_bytes + facts.output_bytes + facts.shared_bytes
    assert sizes.head_bytes - weights == 4 * 2048 * (2048 + facts.n_vocab)
    # One that could make text computes what it never shows.
    causal = model_needs(replace(facts, architecture="qwen3"), 2048, reason)
    assert causal.head_bytes - sizes.head_bytes == 4 * 2048 * facts.n_vocab
    assert planned(sizes, HEAD, OTHERS, None).whole
    with pytest.raises(UsageError, match=r"runs on one node, not on 3: encoder\.gguf is for embed"):
        planned(sizes, HEAD, OTHERS, 3)


def test_the_reason_why_a_model_cannot_be_cut_is_that_of_the_cut(encoder: Path) -> None:
    path = encoder.with_name("other.gguf")
    writer = gguf.GGUFWriter(path, "plamo")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reason = cuts_of(path)
    assert reason.startswith("other.gguf cannot be cut: the architecture plamo")
    facts = replace(facts_of(encoder), purpose="text")
    sizes = model_needs(facts, 512, reason)
    with pytest.raises(
        ModelError, match="head has 0 MiB free; it runs on one node, since other"
    ) as caught:
        planned(sizes, replace(HEAD, free_bytes=0), OTHERS, None)
    assert "`--engine rpc` may spread it" in caught.value.hint
    # llama.cpp's RPC needs no proof of the cut: any layer may be where it goes on elsewhere.
    assert spread_of(path) == CutRule()
    spread = model_needs(facts, 512, spread_of(path), in_line=True)
    assert [stage.node for stage in planned(spread, HEAD, OTHERS, 2).stages] == ["h", "n0"]


def test_what_llama_cpps_rpc_does_not_spread(encoder: Path) -> None:
    facts, reason = facts_of(encoder), spread_of(encoder)
    assert reason == "encoder.gguf is for embeddings, and computes each text in one piece"
    with pytest.raises(UsageError, match="runs on one node, not on 2") as caught:
        planned(model_needs(facts, 512, reason, in_line=True), HEAD, OTHERS, 2)
    assert "rpc" not in caught.value.hint
