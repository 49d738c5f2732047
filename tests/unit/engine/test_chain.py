"""llama.cpp's samplers: each against its definition in numpy, all against llama.cpp's own chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_rings as rings
import llama_cpp
import numpy as np
import pytest

from agent.engine.chain import Samplers
from agent.engine.frames import Remove
from agent.engine.generation import Finish, GenerationRequest, Sampling, Token
from agent.engine.generator import Generator, Job
from agent.engine.llama import Context, Weights
from agent.engine.logprobs import IMPOSSIBLE, logprobs
from agent.engine.turns import Batch
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, UsageError

pytestmark = pytest.mark.slow

PROMPT = rings.prompt(30)
DRAWS = 1500
# What is neutral in every sampler: all that is left is a softmax.
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
Array = np.ndarray


class Row:
    """A context with the logits of one row, and what is sampled from them."""

    def __init__(self, weights: Weights) -> None:
        self._vocabulary = Vocabulary(weights)
        self.samplers = Samplers(self._vocabulary, rings.N_CTX)
        self.context = Context(weights, rings.LIMITS, keeps_rows=False)
        count = len(PROMPT)
        self.context.decode_tokens(
            np.array(PROMPT, np.int32), np.zeros(count, np.int32), np.arange(count, dtype=np.int32),
            np.arange(count) == count - 1,
        )  # fmt: skip
        self.row = count - 1
        # Sharp enough that few tokens have most of the chances.
        self.logits = self.context.logits(self.row)
        self.logits *= 3

    def sample(self, prompt: tuple[int, ...] = (), **fields: Any) -> int:
        sampler = self.samplers.make(Sampling(**fields), prompt)
        try:
            return sampler.sample(self.context, self.row)
        finally:
            sampler.close()

    def shares(self, prompt: tuple[int, ...] = (), **fields: Any) -> Array:
        """Return how often each token comes over many seeds."""
        counts = np.zeros(len(self.logits))
        for seed in range(DRAWS):
            counts[self.sample(prompt, seed=seed, **{**PLAIN, **fields})] += 1
        return counts / DRAWS


@pytest.fixture(scope="module")
def row(models: Callable[..., Path]) -> Iterator[Row]:
    weights = Weights(models())
    made = Row(weights)
    yield made
    made.samplers.close()
    made.context.close()
    weights.close()


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def only(logits: Array, kept: Array) -> Array:
    return softmax(np.where(kept, logits, -np.inf))


def top_k(logits: Array, k: int) -> Array:
    return logits >= np.sort(logits)[-k]


def nucleus(logits: Array, p: float) -> Array:
    order = np.argsort(-logits)
    count = int(np.searchsorted(np.cumsum(softmax(logits)[order]), p)) + 1
    return np.isin(np.arange(len(logits)), order[:count])


def typical(logits: Array, p: float) -> Array:
    chances = softmax(logits)
    surprise = -np.log(chances)
    order = np.argsort(np.abs(surprise - (chances * surprise).sum()))
    count = int(np.searchsorted(np.cumsum(chances[order]), p, side="right")) + 1
    return np.isin(np.arange(len(logits)), order[:count])


def without_top(logits: Array, threshold: float) -> Array:
    chances = softmax(logits)
    above = np.flatnonzero(chances >= threshold)
    assert len(above) > 1
    return ~np.isin(np.arange(len(logits)), above[chances[above] > chances[above].min()])


def dynamic(logits: Array, low: float, high: float, exponent: float) -> Array:
    chances = softmax(logits)
    entropy = -(chances * np.log(chances)).sum() / math.log(len(logits))
    return softmax(logits / (low + (high - low) * entropy**exponent))


def penalized(
    logits: Array, said: tuple[int, ...], repeat: float, each: float, any_: float
) -> Array:
    counts = np.bincount(said, minlength=len(logits))
    scaled = np.where(logits > 0, logits / repeat, logits * repeat)
    return softmax(np.where(counts > 0, scaled - counts * each - any_, logits))


CASES: dict[str, tuple[dict[str, Any], Callable[[Array], Array]]] = {
    "plain": ({}, softmax),
    "temperature": ({"temperature": 0.5}, lambda x: softmax(x / 0.5)),
    "top_k": ({"top_k": 5}, lambda x: only(x, top_k(x, 5))),
    "top_p": ({"top_p": 0.7}, lambda x: only(x, nucleus(x, 0.7))),
    "min_p": ({"min_p": 0.2}, lambda x: only(x, softmax(x) >= 0.2 * softmax(x).max())),
    "typical_p": ({"typical_p": 0.6}, lambda x: only(x, typical(x, 0.6))),
    "top_n_sigma": ({"top_n_sigma": 1.0}, lambda x: only(x, x >= x.max() - x.std())),
    "xtc": (
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        lambda x: only(x, without_top(x, 0.05)),
    ),
    "dynatemp": (
        {"temperature": 0.7, "dynatemp_range": 0.5, "dynatemp_exponent": 2.0},
        lambda x: dynamic(x, 0.2, 1.2, 2.0),
    ),
    # Truncated first, by what the model says itself, then tempered.
    "order": (
        {"top_p": 0.5, "temperature": 3.0},
        lambda x: softmax(np.where(nucleus(x, 0.5), x / 3, -np.inf)),
    ),
    # The other way round: tempered first.
    "samplers": (
        {"samplers": ("temperature", "top_p"), "top_p": 0.5, "temperature": 1.5, "top_k": 1},
        lambda x: only(x / 1.5, nucleus(x / 1.5, 0.5)),
    ),
    "mirostat": (
        {"mirostat": 2, "mirostat_tau": 2.0},
        lambda x: only(x, -np.log2(softmax(x)) <= 4.0),
    ),
    "min_keep": (
        {"top_p": 0.0, "min_p": 1.0, "min_keep": 3},
        lambda x: only(x, top_k(x, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_sampler_has_the_distribution_of_its_definition(row: Row, name: str) -> None:
    fields, definition = CASES[name]
    expected = definition(row.logits.astype(np.float64))
    found = row.shares(**fields)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    assert np.abs(found - expected).sum() / 2 < 0.1
    if name != "plain":
        assert np.abs(found - softmax(row.logits)).sum() / 2 > 0.1, "it is no different from none"


def test_penalties_look_at_what_was_said_last(row: Row) -> None:
    best = int(row.logits.argmax())
    said = (best, best, *rings.prompt(20, seed=5))
    logits = row.logits.astype(np.float64)
    fields = {"repeat_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    found = row.shares(said, **fields)
    assert np.abs(found - penalized(logits, said, 1.5, 0.5, 0.25)).sum() / 2 < 0.1
    # The two that count are beyond the window, or the penalties are off.
    assert row.sample(said, temperature=0, presence_penalty=100.0, repeat_last_n=20) == best
    assert row.sample(said, temperature=0, presence_penalty=100.0, repeat_last_n=0) == best
    assert row.sample(said, temperature=0, presence_penalty=100.0, repeat_last_n=-1) != best


def test_dry_keeps_from_going_on_as_before(row: Row, models: Callable[..., Path]) -> None:
    best, second = (int(token) for token in np.argsort(-row.logits)[:2])
    run = (300, 301, 302, 303)
    said = (*run, best, 310, *run)
    gap = row.logits[best] - row.logits[second]
    # Four tokens repeat, two are allowed: the penalty is multiplier · 2^(4 - 2).
    for share, expected in ((1.1, second), (0.9, best)):
        fields = {"dry_multiplier": float(gap * share / 4), "dry_base": 2.0, "temperature": 0.0}
        assert row.sample(said, **fields) == expected
        assert row.sample(said, dry_penalty_last_n=5, **fields) == best
        # A breaker in the middle of what repeats makes it too short: w11 is the token 302.
        assert row.sample(said, dry_sequence_breakers=("w11",), **fields) == best
        broken = (*said[:-2], 3 + ord("*"), *said[-2:])
        assert row.sample(broken, **fields) == best


def test_greedy_is_the_likeliest_and_one_candidate_is_greedy(row: Row) -> None:
    best = int(row.logits.argmax())
    assert row.sample(temperature=0.0) == best
    for seed in range(20):
        assert row.sample(top_k=1, temperature=5.0, seed=seed) == best
        assert row.sample(temperature=0.0, mirostat=2, seed=seed) == best
    # Untempered, if that is what the samplers are.
    assert len({row.sample(temperature=0.0, samplers=("top_k",), seed=n) for n in range(30)}) > 3
    # Without the likeliest, greedy is the likeliest of the others, as in llama.cpp's whole chain.
    assert row.sample(temperature=0.0, xtc_probability=1.0, xtc_threshold=0.05) != best


def test_an_end_that_is_ignored_never_comes(row: Row) -> None:
    forced = {"logit_bias": ((2, 1000.0),), "temperature": 0.0}
    assert row.sample(**forced) == 2
    assert row.sample(ignore_eos=True, **forced) != 2


def own_chain(vocabulary: Any, n_vocab: int, sampling: Sampling) -> Any:
    """Build what llama.cpp's common sampler builds: every link, also those that do nothing."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    s, seed = sampling, sampling.seed
    words = [word.encode() for word in s.dry_sequence_breakers]
    links = [
        llama_cpp.llama_sampler_init_penalties(
            n_vocab, s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        ),
        llama_cpp.llama_sampler_init_dry(
            vocabulary, s.dry_multiplier, s.dry_base, s.dry_allowed_length, rings.N_CTX,
            (llama_cpp.ctypes.c_char_p * len(words))(*words), len(words),
        ),
        llama_cpp.llama_sampler_init_top_n_sigma(s.top_n_sigma),
        llama_cpp.llama_sampler_init_top_k(s.top_k),
        llama_cpp.llama_sampler_init_typical(s.typical_p, s.min_keep),
        llama_cpp.llama_sampler_init_top_p(s.top_p, s.min_keep),
        llama_cpp.llama_sampler_init_min_p(s.min_p, s.min_keep),
        llama_cpp.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, seed),
        llama_cpp.llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent),
        llama_cpp.llama_sampler_init_dist(seed),
    ]  # fmt: skip
    mirostats = {
        1: lambda tau, eta: llama_cpp.llama_sampler_init_mirostat(n_vocab, seed, tau, eta, 100),
        2: lambda tau, eta: llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta),
    }
    if s.mirostat:
        mirostat = mirostats[s.mirostat](s.mirostat_tau, s.mirostat_eta)
        links = [llama_cpp.llama_sampler_init_temp(s.temperature), mirostat]
    for link in links:
        llama_cpp.llama_sampler_chain_add(chain, link)
    return chain


