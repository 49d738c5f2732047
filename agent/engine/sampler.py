"""llama.cpp's own samplers, chained as llama.cpp chains them.

For the head; one sampler for each generation, since samplers remember what they chose.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import llama_cpp
import numpy as np

from agent.engine.generation import Sampling
from agent.engine.grammar import compile_grammar
from agent.engine.llama import Context
from agent.engine.vocabulary import Vocabulary
from agent.errors import UsageError

_RANDOM_SEED = 0xFFFFFFFF
# llama.cpp's value, from the paper: how many candidates the estimate of Zipf's exponent looks at.
_MIROSTAT_CANDIDATES = 100
_FLOAT_MOST = float(np.finfo(np.float32).max)
# Grammars and breakers that are kept ready: a request compiles them once for all its answers.
_READY = 32
# CPU seconds to go on by one token that is known: usually 0.0001, and where a grammar is so
# ambiguous that it needs more, the next token would take it hundreds of times as long.
GRAMMAR_STEP_S = 0.01
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def check(sampling: Sampling, n_vocab: int) -> None:
    """Raise UsageError for a value that llama.cpp could not use."""
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if isinstance(value, float) and not abs(value) <= _FLOAT_MOST:
            raise UsageError(f"{field.name} must be a finite number.")
    for name in ("temperature", "dynatemp_range", "dry_multiplier", "mirostat_tau"):
        if getattr(sampling, name) < 0.0:
            raise UsageError(f"{name} must not be negative, it is {getattr(sampling, name)}.")
    if sampling.repeat_penalty <= 0.0:
        raise UsageError(f"repeat_penalty must be above 0, it is {sampling.repeat_penalty}.")
    if sampling.mirostat not in (0, 1, 2):
        raise UsageError(f"mirostat must be 0, 1 or 2, it is {sampling.mirostat}.")
    for token, bias in sampling.logit_bias:
        if not 0 <= token < n_vocab or math.isnan(bias):
            raise UsageError(f"logit_bias {bias} for token {token} makes no sense here.")
    if any("\0" in breaker or not breaker for breaker in sampling.dry_sequence_breakers):
        raise UsageError("dry_sequence_breakers must be texts that are not empty.")


class Samplers:
    """Makes the samplers of one model, whose context has `context` tokens.

    `prepare` may be called from any thread, `make` and its samplers from the engine thread alone.
    """

    def __init__(self, vocabulary: Vocabulary, context: int) -> None:
        self._vocabulary = vocabulary
        self._context = context
        self._candidates = _Candidates(vocabulary.size)
        self._lock = threading.Lock()
        self._ready: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def prepare(self, sampling: Sampling) -> None:
        """Raise UsageError for what llama.cpp could not use; it may take a tenth of a second."""
        check(sampling, self._vocabulary.size)
        if sampling.grammar:
            llama_cpp.llama_sampler_free(self._grammar(sampling))
        if _dry(sampling):
            llama_cpp.llama_sampler_free(self._breakers(sampling))
        if sampling.ignore_eos:
            self._vocabulary.ends_all()

    def make(self, sampling: Sampling, prompt: Sequence[int]) -> Sampler:
        """Return a sampler for the answer to a prompt; raises what `prepare` raises."""
        biases = dict(sampling.logit_bias)
        if sampling.ignore_eos:
            biases |= dict.fromkeys(self._vocabulary.ends_all(), -math.inf)
        sampler = Sampler(self._candidates, self._grammar(sampling) if sampling.grammar else None)
        sampler.add_biases(biases)
        for link in self._links(sampling):
            sampler.add(link)
        # Only these two look at what was said before.
        window = 0 if sampling.mirostat else max(
            self._window(sampling.repeat_last_n) if _penalizes(sampling) else 0,
            self._window(sampling.dry_penalty_last_n) if _dry(sampling) else 0,
        )  # fmt: skip
        sampler.hear(prompt[max(0, len(prompt) - window) :])
        return sampler

    def close(self) -> None:
        """Free what is kept ready."""
        with self._lock:
            while self._ready:
                llama_cpp.llama_sampler_free(self._ready.popitem()[1])

    def _links(self, sampling: Sampling) -> list[Any]:
        """Return the links behind the biases, in llama.cpp's order."""
        seed = _RANDOM_SEED if sampling.seed is None else sampling.seed & _RANDOM_SEED
        if sampling.mirostat:
            return [llama_cpp.llama_sampler_init_temp(sampling.temperature),
                    self._mirostat(sampling, seed)]  # fmt: skip
        links = []
        if _penalizes(sampling):
            links.append(
                llama_cpp.llama_sampler_init_penalties(
                    self._vocabulary.size, self._window(sampling.repeat_last_n),
                    sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty,
                )
            )  # fmt: skip
        if _dry(sampling):
            links.append(self._breakers(sampling))
        if _greedy(sampling):
            return [*links, llama_cpp.llama_sampler_init_greedy()]
        keep = sampling.min_keep
        if sampling.top_n_sigma > 0.0:
            links.append(llama_cpp.llama_sampler_init_top_n_sigma(sampling.top_n_sigma))
        links.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1.0:
            links.append(llama_cpp.llama_sampler_init_typical(sampling.typical_p, keep))
        links.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, keep))
        links.append(llama_cpp.llama_sampler_init_min_p(sampling.min_p, keep))
        if sampling.xtc_probability > 0.0:
            links.append(
                llama_cpp.llama_sampler_init_xtc(
                    sampling.xtc_probability, sampling.xtc_threshold, keep, seed
                )
            )
        links.append(
            llama_cpp.llama_sampler_init_temp_ext(
                sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
            )
        )
        return [*links, llama_cpp.llama_sampler_init_dist(seed)]

    def _mirostat(self, sampling: Sampling, seed: int) -> Any:
        tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
        if sampling.mirostat == 2:
            return llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)
        return llama_cpp.llama_sampler_init_mirostat(
            self._vocabulary.size, seed, tau, eta, _MIROSTAT_CANDIDATES
        )

    def _window(self, tokens: int) -> int:
        """Return a number of last tokens, of which -1 means all."""
        return self._context if tokens < 0 else min(tokens, self._context)

    def _grammar(self, sampling: Sampling) -> Any:
        return self._copy(
            ("grammar", sampling.grammar),
            lambda: compile_grammar(sampling.grammar, self._vocabulary.handle),
        )

    def _breakers(self, sampling: Sampling) -> Any:
        """Return a DRY sampler: llama.cpp looks for its breakers in every token there is."""
        words = [breaker.encode() for breaker in sampling.dry_sequence_breakers]
        arguments = (
            sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length,
            self._window(sampling.dry_penalty_last_n),
        )  # fmt: skip

        def make() -> Any:
            array = (ctypes.c_char_p * len(words))(*words)
            return llama_cpp.llama_sampler_init_dry(
                self._vocabulary.handle, *arguments, array, len(words)
            )

        return self._copy(("dry", *arguments, *words), make)

    def _copy(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return a copy of a sampler that has not been used yet."""
        with self._lock:
            if key in self._ready:
                self._ready.move_to_end(key)
                return llama_cpp.llama_sampler_clone(self._ready[key])
        made = make()  # without the lock: the engine thread must not wait for it
        with self._lock:
            if key in self._ready:
                return made
            self._ready[key] = made
            if len(self._ready) > _READY:
                llama_cpp.llama_sampler_free(self._ready.popitem(last=False)[1])
            return llama_cpp.llama_sampler_clone(made)


class Sampler:
    """A chain of samplers, and a grammar if there is one, which it owns."""

    def __init__(self, candidates: _Candidates, grammar: Any) -> None:
        parameters = llama_cpp.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self._chain: Any = llama_cpp.llama_sampler_chain_init(parameters)
        self._grammar = grammar
        self._candidates = candidates
        self._forbidden = np.empty(0, np.int32)

    def add(self, link: Any) -> None:
        """Append a sampler, which the chain owns from now on."""
        llama_cpp.llama_sampler_chain_add(self._chain, link)

    def add_biases(self, biases: dict[int, float]) -> None:
        """Append what is added to the logits of these tokens."""
        if biases:
            array = (llama_cpp.llama_logit_bias * len(biases))(*biases.items())
            n_vocab = len(self._candidates.data)
            self.add(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(biases), array))
            self._forbidden = np.array(
                [token for token, bias in biases.items() if bias == -math.inf], np.int32
            )

    def hear(self, tokens: Sequence[int]) -> None:
        """Let the chain know tokens that it did not choose; they are no part of the grammar."""
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, row: int) -> int:
        """Choose the token after a row of the last batch, a marked one, and remember it.

        Raises UsageError when the grammar allows none, or takes too long.
        """
        if self._grammar is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, context.handle, row))
        token = self._fitting(context.logits(row))
        began = time.thread_time()
        llama_cpp.llama_sampler_accept(self._grammar, token)
        if time.thread_time() - began > GRAMMAR_STEP_S:
            raise UsageError(
                "the grammar is too ambiguous to go on.",
                hint="Its alternatives should begin differently.",
            )
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _fitting(self, logits: Any) -> int:
        """Choose a token that the grammar allows.

        The grammar looks at all tokens only when the chain's own choice does not fit: that costs
        it as much for each token of the vocabulary as for the one.
        """
        candidates = self._candidates
        candidates.fill(logits)
        token = candidates.choose(self._chain)
        if candidates.fits(self._grammar, token):
            return token
        candidates.fill(logits)
        candidates.apply(self._grammar)
        if not candidates.any_left(self._forbidden):
            raise UsageError("the grammar allows no token of this model here.")
        return candidates.choose(self._chain)

    def close(self) -> None:
        """Free the samplers; harmless when done twice."""
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)
            self._grammar = None


class _Candidates:
    """The tokens with their logits as llama.cpp's samplers want them, in place."""

    def __init__(self, n_vocab: int) -> None:
        self.data = np.zeros(n_vocab, _CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._array = _array_of(self.data)
        self._single = np.zeros(1, _CANDIDATE)

    def fill(self, logits: Any) -> None:
        """Take the logits (n_vocab) of a row."""
        self.data["id"] = self._ids
        self.data["logit"] = logits
        self.data["p"] = 0.0
        self._array = _array_of(self.data)

    def apply(self, sampler: Any) -> None:
        """Let a sampler change the logits, or leave fewer candidates."""
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def choose(self, chain: Any) -> int:
        """Let a chain choose; returns the token."""
        self.apply(chain)
        return int(self._array.data[self._array.selected].id)

    def fits(self, grammar: Any, token: int) -> bool:
        """Say whether a grammar goes on with a token."""
        self._single[0] = (token, 1.0, 0.0)
        llama_cpp.llama_sampler_apply(grammar, ctypes.byref(_array_of(self._single)))
        return bool(self._single["logit"][0] != -np.inf)

    def any_left(self, forbidden: Any) -> bool:
        """Say whether a token that is not among the forbidden can be chosen."""
        possible = self.data["logit"] != -np.inf
        possible[forbidden] = False
        return bool(possible.any())


def _array_of(data: Any) -> Any:
    pointer = data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    return llama_cpp.llama_token_data_array(pointer, len(data), -1, False)


def _penalizes(sampling: Sampling) -> bool:
    penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return sampling.repeat_last_n != 0 and penalties != (1.0, 0.0, 0.0)


def _dry(sampling: Sampling) -> bool:
    return not sampling.mirostat and sampling.dry_multiplier > 0.0 and sampling.dry_base >= 1.0


def _greedy(sampling: Sampling) -> bool:
    """Say whether the likeliest token is what llama.cpp's whole chain would choose."""
    return (
        sampling.temperature == 0.0
        and sampling.dynatemp_range == 0.0
        and sampling.typical_p >= 1.0
        and sampling.xtc_probability == 0.0
    )
