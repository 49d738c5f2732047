"""Guesses by a real draft model: the same answers, whatever it says; and which ones are refused.

The draft is either the main model's own file, whose guesses mostly come true, or one of other
random weights, whose guesses hardly ever do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import bert_models
import engine_rings as rings
import gguf
import llama_cpp
import numpy as np
import pytest
import tiny_models as tiny

from agent.engine.draft_costs import DraftCosts
from agent.engine.draft_loading import load_draft
from agent.engine.draft_model import DraftModel
from agent.engine.generation import Finish, GenerationRequest, Sampling, Token
from agent.engine.generator import Generator, Job
from agent.engine.head import Head, HeadLimits
from agent.engine.llama import Weights
from agent.engine.pace import Measured, Pace
from agent.engine.pipeline import Pipeline
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, ModelError

pytestmark = pytest.mark.slow

GREEDY = Sampling(temperature=0.0, logit_bias=((2, -100.0),))
SEEDED = Sampling(temperature=0.7, top_k=5, seed=7, logit_bias=((2, -100.0),))
SHAPES = [(), (5, 9), (1, 2, 4, 11)]
# Lengths and seeds of prompts: more than there are slots, and one with nothing to read. The two
# likeliest tokens of their greedy answers are never closer than 0.004: a tie turns over by what
# else is in a batch.
PROMPTS = [(1, 1), (20, 20), (33, 133), (60, 60), (90, 190), (41, 241)]


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take it that rows cost little, links are long and the draft is fast, whatever is measured.

    On a model of a few kilobytes a draft is never worth it.
    """
    learn, learn_drafts = Pace.learn, DraftCosts.learn

    def as_if(pace: Pace, measured: list[Measured], links_s: float) -> None:
        links_s = 0.1 if pace._depth > 1 else 0.0
        learn(pace, [Measured(rows, 0.01, links_s) for rows in (1, 32)], links_s)

    def drafts_as_if(costs: DraftCosts, measured: Sequence[tuple[int, float]]) -> None:
        assert all(seconds > 0 for _, seconds in measured)
        assert {1, 128} <= {rows for rows, _ in measured} <= {1, 2, 3, 4, 128}
        learn_drafts(costs, [(1, 0.0001), (128, 0.001)])

    monkeypatch.setattr(Pace, "learn", as_if)
    monkeypatch.setattr(DraftCosts, "learn", drafts_as_if)
    monkeypatch.setattr(Pace, "took", lambda *_: None)
    monkeypatch.setattr(DraftCosts, "took", lambda *_: None)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches in f32. What is added up in which order depends on who is in a batch, and f16
    makes enough of that to turn a token of random weights over.
    """
    defaults = llama_cpp.llama_context_default_params

    def parameters() -> object:
        found = defaults()
        found.type_k = found.type_v = llama_cpp.GGML_TYPE_F32
        return found

    monkeypatch.setattr(llama_cpp, "llama_context_default_params", parameters)


@contextmanager
def drafting(path: Path, main: Weights, n_ctx: int = rings.N_CTX) -> Iterator[DraftModel]:
    limits = replace(rings.LIMITS, n_ctx=n_ctx, n_seq=rings.SLOTS)
    draft = load_draft(path, main, "tiny", limits, use_extra_bufts=True, gpu_layers=0)
    try:
        yield draft
    finally:
        draft.close()
        draft.context.weights.close()


@pytest.fixture
def main(models: Callable[..., Path]) -> Iterator[Weights]:
    weights = Weights(models())
    yield weights
    weights.close()


@pytest.fixture
def other(models: Callable[..., Path]) -> Path:
    return models(seed=5, layers=2)


class Asked:
    """A job, and what was said."""

    def __init__(
        self, prompt: tuple[int, ...], count: int, sampling: Sampling = GREEDY, leave: int = 0
    ) -> None:
        """`leave`: cancel it after so many tokens."""
        self.said: list[int] = []
        self.ends: list[Finish | CoveyError | None] = []
        self.leave = leave
        request = GenerationRequest(prompt, count, sampling)
        self.job = Job(request, self._take, self.ends.append)

    def _take(self, token: Token) -> None:
        self.said.append(token.id)
        if len(self.said) == self.leave:
            self.job.cancelled = True

    @property
    def right(self) -> float:
        """Which share of the guesses that had rows came true."""
        timings = self.job.timings
        return timings.accepted / timings.drafted if timings.drafted else 0.0


Alone = Callable[[Sequence[Asked]], list[list[int]]]


@pytest.fixture(scope="module")
def known() -> dict[GenerationRequest, list[int]]:
    """What the whole model said to whom before: shapes and drafts are many, answers the same."""
    return {}


@pytest.fixture
def alone(
    models: Callable[..., Path], main: Weights, tmp_path: Path,
    known: dict[GenerationRequest, list[int]],
) -> Alone:  # fmt: skip
    """Return a function that tells what the whole model says to each alone, without guesses."""

    def said(asked: Sequence[Asked]) -> list[list[int]]:
        requests = [each.job.request for each in asked]
        with rings.pipeline(models(), tmp_path, ()) as pipeline:
            for request in requests:
                if request not in known:
                    one = Asked(request.prompt, request.max_tokens, request.sampling)
                    [known[request]] = run(pipeline, main, None, [one])
                    pipeline.context.clear()
        return [known[request] for request in requests]

    return said


def run(
    pipeline: Pipeline, main: Weights, draft: DraftModel | None, asked: Sequence[Asked]
) -> list[list[int]]:
    """Serve all at once; returns what each was told."""
    generator = Generator(
        pipeline, Vocabulary(main), context=rings.N_CTX, n_batch=rings.N_BATCH,
        slots=rings.SLOTS, sequences=rings.SEQUENCES, guess=draft is not None, draft=draft,
    )  # fmt: skip
    generator.calibrate()
    for each in asked:
        generator.add(each.job)
    generator.run()
    assert pipeline.in_flight == 0
    if draft is not None and draft.context.handle is not None:
        assert sorted(draft._free) == list(range(rings.SLOTS)), "somebody gone holds something"
    return [each.said for each in asked]


@pytest.mark.parametrize("boundaries", SHAPES)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_answers_are_those_without_a_draft_model_whatever_it_says(
    models: Callable[..., Path], main: Weights, other: Path, tmp_path: Path,
    boundaries: tuple[int, ...], sampling: Sampling,
    alone: Alone,
) -> None:  # fmt: skip
    def asked() -> list[Asked]:
        return [
            Asked(rings.prompt(length, seed), 40 + length // 2, replace(sampling, seed=length))
            for length, seed in PROMPTS
        ]

    expected = alone(asked())
    shares = []
    for path in (models(), other):
        with (
            rings.pipeline(models(), tmp_path, boundaries) as pipeline,
            drafting(path, main) as draft,
        ):
            found = asked()
            assert run(pipeline, main, draft, found) == expected
            drafted = sum(each.job.timings.drafted for each in found)
            accepted = sum(each.job.timings.accepted for each in found)
            assert drafted > 0
            shares.append(accepted / drafted)
            if path == models():
                # How often it is asked goes by measured times, which other work here disturbs.
                assert accepted > sum(map(len, expected)) / (10 if sampling is GREEDY else 100)
            else:
                # Asked on and on it would guess several for each token.
                assert drafted < sum(map(len, expected)), "it was asked on and on"
    assert shares[0] > (0.95 if sampling is GREEDY else 0.1)
    # Guesses of n-grams are among them, and one in two of a few may be right by chance.
    assert shares[1] < 0.75


@pytest.mark.parametrize("boundaries", SHAPES)
def test_guesses_save_batches(
    models: Callable[..., Path],
    main: Weights,
    tmp_path: Path,
    boundaries: tuple[int, ...],
    alone: Alone,
) -> None:
    prompt = rings.prompt(100)
    with (
        rings.pipeline(models(), tmp_path, boundaries) as pipeline,
        drafting(models(), main) as draft,
    ):
        one = Asked(prompt, 200)
        assert run(pipeline, main, draft, [one]) == alone([one])
        assert one.right > 0.95
        assert one.job.timings.accepted > 140
        if not boundaries:
            assert pipeline.stats.batches < 80


@pytest.mark.parametrize("boundaries", [(), (3, 7, 10)])
def test_those_who_leave_give_back_what_they_held(
    models: Callable[..., Path], main: Weights, other: Path, tmp_path: Path,
    boundaries: tuple[int, ...], alone: Alone,
) -> None:  # fmt: skip
    for path in (models(), other):
        with (
            rings.pipeline(models(), tmp_path, boundaries) as pipeline,
            drafting(path, main) as draft,
        ):
            asked = [
                Asked(rings.prompt(40, seed), 80, leave=(0, 7, 30)[seed % 3]) for seed in range(9)
            ]
            run(pipeline, main, draft, asked)
            for each, expected in zip(asked, alone(asked), strict=True):
                # What came back with the last token is told as well.
                said = len(each.said)
                assert each.said == expected[:said]
                assert each.leave <= said < each.leave + 32 if each.leave else said == 80
                assert each.ends == [None if each.leave else Finish.LENGTH]
                # Those who came later got the places of those who had gone.
                assert path == other or each.leave or each.job.timings.accepted > 0


@pytest.mark.parametrize("boundaries", [(), (5, 9)])
def test_a_cache_too_small_for_all_makes_some_wait_and_nobody_wrong(
    models: Callable[..., Path],
    main: Weights,
    tmp_path: Path,
    boundaries: tuple[int, ...],
    alone: Alone,
) -> None:
    with (
        rings.pipeline(models(), tmp_path, boundaries) as pipeline,
        drafting(models(), main) as draft,
    ):
        asked = [Asked(rings.prompt(100, seed), 120) for seed in range(4)]
        assert run(pipeline, main, draft, asked) == alone(asked)
        assert sum(each.job.timings.accepted for each in asked) > 50


@pytest.mark.parametrize("boundaries", [(), (5, 9)])
@pytest.mark.parametrize("length", [400, 450, 505, 510])
def test_the_context_ends_answers_with_guesses(
    models: Callable[..., Path], main: Weights, tmp_path: Path, boundaries: tuple[int, ...],
    length: int, alone: Alone,
) -> None:  # fmt: skip
    with (
        rings.pipeline(models(), tmp_path, boundaries) as pipeline,
        drafting(models(), main) as draft,
    ):
        one = Asked(rings.prompt(length), 10_000)
        assert run(pipeline, main, draft, [one]) == alone([one])
        assert len(one.said) == rings.N_CTX - length
        assert one.ends == [Finish.LENGTH]


def test_who_has_no_room_in_the_draft_models_caches_does_without(
    models: Callable[..., Path],
    main: Weights,
    tmp_path: Path,
    alone: Alone,
) -> None:
    with (
        rings.pipeline(models(), tmp_path, ()) as pipeline,
        drafting(models(), main, n_ctx=150) as draft,
    ):
        asked = [Asked(rings.prompt(60, seed), 60) for seed in range(4)]
        assert run(pipeline, main, draft, asked) == alone(asked)
        accepted = [each.job.timings.accepted for each in asked]
        assert max(accepted) > 30 > min(accepted)


def test_a_draft_model_that_fails_ends_the_guesses_and_no_answer(
    models: Callable[..., Path], main: Weights, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, alone: Alone,
) -> None:  # fmt: skip
    with (
        rings.pipeline(models(), tmp_path, (5, 9)) as pipeline,
        drafting(models(), main, n_ctx=256) as draft,
    ):
        # It believes to have more room than llama.cpp gave it.
        draft.context.limits = replace(draft.context.limits, n_ctx=10_000)
        asked = [Asked(rings.prompt(50, seed), 60) for seed in range(4)]
        assert run(pipeline, main, draft, asked) == alone(asked)
        assert "no more guesses by the draft model: the KV cache" in caplog.text


async def test_a_head_serves_with_a_draft_model_and_frees_it(
    models: Callable[..., Path],
    main: Weights,
    tmp_path: Path,
    alone: Alone,
) -> None:
    with (
        rings.pipeline(models(), tmp_path, (3, 7, 10)) as pipeline,
        drafting(models(), main) as draft,
    ):
        limits = HeadLimits(rings.N_CTX, rings.N_BATCH, rings.SLOTS, rings.SEQUENCES)
        head = Head("tiny", main, limits)
        head.start(pipeline, draft)
        prompts = [rings.prompt(30, seed) for seed in range(3)]
        runs = [head.generate(GenerationRequest(prompt, 60, GREEDY)) for prompt in prompts]

        async def collected(generation: object) -> list[int]:
            return [token.id async for token in rings.tokens_of(generation)]  # type: ignore[arg-type]

        async with asyncio.timeout(60):
            for prompt, said in zip(
                prompts, await asyncio.gather(*map(collected, runs)), strict=True
            ):
                assert [said] == alone([Asked(prompt, 60)])
        assert sum(each.timings.accepted for each in runs) > 60
        await head.stop()
        assert draft.context.handle is None


# Which ones are refused.


def renamed(path: Path, size: int, *, unused: int = 0) -> Path:
    """Write a model of other tokens at the end: `unused` ones, or just one of another text."""

    def extra(writer: gguf.GGUFWriter) -> None:
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        types = writer.kv_data[0]["tokenizer.ggml.token_type"].value
        if unused:
            types[-unused:] = [gguf.TokenType.UNUSED] * unused
        else:
            tokens[-2] = b"else"

    return tiny.write_model(
        path, shape=replace(tiny.Shape(), layers=2, vocabulary=size), seed=3, extra=extra
    )


def mamba(path: Path) -> Path:
    """Write a recurrent model with the tokens of the others."""
    width, inner, state, rank, kernel = 32, 64, 8, 4, 4
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_name("snake")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(1)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    tiny.add_vocabulary(writer, tiny.VOCABULARY)
    shapes = {
        "token_embd.weight": (tiny.VOCABULARY, width), "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,), "blk.0.ssm_in.weight": (2 * inner, width),
        "blk.0.ssm_conv1d.weight": (inner, kernel), "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner), "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,), "blk.0.ssm_a": (inner, state), "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (width, inner),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path: Path, main: Weights) -> str:
    with pytest.raises(ModelError) as caught, drafting(path, main):
        pass
    return caught.value.line()


def test_a_draft_model_of_other_tokens_is_refused_with_the_first_that_differs(
    main: Weights, tmp_path: Path
) -> None:
    assert refused(renamed(tmp_path / "other.gguf", 400), main) == (
        "other.gguf cannot be the draft model of tiny: its tokens are others (400 and 400); the"
        " first that differs is 398, 'else' and 'w107'. Take a draft model of the same family, or"
        " none (without --draft)."
    )
    longer = tiny.write_model(
        tmp_path / "longer.gguf", shape=replace(tiny.Shape(), layers=2, vocabulary=403)
    )
    assert "(403 and 400); the first that differs is 400, 'w109' and none." in refused(longer, main)
    shorter = tiny.write_model(
        tmp_path / "shorter.gguf", shape=replace(tiny.Shape(), layers=2, vocabulary=390)
    )
    assert "(390 and 400); the first that differs is 390, none and 'w99'." in refused(shorter, main)


def test_tokens_that_only_fill_a_matrix_do_not_count(
    models: Callable[..., Path],
    main: Weights,
    tmp_path: Path,
    alone: Alone,
) -> None:
    longer = renamed(tmp_path / "longer.gguf", 416, unused=16)
    with rings.pipeline(models(), tmp_path, ()) as pipeline, drafting(longer, main) as draft:
        one = Asked(rings.prompt(30), 60)
        assert run(pipeline, main, draft, [one]) == alone([one])
    filled = Weights(longer)
    with (
        rings.pipeline(longer, tmp_path, ()) as pipeline,
        drafting(models(seed=3, layers=2), filled) as draft,
    ):
        # The main model says tokens that the draft does not have.
        said = tuple(range(401, 416))
        unused = replace(GREEDY, logit_bias=tuple((token, 50.0) for token in said))
        one = Asked(rings.prompt(30), 60, unused)
        run(pipeline, filled, draft, [one])
        assert len(one.said) == 60 and set(one.said) <= set(said)
    filled.close()


def test_models_that_cannot_go_back_or_make_no_text_are_refused(
    models: Callable[..., Path], main: Weights, tmp_path: Path
) -> None:
    snake = mamba(tmp_path / "snake.gguf")
    assert "snake.gguf cannot be a draft model: it is recurrent" in refused(snake, main)
    recurrent = Weights(snake)
    assert "tiny cannot have a draft model: it is recurrent" in refused(models(), recurrent)
    recurrent.close()
    bert = bert_models.tiny(ranks=False).write(tmp_path / "bert.gguf", gguf.PoolingType.MEAN)
    assert "bert.gguf cannot be a draft model: it is for embeddings" in refused(bert, main)
    with pytest.raises(ModelError, match="cannot read the model"):
        load_draft(
            tmp_path / "nowhere.gguf", main, "tiny", rings.LIMITS, use_extra_bufts=True,
            gpu_layers=0,
        )  # fmt: skip
