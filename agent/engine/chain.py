"""llama.cpp's own samplers, chained as llama.cpp chains them.

For the head: it makes a sampler for each answer, and keeps what is costly to make.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import llama_cpp
import numpy as np

from agent.engine.generation import SAMPLERS, SamplerName, Sampling
from agent.engine.grammar import compile_grammar
from agent.engine.sampler import Candidates, Sampler
from agent.engine.vocabulary import Vocabulary
from agent.errors import UsageError

_RANDOM_SEED = 0xFFFFFFFF
# llama.cpp's value, from the paper: how many candidates the estimate of Zipf's exponent looks at.
_MIROSTAT_CANDIDATES = 100
_FLOAT_MOST = float(np.finfo(np.float32).max)
# Grammars and breakers that are kept ready: a request compiles them once for all its answers.
_READY = 32


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
        self._candidates = Candidates(vocabulary.size)
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
        """Return the links behind the biases, the last of which chooses."""
        seed = _RANDOM_SEED if sampling.seed is None else sampling.seed & _RANDOM_SEED
        if sampling.mirostat:
            return [llama_cpp.llama_sampler_init_temp(sampling.temperature),
                    self._mirostat(sampling, seed)]  # fmt: skip
        greedy = _greedy(sampling)
        names: tuple[SamplerName, ...] = ("penalties", "dry") if greedy else sampling.samplers
        links = [self._link(name, sampling, seed) for name in names]
        last = (
            llama_cpp.llama_sampler_init_greedy()
            if greedy
            else llama_cpp.llama_sampler_init_dist(seed)
        )
        return [*(link for link in links if link is not None), last]

    def _link(self, name: SamplerName, s: Sampling, seed: int) -> Any:
        """Return one of llama.cpp's samplers, None where it would do nothing."""
        match name:
            case "penalties":
                return None if not _penalizes(s) else llama_cpp.llama_sampler_init_penalties(
                    self._vocabulary.size, self._window(s.repeat_last_n),
                    s.repeat_penalty, s.frequency_penalty, s.presence_penalty,
                )  # fmt: skip
            case "dry":
                return self._breakers(s) if _dry(s) else None
            case "top_n_sigma":
                if s.top_n_sigma <= 0.0:
                    return None
                return llama_cpp.llama_sampler_init_top_n_sigma(s.top_n_sigma)
            case "top_k":
                return llama_cpp.llama_sampler_init_top_k(s.top_k)
            case "typ_p":
                if s.typical_p >= 1.0:
                    return None
                return llama_cpp.llama_sampler_init_typical(s.typical_p, s.min_keep)
            case "top_p":
                return llama_cpp.llama_sampler_init_top_p(s.top_p, s.min_keep)
            case "min_p":
                return llama_cpp.llama_sampler_init_min_p(s.min_p, s.min_keep)
            case "xtc":
                return None if s.xtc_probability == 0.0 else llama_cpp.llama_sampler_init_xtc(
                    s.xtc_probability, s.xtc_threshold, s.min_keep, seed
                )  # fmt: skip
            case "temperature":
                return llama_cpp.llama_sampler_init_temp_ext(
                    s.temperature, s.dynatemp_range, s.dynatemp_exponent
                )

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


def _penalizes(sampling: Sampling) -> bool:
    penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return sampling.repeat_last_n != 0 and penalties != (1.0, 0.0, 0.0)


def _dry(sampling: Sampling) -> bool:
    return not sampling.mirostat and sampling.dry_multiplier > 0.0 and sampling.dry_base >= 1.0


def _greedy(sampling: Sampling) -> bool:
    """Say whether the likeliest token is what llama.cpp's whole chain would choose."""
    return (
        sampling.samplers == SAMPLERS
        and sampling.temperature == 0.0
        and sampling.dynatemp_range == 0.0
        and sampling.typical_p >= 1.0
        and sampling.xtc_probability == 0.0
    )