def own_answer(path: Path, sampling: Sampling, count: int) -> list[int]:
    """Let llama.cpp alone answer with the whole model."""
    model = llama_cpp.Llama(
        str(path), n_ctx=rings.N_CTX, n_batch=rings.N_BATCH, n_ubatch=rings.N_BATCH, n_threads=1,
        n_threads_batch=1, verbose=False, logits_all=False,
    )  # fmt: skip
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    chain = own_chain(vocabulary, model.n_vocab(), sampling)
    try:
        for token in PROMPT:
            llama_cpp.llama_sampler_accept(chain, token)
        model.eval(list(PROMPT))
        answer = []
        for _ in range(count):
            answer.append(llama_cpp.llama_sampler_sample(chain, model.ctx, -1))
            if answer[-1] == 2:
                return answer[:-1]
            model.eval([answer[-1]])
        return answer
    finally:
        llama_cpp.llama_sampler_free(chain)
        model.close()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.0, "typical_p": 0.4},
        {"temperature": 0.0, "repeat_penalty": 1.4, "repeat_last_n": 100},
        {"temperature": 1.5, "typical_p": 0.8, "top_n_sigma": 2.0, "dynatemp_range": 0.5},
        {"temperature": 2.0, "xtc_probability": 0.5, "xtc_threshold": 0.02, "min_keep": 2},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1, "frequency_penalty": 0.4, "top_k": 100},
        {"mirostat": 1, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
        {"mirostat": 2, "mirostat_tau": 3.0, "presence_penalty": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("boundaries", [(), (5, 9)])
def test_answers_are_those_of_llama_cpps_own_chain_with_the_whole_model(
    models: Callable[..., Path], tmp_path: Path, boundaries: tuple[int, ...], fields: dict[str, Any]
) -> None:
    sampling = Sampling(seed=7, **fields)
    expected = own_answer(models(), sampling, 24)
    with rings.pipeline(models(), tmp_path, boundaries) as pipeline:
        assert [t.id for t in generated(pipeline, models(), sampling, 24)] == expected


def generated(
    pipeline: Any, path: Path, sampling: Sampling, count: int, **fields: Any
) -> list[Token]:
    """Return the tokens of an answer; raises what it ended with, if that is an error."""
    weights = Weights(path)
    vocabulary = Vocabulary(weights)
    tokens: list[Token] = []
    ends: list[Finish | CoveyError | None] = []
    generator = Generator(pipeline, vocabulary, context=rings.N_CTX, n_batch=rings.N_BATCH)
    request = GenerationRequest(PROMPT, count, sampling, **fields)
    try:
        generator.add(Job(request, tokens.append, ends.append))
        generator.run()
    finally:
        weights.close()
    if isinstance(ends[0], CoveyError):
        raise ends[0]
    # Each time a schedule of its own, which knows nothing of what the caches hold.
    pipeline.submit(Batch((Remove(0),)))
    pipeline.collect()
    return tokens


@pytest.mark.parametrize("boundaries", [(), (5, 9)])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(seed=3, top_k=5)])
def test_logprobs_are_those_of_the_model_itself(
    models: Callable[..., Path], tmp_path: Path, boundaries: tuple[int, ...], sampling: Sampling
) -> None:
    with rings.pipeline(models(), tmp_path, boundaries) as pipeline:
        tap = rings.Tap(pipeline)
        tokens = generated(tap, models(), sampling, 12, logprobs=4)
        unasked = generated(tap, models(), sampling, 12)
        assert [token.logprob for token in unasked] == [None] * 12
    for token, logits in zip(tokens, tap.logits[:12], strict=True):
        expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
        order = np.argsort(-expected)[:4]
        assert token.logprob == pytest.approx(expected[token.id], abs=1e-5)
        assert [likely.logprob for likely in token.likely] == pytest.approx(expected[order])
        if token.id == order[0]:
            assert token.likely[0].piece == token.piece


