"""Answers that outlive their pipelines: whenever one breaks, over whatever comes next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import engine_rings as rings
import llama_cpp
import numpy as np
import pytest
import tiny_mamba

from agent.engine.draft_loading import load_draft
from agent.engine.engine_thread import HeadLimits
from agent.engine.generation import Finish, GenerationRequest, Sampling, Token
from agent.engine.generator import Generator, Job
from agent.engine.head import Head, HeadGeneration
from agent.engine.llama import Context, Weights
from agent.engine.pace import Measured
from agent.engine.pipeline import WholePipeline
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError

pytestmark = pytest.mark.slow

NO_END = ((2, -100.0),)
COUNT = 60
# More than there are slots; the grammar and the penalties look at what was said.
SAMPLINGS = [
    Sampling(temperature=0.0, logit_bias=NO_END),
    Sampling(temperature=1.3, seed=4, frequency_penalty=0.8, repeat_last_n=-1, logit_bias=NO_END),
    Sampling(temperature=1.1, seed=5, grammar='root ::= ("w" [0-9]+ | [a-z]){40,}'),
    Sampling(temperature=1.0, seed=6, dry_multiplier=0.8, logit_bias=NO_END),
    Sampling(seed=7, mirostat=2, logit_bias=NO_END),
    Sampling(temperature=0.0, repeat_penalty=1.4, logit_bias=NO_END),
]


@pytest.fixture
def path(models: Callable[..., Path]) -> Path:
    """Return a model whose bits do not depend on what is computed together."""
    return models(forgetful=True)


@pytest.fixture
def texts(path: Path) -> Iterator[Weights]:
    loaded = Weights(path, only_texts=True)
    yield loaded
    loaded.close()


def request(index: int, **changes: Any) -> GenerationRequest:
    fields = {"prompt": rings.prompt(5 + 4 * index, index), "sampling": SAMPLINGS[index],
              "max_tokens": COUNT, "logprobs": 2 if index % 2 else None, **changes}  # fmt: skip
    return GenerationRequest(**fields)


async def collected(generation: HeadGeneration) -> list[Token]:
    async with asyncio.timeout(30):
        return [token async for token in rings.tokens_of(generation)]


class Course:
    """A head that gets one pipeline after the other."""

    def __init__(self, texts: Weights, path: Path, folder: Path, wait_s: float = 60.0) -> None:
        self.path, self.folder = path, folder
        self.loop = asyncio.get_running_loop()
        self.broken: asyncio.Queue[CoveyError] = asyncio.Queue()
        self.freed: list[bool] = []
        self.stack = ExitStack()
        limits = HeadLimits(rings.N_CTX, rings.N_BATCH, rings.SLOTS, rings.SEQUENCES, wait_s=wait_s)
        self.head = Head("tiny", texts, limits, self._hear)

    def _hear(self, error: CoveyError) -> None:
        self.loop.call_soon_threadsafe(self.broken.put_nowait, error)

    def start(self, boundaries: Sequence[int], after: int | None) -> None:
        """Serve over another pipeline, which breaks after so many batches."""
        ring = self.stack.enter_context(rings.pipeline(self.path, self.folder, boundaries))
        pipeline: Any = ring if after is None else rings.Breaking(ring, after)

        def free() -> None:
            self.freed.append(pipeline.context.handle is None)

        self.head.start(pipeline, None, free)

    async def again(self, boundaries: Sequence[int], after: int | None) -> None:
        """Go on over another."""
        await self.head.leave()
        self.start(boundaries, after)

    async def over(self, found: asyncio.Future[Any]) -> bool:
        """Wait for the answers, or for the pipeline to break."""
        breaking = asyncio.create_task(self.broken.get())
        async with asyncio.timeout(30):
            await asyncio.wait({found, breaking}, return_when=asyncio.FIRST_COMPLETED)
        breaking.cancel()
        return found.done()

    async def breaks(self) -> CoveyError:
        async with asyncio.timeout(20):
            return await self.broken.get()

    @property
    def generator(self) -> Generator:
        found = self.head._thread._generator
        assert found is not None
        return found


@asynccontextmanager
async def course(
    texts: Weights, path: Path, folder: Path, wait_s: float = 60.0
) -> AsyncIterator[Course]:
    made = Course(texts, path, folder, wait_s)
    try:
        yield made
    finally:
        await made.head.stop()
        made.stack.close()


@pytest.fixture
async def expected(texts: Weights, path: Path, tmp_path: Path) -> list[list[Token]]:
    async with course(texts, path, tmp_path) as made:
        made.start((), None)
        runs = [made.head.generate(request(index)) for index in range(len(SAMPLINGS))]
        return list(await asyncio.gather(*map(collected, runs)))


@pytest.mark.parametrize("seed", range(6))
async def test_each_token_comes_once_however_many_pipelines_break(
    texts: Weights, path: Path, tmp_path: Path, seed: int, expected: list[list[Token]]
) -> None:
    random = np.random.default_rng(seed)
    async with course(texts, path, tmp_path) as made:
        made.start((), int(random.integers(0, 30)))
        runs = [made.head.generate(request(index)) for index in range(len(SAMPLINGS))]
        found = asyncio.gather(*map(collected, runs))
        others: list[tuple[int, ...]] = [(5, 9), (), (2, 6, 8), ()]
        while not await made.over(found):
            assert all(made.freed)
            state, reason = made.head.state()
            assert state == "loading" and "for it to be made anew" in reason
            boundaries = others.pop(0)
            # By then each has computed again what it had said, and says more.
            await made.again(boundaries, int(random.integers(14, 30)) if others else None)
        for tokens, wanted in zip(await found, expected, strict=True):
            assert [token.id for token in tokens] == [token.id for token in wanted]
            assert [token.piece for token in tokens] == [token.piece for token in wanted]
            assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in wanted])
        for run, wanted in zip(runs, expected, strict=True):
            assert run.finish in (Finish.LENGTH, Finish.STOP)
            assert run.timings.generated == len(wanted)
            assert run.timings.prompt_tokens == len(run.job.request.prompt)
        assert made.freed and all(made.freed)


async def test_a_new_pipeline_is_measured_when_nobody_waits_and_prefixes_stay(
    texts: Weights, path: Path, tmp_path: Path
) -> None:
    async with course(texts, path, tmp_path) as made:
        made.start((5, 9), 8)
        run = made.head.generate(request(0))
        tokens = asyncio.create_task(collected(run))
        await made.breaks()
        assert made.generator.busy
        await made.again((), None)
        first = [token.id for token in await tokens]
        async with asyncio.timeout(20):
            while not made.generator.measured:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        following = (*run.job.request.prompt, *first, 17)
        again = made.head.generate(request(0, prompt=following, max_tokens=3))
        assert len(await collected(again)) == 3
        assert again.timings.reused == len(following) - 2


async def test_who_waits_too_long_is_told_why_and_another_pipeline_serves_others(
    texts: Weights, path: Path, tmp_path: Path
) -> None:
    async with course(texts, path, tmp_path, wait_s=0.2) as made:
        made.start((), 20)
        runs = [made.head.generate(request(index)) for index in range(len(SAMPLINGS))]
        for run in runs:
            with pytest.raises(EngineError, match="stage 2"):
                await collected(run)
        state, reason = made.head.state()
        assert state == "broken" and "stage 2" in reason
        with pytest.raises(EngineError, match=r"tiny cannot answer: .*stage 2"):
            made.head.generate(request(0))
        await made.again((), None)
        assert made.head.state() == ("ready", "")
        assert len(await collected(made.head.generate(request(0)))) == COUNT


async def test_while_another_is_made_nobody_is_hurried_and_if_it_fails_they_wait_again(
    texts: Weights, path: Path, tmp_path: Path
) -> None:
    async with course(texts, path, tmp_path, wait_s=0.3) as made:
        made.start((), 3)  # guesses may end the answer soon
        run, late = made.head.generate(request(0)), None
        found = asyncio.create_task(collected(run))
        await made.breaks()
        await made.head.leave()
        await asyncio.sleep(0.5)
        assert made.head.state()[0] == "loading" and not found.done()
        # One more answer of a request that was there already.
        late = made.head.generate(request(1))
        assert "2 answers wait" in made.head.state()[1]
        await late.aclose()
        assert "1 answer waits" in made.head.state()[1]
        made.head.missed(EngineError("stage 1 did not come."))
        assert made.head.state()[1].startswith("stage 1 did not come; 1 answer")
        with pytest.raises(EngineError, match="did not come"):
            await found


async def test_a_pipeline_is_left_at_once_and_cannot_be_replaced_before(
    texts: Weights, path: Path, tmp_path: Path, expected: list[list[Token]]
) -> None:
    async with course(texts, path, tmp_path) as made:
        made.start((5, 9), None)
        with pytest.raises(ValueError, match="was not left"):
            made.start((), None)
        runs = [made.head.generate(request(index)) for index in range(len(SAMPLINGS))]
        found = asyncio.gather(*map(collected, runs))
        for boundaries in [(2, 6, 8), (), (5, 9)]:
            await asyncio.sleep(0.02)
            await made.head.leave()
            assert made.head.state()[1].startswith("the ring is being replaced; ")
            made.start(boundaries, None)
        said = [[token.id for token in tokens] for tokens in await found]
        assert said == [[token.id for token in tokens] for tokens in expected]
        assert made.freed == [True] * 3
        assert made.broken.empty()


async def test_whose_rows_each_pipeline_breaks_by_ends_and_the_others_go_on(
    texts: Weights, path: Path, tmp_path: Path
) -> None:
    async with course(texts, path, tmp_path) as made:
        made.start((), 0)
        culprits = [made.head.generate(request(index)) for index in range(rings.SLOTS)]
        patient = made.head.generate(request(5))
        others = asyncio.create_task(collected(patient))
        for after in (0, 0, 0, None):
            await made.breaks()
            await made.again((), after)
        ended = await asyncio.gather(*map(collected, culprits), return_exceptions=True)
        # The first batch has rows of some of them alone.
        errors = [each for each in ended if isinstance(each, EngineError)]
        assert errors and all("stage 2" in error.message for error in errors)
        assert len(await others) == COUNT


def test_a_vocabulary_without_weights_says_the_same(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    for path in (models(), _bundled()):
        full, texts = Weights(path), Weights(path, only_texts=True)
        try:
            one, other = Vocabulary(full), Vocabulary(texts)
            assert (one.size, one.bos, one.eos) == (other.size, other.bos, other.eos)
            assert one.ends_all() == other.ends_all()
            every = range(one.size)
            assert [one.piece(token) for token in every] == [other.piece(token) for token in every]
            assert [one.label(token) for token in every] == [other.label(token) for token in every]
            for text in (
                "the ring of stages\n",
                "<s>ünï  çödé 12345</s><|im_end|>",
                "",
                "日本語 🙂",
            ):
                for special in (False, True):
                    ids = one.tokenize(text, special=special)
                    assert other.tokenize(text, special=special) == ids
                    assert other.detokenize(ids) == one.detokenize(ids)
                assert other.bare(text) == one.bare(text)
            assert texts.chat_template == full.chat_template is not None
            assert texts.template(b"tool_use") == full.template(b"tool_use")
        finally:
            full.close()
            texts.close()


def _bundled() -> Path:
    import agent.models.bundled as bundled

    return Path(bundled.__file__).parent / "covey-mini.gguf"


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches in f32: what is added up in which order then matters less."""
    defaults = llama_cpp.llama_context_default_params

    def parameters() -> object:
        found = defaults()
        found.type_k = found.type_v = llama_cpp.GGML_TYPE_F32
        return found

    monkeypatch.setattr(llama_cpp, "llama_context_default_params", parameters)


