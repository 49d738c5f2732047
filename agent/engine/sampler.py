"""llama.cpp's own samplers, chained as llama.cpp chains them.

For the head; one sampler for each generation, since samplers remember what they chose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import llama_cpp

from agent.engine.generation import Sampling
from agent.engine.llama import Context
from agent.errors import UsageError

# llama.cpp's default: how many of the last tokens the penalties look at.
PENALTY_TOKENS = 64
_RANDOM_SEED = 0xFFFFFFFF
_MIN_KEEP = 1


def check(sampling: Sampling, n_vocab: int) -> None:
    """Raise UsageError for a value that llama.cpp could not use."""
    for name in (
        "temperature",
        "top_p",
        "min_p",
        "repeat_penalty",
        "frequency_penalty",
        "presence_penalty",
    ):
        if not math.isfinite(getattr(sampling, name)):
            raise UsageError(f"{name} must be a finite number.")
    if sampling.temperature < 0.0:
        raise UsageError(f"temperature must not be negative, it is {sampling.temperature}.")
    if sampling.repeat_penalty <= 0.0:
        raise UsageError(f"repeat_penalty must be above 0, it is {sampling.repeat_penalty}.")
    for token, bias in sampling.logit_bias:
        if not 0 <= token < n_vocab or math.isnan(bias):
            raise UsageError(f"logit_bias {bias} for token {token} makes no sense here.")


class Sampler:
    """A sampler chain: biases, penalties, then greedy, or top-k, top-p, min-p and temperature."""

    def __init__(self, sampling: Sampling, n_vocab: int, prompt: Sequence[int]) -> None:
        parameters = llama_cpp.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self._chain: Any = llama_cpp.llama_sampler_chain_init(parameters)
        for link in self._links(sampling, n_vocab):
            llama_cpp.llama_sampler_chain_add(self._chain, link)
        for token in prompt[-PENALTY_TOKENS:]:
            llama_cpp.llama_sampler_accept(self._chain, token)

    @staticmethod
    def _links(sampling: Sampling, n_vocab: int) -> list[Any]:
        links: list[Any] = []
        if sampling.logit_bias:
            biases = (llama_cpp.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
            links.append(
                llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(sampling.logit_bias), biases)
            )
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if penalties != (1.0, 0.0, 0.0):
            links.append(
                llama_cpp.llama_sampler_init_penalties(n_vocab, PENALTY_TOKENS, *penalties)
            )
        if sampling.temperature == 0.0:
            links.append(llama_cpp.llama_sampler_init_greedy())
            return links
        seed = _RANDOM_SEED if sampling.seed is None else sampling.seed & _RANDOM_SEED
        links += [
            llama_cpp.llama_sampler_init_top_k(sampling.top_k),
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, _MIN_KEEP),
            llama_cpp.llama_sampler_init_min_p(sampling.min_p, _MIN_KEEP),
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_dist(seed),
        ]
        return links

    def sample(self, context: Context, row: int) -> int:
        """Choose the token after a row of the last batch, a marked one, and remember it."""
        return int(llama_cpp.llama_sampler_sample(self._chain, context.handle, row))

    def close(self) -> None:
        """Free the chain; harmless when done twice."""
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None