def test_control_tokens_are_written_where_that_is_asked_for(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    forced = Sampling(temperature=0.0, logit_bias=((1, 1000.0),))
    with rings.pipeline(models(), tmp_path, ()) as pipeline:
        [plain] = generated(pipeline, models(), forced, 1)
        [shown] = generated(pipeline, models(), forced, 1, written=frozenset({1}), logprobs=1)
        [ended] = generated(pipeline, models(), Sampling(temperature=0.0), 1, logprobs=400)
    assert (plain.id, plain.piece) == (1, b"")
    assert (shown.id, shown.piece, shown.likely != ()) == (1, b"<s>", True)
    assert {b"</s>", b"<s>"} <= {likely.piece for likely in ended.likely}


def test_as_many_logprobs_as_there_are_tokens_and_what_is_impossible() -> None:
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    own, likely = logprobs(logits, 1, 20)
    assert own == IMPOSSIBLE
    assert [token for token, _ in likely] == [0, 2, 1]
    assert [chance for _, chance in likely] == pytest.approx([-math.log(2)] * 2 + [IMPOSSIBLE])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"xtc_threshold": math.inf}, "xtc_threshold must be a finite number"),
        ({"temperature": 1e39}, "temperature must be a finite number"),
        ({"dynatemp_range": -1.0}, "dynatemp_range must not be negative"),
        ({"mirostat": 3}, "mirostat must be 0, 1 or 2"),
        ({"dry_sequence_breakers": ("",)}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ("a\0",)}, "dry_sequence_breakers"),
    ],
)
def test_values_that_llama_cpp_could_not_use(row: Row, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        row.samplers.prepare(Sampling(**fields))
