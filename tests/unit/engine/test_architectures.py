"""Each architecture that can be cut gives the bits of the whole model; what can't be is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_rings as rings
import llama_cpp
import numpy as np
import pytest
import tiny_architectures as tiny

from agent.deploy.needs import model_needs
from agent.engine import architectures, cut
from agent.engine.architectures import ARCHITECTURES
from agent.engine.cuttable import check_cuttable, check_range, cut_rule
from agent.engine.frames import Copy, Operation, Remove
from agent.engine.gguf_file import GgufFile
from agent.engine.pipeline import Pipeline
from agent.engine.turns import Batch
from agent.errors import EngineError, ModelError, UsageError
from agent.placement.inputs import Aims, Node
from agent.placement.plan import plan

pytestmark = pytest.mark.slow

PROMPT = rings.prompt(77)  # three chunks of at most 32, and longer than the windows
# Not what the model would say: with random weights that is soon the same token for ever.
FOLLOWING = rings.prompt(12, seed=2)

# Two parts and three, where the recipe is not of six layers that may be cut anywhere.
CUTS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "deepseek2": ((1,), (1, 4), (2, 3)),
    "deepseek2 lite": ((13,), (1,), (1, 26)),
    "gemma2": ((1,), (3,), (1, 3)),
    "gemma2 27B, both scales alike": ((23,), (1, 40)),
    "gemma3 without windows": ((5,), (3, 4)),
    "llama4": ((8,), (4, 8)),
    "olmo2": ((3,), (3, 4)),
    "llama4 with experts in each second layer": ((4,),),
}
CASES_OF = {name: CUTS.get(name, ((3,), (2, 4))) for name in tiny.RECIPES}
CASES = [(name, boundaries) for name, cases in CASES_OF.items() for boundaries in cases]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the model of a recipe by its name, made once."""
    folder = tmp_path_factory.mktemp("architectures")
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = tiny.write(folder / f"model-{len(made)}.gguf", tiny.RECIPES[name])
        return made[name]

    return write


@pytest.fixture(scope="module")
def expected(written: Callable[[str], Path]) -> Callable[[str], list[np.ndarray]]:
    """Return a function that gives the logits of the whole model, by llama-cpp-python's class."""
    found: dict[str, list[np.ndarray]] = {}

    def of(name: str) -> list[np.ndarray]:
        if name not in found:
            found[name] = _reference(written(name))
        return found[name]

    return of


def _reference(path: Path) -> list[np.ndarray]:
    model = llama_cpp.Llama(
        str(path), n_ctx=rings.N_CTX, n_batch=rings.N_BATCH, n_ubatch=rings.N_BATCH, n_threads=1,
        n_threads_batch=1, verbose=False, logits_all=False,
    )  # fmt: skip
    try:
        logits = []
        for tokens in (PROMPT, *((token,) for token in FOLLOWING)):
            model.eval(list(tokens))
            found = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            logits.append(np.array(found[: model.n_vocab()], np.float32))
        return logits
    finally:
        model.close()


def _answers(pipeline: Pipeline, position: int = 0) -> list[np.ndarray]:
    """Feed the prompt from this position and then token by token; return the logits after each."""
    chunks = [PROMPT[at : at + rings.N_BATCH] for at in range(0, len(PROMPT), rings.N_BATCH)]
    logits = []
    for tokens in (*chunks, *((token,) for token in FOLLOWING)):
        count = len(tokens)
        marks = np.zeros(count, np.int8)
        marks[-1] = 1
        positions = np.arange(position, position + count, dtype=np.int32)
        pipeline.submit(
            Batch((), np.array(tokens, np.int32), np.zeros(count, np.int32), positions, marks)
        )
        pipeline.collect()
        logits.append(pipeline.context.logits().copy())
        position += count
    return logits[len(chunks) - 1 :]


def _same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize(("name", "boundaries"), CASES)
def test_a_ring_gives_the_bits_of_the_whole_model(
    written: Callable[[str], Path], expected: Callable[[str], list[np.ndarray]], tmp_path: Path,
    name: str, boundaries: tuple[int, ...],
) -> None:  # fmt: skip
    assert all(np.isfinite(logits).all() and logits.std() > 0 for logits in expected(name))
    with rings.pipeline(written(name), tmp_path, boundaries) as ring:
        assert _same(_answers(ring), expected(name))


