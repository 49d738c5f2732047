"""Few rows together or one after the other: the choice, and that both say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import engine_rings as rings
import numpy as np
import pytest
import tiny_architectures as tiny
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.apart import ROWS_MAX, Apart
from agent.engine.cut import write_part
from agent.engine.generation import GenerationRequest, Sampling, Token
from agent.engine.generator import Generator, Job
from agent.engine.gguf_file import GgufFile
from agent.engine.llama import Context, Weights
from agent.engine.vocabulary import Vocabulary
from agent.errors import EngineError

pytestmark = pytest.mark.slow

GREEDY = Sampling(temperature=0.0)

rows_of = st.integers(2, ROWS_MAX - 1)
times = st.floats(0.001, 10.0)


def run(apart: Apart, rows: int, together_s: float, apart_s: float) -> bool:
    """Compute a batch; return how."""
    chosen = apart.wanted(rows)
    apart.took(rows, apart_s if chosen else together_s, apart=chosen)
    return chosen


@given(rows_of, times, times, st.integers(3, 500))
def test_the_faster_way_is_taken_whatever_the_first_batch_took(
    rows: int, together_s: float, apart_s: float, batches: int
) -> None:
    apart = Apart()
    run(apart, rows, 100.0, apart_s)  # with its set-up
    chosen = [run(apart, rows, together_s, apart_s) for _ in range(batches)]
    expected = apart_s < together_s
    others = sum(each != expected for each in chosen[2:])
    assert others <= (batches + 1) // 200  # it looks at the other way now and then


@given(rows_of, st.booleans(), st.lists(st.sampled_from([1.0, 50.0]), min_size=5, max_size=300))
def test_other_work_now_and_then_does_not_change_the_choice(
    rows: int, faster: bool, disturbed: list[float]
) -> None:
    apart = Apart()
    together_s, apart_s = (2.0, 1.0) if faster else (1.0, 2.0)
    for _ in range(4):
        run(apart, rows, together_s, apart_s)
    others = 0
    for number, factor in enumerate(disturbed):
        # One in three at most.
        by = factor if number % 3 == 0 else 1.0
        others += run(apart, rows, by * together_s, by * apart_s) != faster
    assert others <= len(disturbed) // 200 + 1


def test_what_becomes_slower_is_left(rows: int = 4) -> None:
    apart = Apart()
    for _ in range(10):
        run(apart, rows, 2.0, 1.0)
    assert apart.wanted(rows)
    chosen = [run(apart, rows, 2.0, 3.0) for _ in range(300)]
    assert sum(chosen[10:]) <= 2


@pytest.mark.parametrize("rows", [0, 1, ROWS_MAX, 512])
def test_one_row_and_many_are_never_taken_apart(rows: int) -> None:
    apart = Apart()
    for _ in range(10):
        assert not run(apart, rows, 2.0, 1.0)


def context(weights: Weights, *, keeps_rows: bool, way: bool | None) -> Context:
    """Return a context that computes small batches one way; None: as it is made."""
    made = Context(
        weights, replace(rings.LIMITS, rows_apart=way is not None), keeps_rows=keeps_rows
    )
    if made._apart is not None:
        made._apart.wanted = lambda rows: way and 1 < rows < ROWS_MAX  # type: ignore[method-assign]
    return made


ROWS = 5
# The caches hold f16: where a last bit differs, they differ by a thousandth.


def batch(step: int) -> tuple[np.ndarray, ...]:
    """Return tokens of three sequences, one of which has three rows, and which are marked."""
    tokens = np.arange(10 + step, 10 + step + ROWS, dtype=np.int32)
    sequences = np.array([0, 1, 2, 2, 2], np.int32)
    positions = np.array([step, step, 3 * step, 3 * step + 1, 3 * step + 2], np.int32)
    return tokens, sequences, positions, np.array([1, 1, 0, 1, 1], np.int8)


def test_a_whole_model_says_the_same_both_ways(models: Callable[..., Path]) -> None:
    said = {}
    weights = Weights(models())
    try:
        for way in (None, False, True):
            made = context(weights, keeps_rows=False, way=way)
            said[way] = []
            for step in range(3):
                arrays = batch(step)
                made.decode_tokens(*arrays)
                said[way] += [made.logits(row).copy() for row in np.flatnonzero(arrays[3])]
                assert np.array_equal(made.logits(), made.logits(ROWS - 1))
            # A larger batch after it has its own logits.
            many = np.arange(8, dtype=np.int32)
            made.decode_tokens(many, np.full(8, 4, np.int32), many, np.ones(8, np.int8))
            said[way].append(made.logits(7).copy())
            made.close()
    finally:
        weights.close()
    assert all(np.array_equal(*pair) for pair in zip(said[None], said[False], strict=True))
    for one, other in zip(said[False], said[True], strict=True):
        np.testing.assert_allclose(one, other, atol=0.01)


# The rows of the second enter another way.
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_parts_say_the_same_both_ways(tmp_path: Path, name: str) -> None:
    with GgufFile(tiny.write(tmp_path / "m.gguf", tiny.RECIPES[name])) as file:
        layers = file.layers
        first = write_part(file, 0, layers // 2, tmp_path / "first.gguf").path
        last = write_part(file, layers // 2, layers, tmp_path / "last.gguf").path
    said = []
    for way in (False, True):
        with rings.ExitStack() as stack:
            parts = []
            for part, keeps_rows in ((first, True), (last, False)):
                weights = Weights(part)
                stack.callback(weights.close)
                parts.append(context(weights, keeps_rows=keeps_rows, way=way))
                stack.callback(parts[-1].close)
            for step in range(3):
                tokens, sequences, positions, outputs = batch(step)
                rows = parts[0].decode_tokens(tokens, sequences, positions, outputs).copy()
                parts[1].decode_rows(rows, sequences, positions, outputs)
                said.append(rows)
                said += [parts[1].logits(row).copy() for row in np.flatnonzero(outputs)]
    half = len(said) // 2
    for one, other in zip(said[:half], said[half:], strict=True):
        np.testing.assert_allclose(one, other, atol=0.01)


@pytest.mark.parametrize("boundaries", [(), (5,)])
def test_who_is_served_together_says_what_each_says_alone(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    boundaries: tuple[int, ...],
) -> None:  # fmt: skip
    path = models(forgetful=True)
    samplings = [
        GREEDY, Sampling(temperature=0.9, seed=7), Sampling(temperature=0.8, seed=3, min_p=0.1),
        replace(GREEDY, grammar='root ::= ("a" | "b" | "c" | " ")+'),
    ]  # fmt: skip
    with rings.pipeline(path, tmp_path, boundaries) as pipeline:
        alone = [
            rings.generated(pipeline, path, rings.prompt(20, n), 24, sampling)[0]
            for n, sampling in enumerate(samplings)
        ]
    monkeypatch.setattr(rings, "LIMITS", replace(rings.LIMITS, rows_apart=True))
    counts: list[int] = []

    def always(self: Apart, rows: int) -> bool:
        if 1 < rows < ROWS_MAX:
            counts.append(rows)
        return 1 < rows < ROWS_MAX

    monkeypatch.setattr(Apart, "wanted", always)
    weights = Weights(path)
    try:
        with rings.pipeline(path, tmp_path, boundaries) as pipeline:
            generator = Generator(
                pipeline,
                Vocabulary(weights),
                context=rings.N_CTX,
                n_batch=rings.N_BATCH,
                slots=rings.SLOTS,
                sequences=rings.SEQUENCES,
            )
            said: list[list[Token]] = [[] for _ in samplings]
            for n, sampling in enumerate(samplings):
                request = GenerationRequest(rings.prompt(20, n), 24, sampling)
                generator.add(Job(request, said[n].append))
            generator.run()
    finally:
        weights.close()
    assert [[token.id for token in tokens] for tokens in said] == alone
    assert counts


def test_a_full_cache_is_told_both_ways(models: Callable[..., Path]) -> None:
    weights = Weights(models())
    try:
        for way in (False, True):
            made = context(weights, keeps_rows=False, way=way)
            tokens = np.zeros(rings.N_BATCH, np.int32)
            for start in range(0, rings.N_CTX, rings.N_BATCH):
                made.decode_tokens(
                    tokens, tokens, np.arange(start, start + rings.N_BATCH, dtype=np.int32),
                    np.zeros(rings.N_BATCH, np.int8),
                )  # fmt: skip
            with pytest.raises(EngineError, match="the KV cache of 512 tokens is full"):
                tokens, sequences, positions, outputs = batch(0)
                made.decode_tokens(tokens, sequences + 1, positions, outputs)
            made.close()
    finally:
        weights.close()