def told(generator: Generator, prompt: tuple[int, ...]) -> list[int]:
    said: list[int] = []
    greedy = Sampling(temperature=0.0, logit_bias=NO_END)
    generator.add(
        Job(GenerationRequest(prompt, COUNT, greedy), lambda token: said.append(token.id))
    )
    return said


@pytest.mark.usefixtures("precise")
def test_what_was_said_is_computed_again_as_it_was(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    path, prompt = models(), rings.prompt(40)
    weights = Weights(path)
    with (
        rings.pipeline(path, tmp_path, ()) as alone,
        rings.pipeline(path, tmp_path, (5, 9)) as first,
        rings.pipeline(path, tmp_path, (2, 6, 8)) as second,
    ):
        taps = [rings.Tap(alone), rings.Tap(first), rings.Tap(second)]
        said = []
        for tap, then in ((taps[0], None), (taps[1], taps[2])):
            generator = Generator(
                tap, Vocabulary(weights), context=rings.N_CTX, n_batch=rings.N_BATCH, guess=False
            )  # type: ignore[arg-type]
            said.append(told(generator, prompt))
            while generator.busy and (then is None or len(tap.logits) < 25):
                generator.step()
            if then is not None:
                generator.lose(EngineError("the ring is broken."))
                generator.go_on(then)  # type: ignore[arg-type]
                generator.run()
        assert said[0] == said[1]
        found = [*taps[1].logits[:25], *taps[2].logits]
        assert len(found) == len(taps[0].logits) == COUNT
        assert max(np.abs(a - b).max() for a, b in zip(taps[0].logits, found, strict=True)) < 1e-4
    weights.close()


def test_a_request_that_waits_has_measuring_put_off(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    weights = Weights(models())
    with rings.pipeline(models(), tmp_path, (5, 9)) as ring:
        generator = Generator(
            ring, Vocabulary(weights), context=rings.N_CTX, n_batch=rings.N_BATCH,
            slots=rings.SLOTS, sequences=rings.SEQUENCES,
        )  # fmt: skip
        said = told(generator, rings.prompt(20))
        generator.calibrate(lambda: generator.busy)
        some = ring.stats.batches
        assert not generator.measured
        assert generator._course is not None
        assert generator._course.measuring.known
        generator.run()
        assert len(said) == COUNT
        answered = ring.stats.batches
        while not generator.measured:
            generator.measure()
        assert ring.stats.batches > answered, "what was put off"
        assert some > 3, "an empty one, the least and the largest"
    weights.close()


@pytest.mark.usefixtures("precise")
def test_a_recurrent_model_goes_on(tmp_path: Path) -> None:
    weights = Weights(tiny_mamba.write(tmp_path / "mamba.gguf"))

    def pipeline() -> WholePipeline:
        return WholePipeline(Context(weights, rings.LIMITS, keeps_rows=False))

    found = []
    for moments in ((), (30, 70, 75)):
        used = pipeline()
        generator = Generator(
            used, Vocabulary(weights), context=rings.N_CTX, n_batch=rings.N_BATCH,
            slots=rings.SLOTS, sequences=rings.SEQUENCES,
        )  # fmt: skip
        generator.calibrate()
        found.append([told(generator, rings.prompt(20 + n, n)) for n in range(6)])
        steps = 0
        while generator.busy:
            generator.step()
            steps += 1
            if steps in moments:
                generator.lose(EngineError("the ring is broken."))
                used.close()
                used = pipeline()
                generator.go_on(used)
        used.close()
    assert found[0] == found[1]
    assert all(len(said) == COUNT for said in found[0])
    weights.close()


def links_are_long(generator: Generator) -> None:
    """Let it believe to have measured that, so that it asks its draft model."""
    assert generator._course is not None
    pace = generator._course.schedule.pace
    pace.learn([Measured(n, 0.01, 0.1) for n in (1, 2, 4)], 0.1)
    pace.drafts.learn([(1, 0.0001), (64, 0.0001)])


@pytest.mark.usefixtures("precise")
def test_a_draft_model_guesses_for_answers_that_go_on(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    weights = Weights(models())
    with (
        rings.pipeline(models(), tmp_path, (5, 9)) as first,
        rings.pipeline(models(), tmp_path, (4, 8)) as second,
    ):
        drafts = [
            load_draft(models(), weights, "tiny", rings.LIMITS, use_extra_bufts=True, gpu_layers=0)
            for _ in range(2)
        ]
        generator = Generator(
            first, Vocabulary(weights), context=rings.N_CTX, n_batch=rings.N_BATCH,
            slots=rings.SLOTS, sequences=rings.SEQUENCES, draft=drafts[0],
        )  # fmt: skip
        links_are_long(generator)
        # More than a draft model reads at once, and no token of their answers is nearly a tie.
        prompts = [rings.prompt(140 + n, n) for n in (14, 15)]
        said = [told(generator, prompt) for prompt in prompts]
        jobs = [answer.job for answer in generator._answers.values()]
        while min(map(len, said)) < 10:
            generator.step()
        assert all(answer.work.drafts.known > 140 for answer in generator._answers.values())
        generator.lose(EngineError("the ring is broken."))
        drafts[0].close()
        generator.go_on(second, drafts[1])
        links_are_long(generator)
        generator.run()
        # How often it is asked goes by measured times, which other work here disturbs.
        assert sum(job.timings.accepted for job in jobs) > COUNT // 4
        for prompt, tokens in zip(prompts, said, strict=True):
            assert tokens == rings.reference(models(), prompt, COUNT)[0]
        assert sorted(drafts[1]._free) == list(range(drafts[1].context.limits.n_seq))
        assert all(job.timings.generated == COUNT for job in jobs)
        for draft in drafts:
            draft.close()
            draft.context.weights.close()
    weights.close()
