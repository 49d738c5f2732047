"""The head as a model for asyncio: many at once, cancelling, limits, sampling, a broken ring."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import engine_rings as rings
import pytest
from engine_rings import Breaking

from agent.engine.generation import Finish, GenerationRequest, Sampling
from agent.engine.head import Head, HeadGeneration, HeadLimits
from agent.engine.llama import Weights
from agent.engine.pipeline import Pipeline
from agent.errors import CoveyError, EngineError, ModelError, UsageError

pytestmark = pytest.mark.slow

PROMPT = rings.prompt(50)
GREEDY = Sampling(temperature=0.0, logit_bias=((2, -100.0),))


@pytest.fixture
def weights(models: Callable[..., Path]) -> Iterator[Weights]:
    loaded = Weights(models())
    yield loaded
    loaded.close()


@asynccontextmanager
async def serving(
    weights: Weights, pipeline: Pipeline, broken: list[CoveyError] | None = None
) -> AsyncIterator[Head]:
    limits = HeadLimits(rings.N_CTX, rings.N_BATCH, rings.SLOTS, rings.SEQUENCES)
    head = Head("tiny", weights, limits, [].append if broken is None else broken.append)
    assert head.state() == ("loading", "the ring is being joined.")
    with pytest.raises(EngineError, match="being joined"):
        head.generate(request())
    head.start(pipeline)
    try:
        yield head
    finally:
        await head.stop()


def request(count: int = 8, **changes: object) -> GenerationRequest:
    fields = {"prompt": PROMPT, "max_tokens": count, "sampling": GREEDY, **changes}
    return GenerationRequest(**fields)  # type: ignore[arg-type]


async def collected(generation: HeadGeneration) -> list[int]:
    async with asyncio.timeout(20):
        return [token.id async for token in rings.tokens_of(generation)]


@pytest.mark.parametrize("boundaries", [(), (5, 9), (3, 7, 10)])
async def test_answers_at_the_same_time_are_those_of_the_whole_model(
    weights: Weights, models: Callable[..., Path], tmp_path: Path, boundaries: tuple[int, ...]
) -> None:
    with rings.pipeline(models(), tmp_path, boundaries) as pipeline:
        async with serving(weights, pipeline) as head:
            # More than there are slots, and one that is another's prompt.
            prompts = [*(rings.prompt(20 + 7 * seed, seed) for seed in range(6)), PROMPT, PROMPT]
            runs = [head.generate(request(prompt=prompt)) for prompt in prompts]
            found = await asyncio.gather(*map(collected, runs))
            for prompt, tokens in zip(prompts, found, strict=True):
                assert tokens == rings.reference(models(), prompt, 8)[0]
            assert {run.finish for run in runs} == {Finish.LENGTH}
            timings = runs[6].timings
            assert (timings.prompt_tokens, timings.generated) == (50, 8)
            occupied = head.occupied()
            assert (occupied["running"], occupied["waiting"]) == (0, 0)
            # What was said is kept for who asks the same again.
            assert 50 < occupied["cells_taken"] <= occupied["cells"] == rings.N_CTX
            assert timings.prompt_s > 0 and timings.generate_s > 0
            assert pipeline.stats.batches < 8 * 9, "they did not share batches"


async def test_the_next_question_of_a_conversation_computes_what_is_new_alone(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, (3, 7, 10)) as pipeline:
        async with serving(weights, pipeline) as head:
            first = head.generate(request())
            said = await collected(first)
            assert first.timings.reused == 0
            # What batches take is measured while nobody asks, and that is rows as well.
            async with asyncio.timeout(30):
                while not head._thread._generator.measured:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0.01)
            rows = pipeline.stats.rows
            following = (*PROMPT, *said, *rings.prompt(20, seed=9))
            second = head.generate(request(prompt=following))
            assert await collected(second) == rings.reference(models(), following, 8)[0]
            # What was said last was never fed.
            assert second.timings.reused == 50 + 8 - 1
            assert pipeline.stats.rows - rows == 21 + 8 - 1


async def test_a_cache_that_is_too_small_for_all_makes_some_wait_and_nobody_wrong(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, (5, 9)) as pipeline:
        async with serving(weights, pipeline) as head:
            prompts = [rings.prompt(100, seed) for seed in range(4)]
            runs = [head.generate(request(120, prompt=prompt)) for prompt in prompts]
            found = await asyncio.gather(*map(collected, runs))
            assert rings.N_CTX < 4 * 220
            for prompt, tokens in zip(prompts, found, strict=True):
                assert tokens == rings.reference(models(), prompt, 120)[0]


async def test_the_urgent_pass_those_that_wait(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        async with serving(weights, pipeline) as head:
            ended: list[str] = []

            async def follow(name: str, generation: HeadGeneration) -> None:
                await collected(generation)
                ended.append(name)

            running = [head.generate(request(20 * n)) for n in range(1, rings.SLOTS + 1)]
            later = head.generate(request(30))
            urgent = head.generate(request(30, priority=1))
            await asyncio.gather(
                *map(collected, running), follow("later", later), follow("urgent", urgent)
            )
            assert ended == ["urgent", "later"]


async def test_one_of_many_that_is_cancelled_leaves_the_others_as_they_are(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, (3, 7, 10)) as pipeline:
        async with serving(weights, pipeline) as head:
            prompts = [rings.prompt(40, seed) for seed in range(4)]
            runs = [head.generate(request(40, prompt=prompt)) for prompt in prompts]

            async def leave() -> None:
                async for _ in rings.tokens_of(runs[1]):
                    break
                async with asyncio.timeout(5):
                    await runs[1].aclose()

            others = [run for run in runs if run is not runs[1]]
            *found, _ = await asyncio.gather(*map(collected, others), leave())
            for run, tokens in zip(others, found, strict=True):
                assert tokens == rings.reference(models(), run.job.request.prompt, 40)[0]
            assert runs[1].timings.generated < 40


async def test_a_cancelled_answer_stops_frees_the_ring_and_the_next_is_exact(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, (3, 7, 10)) as pipeline:
        async with serving(weights, pipeline) as head:
            long, *more = [head.generate(request(400)) for _ in range(rings.SLOTS)]
            queued = head.generate(request(400))
            async for _ in rings.tokens_of(long):
                break
            await queued.aclose()  # it never began
            async with asyncio.timeout(5):
                for each in (long, *more):
                    await each.aclose()
                while pipeline.in_flight:  # noqa: ASYNC110 - a batch that is measured may be
                    await asyncio.sleep(0.01)
            assert long.timings.generated < 400
            with pytest.raises(ValueError, match="not ended by itself"):
                _ = long.finish
            expected = rings.reference(models(), PROMPT, 8)[0]
            assert await collected(head.generate(request())) == expected
            assert await collected(queued) == []
            await long.aclose()  # closing twice is harmless


async def test_cancelling_within_a_long_prompt_ends_between_chunks(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, (5, 9)) as pipeline:
        async with serving(weights, pipeline) as head:
            generation = head.generate(request(prompt=rings.prompt(500)))
            await generation.aclose()
            assert await collected(generation) == []
            expected = rings.reference(models(), PROMPT, 8)[0]
            assert await collected(head.generate(request())) == expected


async def test_the_context_ends_an_answer(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        async with serving(weights, pipeline) as head:
            generation = head.generate(request(10_000, prompt=rings.prompt(500)))
            assert len(await collected(generation)) == rings.N_CTX - 500
            assert generation.finish is Finish.LENGTH


async def test_an_end_of_generation_token_stops_and_is_not_delivered(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        async with serving(weights, pipeline) as head:
            end = Sampling(temperature=0.0, logit_bias=((2, 1000.0),))
            generation = head.generate(request(sampling=end))
            assert await collected(generation) == []
            assert generation.finish is Finish.STOP


async def test_sampling_follows_its_seed_biases_and_penalties(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        async with serving(weights, pipeline) as head:

            async def sampled(**fields: object) -> list[int]:
                sampling = Sampling(**{"logit_bias": ((2, -100.0),), **fields})  # type: ignore[arg-type]
                return await collected(head.generate(request(16, sampling=sampling)))

            hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
            assert await sampled(seed=1, **hot) == await sampled(seed=1, **hot)
            assert await sampled(seed=1, **hot) != await sampled(seed=2, **hot)
            assert await sampled(seed=None, **hot) != await sampled(seed=None, **hot)
            # With one candidate left, temperature changes nothing.
            greedy = await sampled(temperature=0.0)
            assert await sampled(temperature=2.0, top_k=1) == greedy
            fresh = next(token for token in range(300, 400) if token not in PROMPT)
            forced = ((2, -100.0), (fresh, 1000.0))
            assert await sampled(temperature=0.0, logit_bias=forced) == [fresh] * 16
            mild = ((2, -100.0), (fresh, 30.0))
            varied = await sampled(temperature=0.0, logit_bias=mild, presence_penalty=100.0)
            assert varied.count(fresh) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ()}, "the prompt is empty"),
        ({"prompt": (1,) * 512}, "the prompt has 512 tokens; tiny has room for 512"),
        ({"prompt": (1, 400)}, "token 400 is not one of the model's 400"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature must not be negative"),
        ({"sampling": Sampling(top_p=float("nan"))}, "top_p must be a finite number"),
        ({"sampling": Sampling(repeat_penalty=0.0)}, "repeat_penalty must be above 0"),
        ({"sampling": Sampling(logit_bias=((400, 1.0),))}, "logit_bias"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_before_it_waits(
    weights: Weights, models: Callable[..., Path], tmp_path: Path,
    changes: dict[str, object], said: str,
) -> None:  # fmt: skip
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        async with serving(weights, pipeline) as head:
            with pytest.raises(UsageError, match=said):
                head.generate(request(**changes))


async def test_a_broken_ring_fails_the_running_the_waiting_and_the_next_answer(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    broken: list[CoveyError] = []
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        async with serving(weights, Breaking(pipeline, 5), broken) as head:  # type: ignore[arg-type]
            running, waiting = head.generate(request()), head.generate(request())
            tokens = []
            with pytest.raises(EngineError, match=r"stage 2 \(fd00::2\) was lost"):
                async for token in rings.tokens_of(running):
                    tokens.append(token.id)
            assert tokens == rings.reference(models(), PROMPT, 8)[0][: len(tokens)]
            assert tokens
            with pytest.raises(EngineError, match="stage 2"):
                await collected(waiting)
            await running.aclose()
            assert head.state()[0] == "broken"
            with pytest.raises(EngineError, match=r"tiny cannot answer: .*stage 2"):
                head.generate(request())
            assert len(broken) == 1


async def test_texts_and_tokens(
    weights: Weights, models: Callable[..., Path], tmp_path: Path
) -> None:
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        async with serving(weights, pipeline) as head:
            assert (head.name, head.context, head.bos, head.eos) == ("tiny", 512, "<s>", "</s>")
            assert head.chat_template is not None
            ids = head.tokenize("the ring, ünïcode\n", special=False)
            assert ids[0] == 1
            assert head.detokenize(ids) == "the ring, ünïcode\n".encode()
            # Control tokens are control tokens only when that is asked for, and BOS comes once.
            assert head.tokenize("<s>the</s>", special=True).count(1) == 1
            assert 2 in head.tokenize("<s>the</s>", special=True)
            assert 2 not in head.tokenize("<s>the</s>", special=False)
            assert head.tokenize("", special=True) == (1,)
            ids_of_the = head.tokenize("the", special=True)
            with pytest.raises(UsageError, match="token -1"):
                head.detokenize((-1,))
            bare = head.tokenize("<s>the</s>", special=True, around=False)
            assert (bare[0], bare[-1]) == (1, 2) and bare.count(1) == 1
            assert head.tokenize("the", special=True, around=False) == ids_of_the[1:]
            labels = head.labels(ids_of_the)
            assert labels[0] == b"<s>" and b"".join(labels[1:]).strip() == b"the"
            with pytest.raises(UsageError, match="token 100000"):
                head.labels((100_000,))
            generation = head.generate(request())
            pieces = [token.piece async for token in rings.tokens_of(generation)]
            assert all(isinstance(piece, bytes) for piece in pieces)


def test_what_llama_cpp_cannot_load_is_said_in_its_words(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    import tiny_models as tiny

    path = tiny.write_model(tmp_path / "alien.gguf", architecture="alien")
    with pytest.raises(ModelError, match=r"cannot load alien.gguf: .*architecture.*alien"):
        Weights(path)
