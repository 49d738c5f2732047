"""The ring computes what llama.cpp computes with the whole model: the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import engine_rings as rings
import numpy as np
import pytest

from agent.engine.frames import Remove, RowType
from agent.engine.generation import Finish, GenerationRequest, Sampling, Token
from agent.engine.generator import Generator, Job
from agent.engine.llama import Weights
from agent.engine.pace import Measured
from agent.engine.pipeline import Pipeline
from agent.engine.turns import Batch
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError

pytestmark = pytest.mark.slow

GREEDY = Sampling(temperature=0.0)
PROMPT = rings.prompt(77)  # three chunks of at most 32
COUNT = 24


def answer(
    pipeline: Pipeline, path: Path, prompt: tuple[int, ...] = PROMPT, sampling: Sampling = GREEDY
) -> tuple[list[int], Finish | CoveyError | None]:
    return rings.generated(pipeline, path, prompt, COUNT, sampling)


@pytest.mark.parametrize("boundaries", [(), (5, 9), (3, 7, 10), (1, 2, 4, 11)])
def test_greedy_tokens_and_logits_are_those_of_the_whole_model(
    models: Callable[..., Path], tmp_path: Path, boundaries: tuple[int, ...]
) -> None:
    path = models()
    expected, expected_logits = rings.reference(path, PROMPT, COUNT)
    with rings.pipeline(path, tmp_path, boundaries) as pipeline:
        tap = rings.Tap(pipeline)
        tokens, finish = answer(tap, path)
        assert tokens == expected
        assert finish is Finish.LENGTH
        assert max(
            np.abs(found - wanted).max()
            for found, wanted in zip(tap.logits, expected_logits, strict=True)
        ) == 0.0  # fmt: skip
        # The sequence was cleared on all stages: the same answer again, and another one.
        assert answer(tap, path)[0] == expected


@pytest.mark.parametrize("boundaries", [(), (5, 9)])
def test_with_flash_attention_it_computes_what_llama_cpp_computes_with_it(
    models: Callable[..., Path], tmp_path: Path, boundaries: tuple[int, ...]
) -> None:
    path = models()
    expected, expected_logits = rings.reference(path, PROMPT, COUNT, flash_attention=True)
    assert not np.array_equal(rings.reference(path, PROMPT, COUNT)[1][0], expected_logits[0])
    with rings.pipeline(path, tmp_path, boundaries, flash_attention=True) as pipeline:
        tap = rings.Tap(pipeline)
        assert answer(tap, path)[0] == expected
        assert all(map(np.array_equal, tap.logits, expected_logits))


@pytest.mark.parametrize(
    "properties",
    [
        {"weight_type": "F16", "tied": True},
        {"weight_type": "Q8_0"},
        {"weight_type": "Q8_0", "tied": True, "rope_freqs": True},
        {"weight_type": "Q4_0"},
        {"weight_type": "BF16", "rope_freqs": True},
    ],
)
def test_other_weight_types_tied_outputs_and_rope_factors_are_exact(
    models: Callable[..., Path], tmp_path: Path, properties: dict[str, object]
) -> None:
    path = models(**properties)
    expected, expected_logits = rings.reference(path, PROMPT, COUNT)
    with rings.pipeline(path, tmp_path, (4, 8)) as pipeline:
        tap = rings.Tap(pipeline)
        assert answer(tap, path)[0] == expected
        assert all(map(np.array_equal, tap.logits, expected_logits))


@pytest.mark.parametrize(("row_type", "bound"), [(RowType.F16, 0.05), (RowType.Q8, 0.5)])
def test_smaller_frames_change_logits_by_little(
    models: Callable[..., Path], tmp_path: Path, row_type: RowType, bound: float
) -> None:
    path = models()
    _, expected = rings.reference(path, PROMPT, 1)
    with rings.pipeline(path, tmp_path, (4, 8), row_type) as pipeline:
        tap = rings.Tap(pipeline)
        answer(tap, path)
        difference = np.abs(tap.logits[0] - expected[0]).max()
        assert 0.0 < difference < bound * np.abs(expected[0]).max()


@pytest.mark.parametrize("boundaries", [(), (5, 9), (1, 2, 4, 11)])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, top_k=5, seed=7)])
def test_guesses_change_nothing_but_the_time(
    models: Callable[..., Path], tmp_path: Path, boundaries: tuple[int, ...], sampling: Sampling
) -> None:
    """The same tokens with guesses as without, sampled ones too, since each is still sampled."""
    # A batch of another size rounds elsewhere, so a draw at the edge may fall to the other side:
    # the 99th of these does on one CPU of three.
    path, count = models(), 90
    weights = Weights(path)
    with rings.pipeline(path, tmp_path, boundaries) as pipeline:
        said: list[list[int]] = []
        for guess in (False, True):
            generator = Generator(
                pipeline, Vocabulary(weights), context=rings.N_CTX, n_batch=rings.N_BATCH,
                guess=guess,
            )  # fmt: skip
            # As if rows cost little and the links were long.
            links_s = 0.1 if boundaries else 0.0
            pace = generator._course.schedule.pace
            pace.learn([Measured(n, 0.01, links_s) for n in (1, 2, 4)], links_s)
            tokens: list[Token] = []
            job = Job(GenerationRequest(PROMPT[:20] * 2, count, sampling), tokens.append)
            generator.add(job)
            generator.run()
            pipeline.submit(Batch((Remove(0),)))
            pipeline.collect()
            said.append([token.id for token in tokens])
            assert (job.timings.drafted > 0) is guess
        assert 0 < job.timings.accepted < job.timings.drafted
        assert said[0] == said[1]
        assert len(said[0]) > count // 2
    weights.close()