def _shared(pipeline: Pipeline) -> list[np.ndarray]:
    """Decode two sequences in the same batches, one from a copy of the other's beginning."""
    logits = []

    def feed(operations: Sequence[Operation], pairs: list[tuple[int, int]]) -> None:
        sequences, positions = np.array(pairs, np.int32).T
        tokens = np.array([PROMPT[position % 7 + sequence] for sequence, position in pairs])
        marks = np.ones(len(pairs), np.int8)
        pipeline.submit(Batch(tuple(operations), tokens, sequences, positions, marks))
        pipeline.collect()
        logits.extend(pipeline.context.logits(row).copy() for row in range(len(pairs)))

    feed((), [(0, position) for position in range(32)])
    turns = [pair for step in range(12) for pair in ((0, 32 + step), (1, 20 + step))]
    feed((Copy(0, 1, 0, 20),), turns)
    feed((Remove(0, 38),), [(1, 32), (0, 38), (1, 33)])
    return logits


@pytest.mark.parametrize("name", tiny.RECIPES)
def test_sequences_that_share_batches_and_prefixes_are_exact(
    written: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    with rings.pipeline(written(name), tmp_path, ()) as whole:
        wanted = _shared(whole)
    with rings.pipeline(written(name), tmp_path, CASES_OF[name][-1]) as ring:
        assert _same(_shared(ring), wanted)


@pytest.mark.parametrize("name", tiny.RECIPES)
def test_batches_that_llama_computes_in_pieces_are_exact(
    written: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """32 rows by tens, then 24: rows enter and leave each piece."""
    with rings.pipeline(written(name), tmp_path, (), graph_rows=10) as whole:
        wanted = _shared(whole)
    with rings.pipeline(written(name), tmp_path, CASES_OF[name][-1], graph_rows=10) as ring:
        assert _same(_shared(ring), wanted)


def test_every_architecture_of_the_table_is_proved() -> None:
    assert {recipe.architecture for recipe in tiny.RECIPES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("position", [0, 8150])
def test_the_chunks_and_ropeless_layers_of_llama4_are_cut_exactly(
    written: Callable[[str], Path], tmp_path: Path, position: int
) -> None:
    """llama.cpp's chunks have 8,192 tokens, whatever the file says: the second begins inside."""
    path = written("llama4")
    with rings.pipeline(path, tmp_path, ()) as whole:
        wanted = _answers(whole, position)
    with rings.pipeline(path, tmp_path, (4, 8)) as ring:
        assert _same(_answers(ring, position), wanted)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma2", {"attention.sliding_window": 512}),
        ("gemma3", {"attention.sliding_window": 512}),
        ("gemma3", {"attention.sliding_window_pattern": 2}),
        ("gpt-oss", {"attention.sliding_window": 512}),
        ("olmo2 with windows (olmo3)", {"attention.sliding_window": 512}),
        ("granite", {"embedding_scale": 1.0}),
        ("phi3, long rope", {"rope.scaling.original_context_length": 1024}),
        ("mistral3", {"attention.temperature_scale": 0.2}),
    ],
)
def test_what_the_recipes_set_matters(
    expected: Callable[[str], list[np.ndarray]], tmp_path: Path, name: str,
    change: dict[str, tiny.Value],
) -> None:  # fmt: skip
    recipe = tiny.RECIPES[name]
    other = tiny.write(tmp_path / "m.gguf", replace(recipe, keys={**recipe.keys, **change}))
    assert not _same(_reference(other), expected(name))


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("gemma2", {"rows_enter": ""}),
        ("granite", {"first_only": frozenset()}),
        ("gpt-oss", {"window_round": 0}),
        ("gemma3 with its own pattern", {"window_round": 0}),
    ],
)
def test_without_what_the_table_says_a_cut_would_be_wrong(
    written: Callable[[str], Path], expected: Callable[[str], list[np.ndarray]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, name: str, without: dict[str, Any],
) -> None:  # fmt: skip
    architecture = tiny.RECIPES[name].architecture
    known = replace(ARCHITECTURES[architecture], **without)
    monkeypatch.setitem(architectures.ARCHITECTURES, architecture, known)  # type: ignore[arg-type]
    with rings.pipeline(written(name), tmp_path, (3,)) as ring:
        assert not _same(_answers(ring), expected(name))


def _changed(
    name: str, layers: int | None = None, tensors: tiny.Tensors | None = None, **keys: tiny.Value
) -> tiny.Recipe:
    recipe = tiny.RECIPES[name]
    return replace(
        recipe, layers=layers or recipe.layers, tensors={**recipe.tensors, **(tensors or {})},
        keys={**recipe.keys, **{key.replace("__", "."): value for key, value in keys.items()}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (_changed("command-r", 64, {"attn_q_norm": (16, 4), "attn_k_norm": (16, 2)}),
         "of command-r when there are 64 layers or more"),
        (_changed("deepseek2", nextn_predict_layers=1), "deepseek2.nextn_predict_layers, with"),
        (_changed("gemma2", 46), "scales the attention of gemma2 by the number of layers"),
        (_changed("gemma3", 62), "scales the attention of gemma3 by the number of layers"),
        (_changed("glm4", nextn_predict_layers=1), "glm4.nextn_predict_layers, with"),
        (_changed("glm4", rope__dimension_sections=[8, 4, 4, 0]),
         "glm4.rope.dimension_sections differs"),
        (_changed("granite", deepstack_mapping=[0, 1, 0, 0, 0, 0]),
         "granite.deepstack_mapping differs"),
        (_changed("llama4", attention__sliding_window=0), "leaves out the rope of the last layer"),
        (_changed("llama4", 10), "its last 2 layers have no layer without rope"),
        (_changed("qwen3", pooling_type=4), "qwen3.pooling_type, with"),
        (_changed("gemma3 with its own pattern", 8), "sliding_window_pattern differs"),
        (_changed("qwen2", attention__sliding_window=64), "qwen2.attention.sliding_window, with"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.architecture,
)  # fmt: skip
def test_what_cannot_be_exact_is_refused_with_the_reason(
    tmp_path: Path, recipe: tiny.Recipe, said: str
) -> None:
    path = tiny.write(tmp_path / "m.gguf", recipe)
    with GgufFile(path) as model, pytest.raises(ModelError, match=re.escape(said)) as caught:
        check_cuttable(model)
    assert caught.value.message.startswith("m.gguf cannot be cut: ")
    assert "whole" in caught.value.hint


@pytest.mark.parametrize(
    ("recipe", "part", "said"),
    [
        (_changed("llama4"), (0, 3), "rounds of 4, and layer 3 begins none"),
        (_changed("llama4"), (6, 12), "rounds of 4, and layer 6 begins none"),
        (_changed("llama4", 24, interleave_moe_layer_step=3), (4, 12), "rounds of 12, and layer 4"),
        (_changed("gpt-oss"), (5, 6), "layers 5 to 5 have no sliding window"),
        (_changed("gemma3 with its own pattern"), (0, 1), "layers 0 to 0 have no sliding window"),
        (_changed("deepseek2", 30), (0, 26), "takes a deepseek2 of 26 layers for another model"),
        (_changed("deepseek2", 30), (3, 30), "takes a deepseek2 of 27 layers for another model"),
    ],
    ids=lambda value: value.architecture if isinstance(value, tiny.Recipe) else None,
)
def test_a_cut_where_the_architecture_forbids_it_is_refused(
    tmp_path: Path, recipe: tiny.Recipe, part: tuple[int, int], said: str
) -> None:
    with GgufFile(tiny.write(tmp_path / "m.gguf", recipe)) as model:
        with pytest.raises(ModelError, match=re.escape(said)) as caught:
            cut.write_part(model, *part, tmp_path / "part.gguf")
        assert caught.value.hint.startswith("Cut it ")
        assert not (tmp_path / "part.gguf").exists()
        check_range(model, 0, 2 * cut_rule(model).period)


@pytest.mark.parametrize("name", tiny.RECIPES)
def test_what_is_planned_for_a_ring_can_be_cut(written: Callable[[str], Path], name: str) -> None:
    machines = [Node(node, node, 2**30) for node in "abc"]
    with GgufFile(written(name)) as model:
        rule = cut_rule(model)
        needs = model_needs(model.facts(), 64, rule)
        planned = 0
        for nodes in (2, 3):
            try:
                stages = plan(needs, machines, Aims(context=64, nodes=nodes, head="a")).stages
            except UsageError:
                continue
            planned += 1
            for stage in stages:
                check_range(model, stage.first, stage.last)
        # There is one part more than nodes: each is a round, or has a layer with a window.
        most = min(needs.rounds, sum(rule.windows) or needs.rounds)
        assert planned == sum(nodes + 1 <= most for nodes in (2, 3))


def test_a_part_that_did_not_take_its_rows_is_an_error_not_an_answer(
    written: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(ARCHITECTURES["gemma2"], rows_enter="nowhere")
    monkeypatch.setitem(architectures.ARCHITECTURES, "gemma2", known)  # type: ignore[arg-type]
    with (
        rings.pipeline(written("gemma2"), tmp_path, (3,)) as ring,
        pytest.raises(EngineError, match=r"took 0 bytes of rows into model-.*-3-6\.gguf for 32"),
    ):
        _answers(ring)


def test_the_table_for_people_is_that_of_the_code() -> None:
    document = Path(architectures.__file__).parents[2] / "docs" / "how-it-works.md"
    rows = [
        f"| {name} | {known.where} | {known.refused} |"
        for name, known in sorted(ARCHITECTURES.items())
    ]
    table = "\n".join(("| architecture | can be cut | refused |", "|---|---|---|", *rows))
    assert f"\n{table}\n\n" in document.read_text()
