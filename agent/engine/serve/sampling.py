"""How clients ask for tokens to be chosen: OpenAI's fields, llama-server's, and vLLM's names.

A core, used by `schema.py`, whose requests have these fields. The names and the defaults are those
of `generation.Sampling` wherever a field says nothing else.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.engine.generation import SAMPLERS, SamplerName, Sampling

_MAX_INT32 = 2**31 - 1
# llama.cpp's seeds have 32 bits, of which the highest value means "choose one".
SEEDS = 2**32 - 1
# llama.cpp looks for each breaker in every token of the vocabulary.
MAX_BREAKERS = 16
MAX_BREAKER_CHARS = 40

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=_MAX_INT32)]
_Count = Annotated[int, Meta(ge=0, le=_MAX_INT32)]
_Window = Annotated[int, Meta(ge=-1, le=_MAX_INT32)]
_Breaker = Annotated[str, Meta(min_length=1, max_length=MAX_BREAKER_CHARS)]


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a request that say how to sample."""

    temperature: NotNegative | None = None
    dynatemp_range: NotNegative | None = None
    dynatemp_exponent: float | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MAX_INT32)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    top_n_sigma: float | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    min_keep: _Count | None = None
    seed: int | None = None
    repeat_last_n: _Window | None = None
    repeat_penalty: Positive | None = None
    repetition_penalty: Positive | None = None  # vLLM's name for the same
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    dry_multiplier: NotNegative | None = None
    dry_base: float | None = None
    dry_allowed_length: _Count | None = None
    dry_penalty_last_n: _Window | None = None
    dry_sequence_breakers: Annotated[list[_Breaker], Meta(max_length=MAX_BREAKERS)] | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: NotNegative | None = None
    mirostat_eta: float | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None
    samplers: Annotated[list[SamplerName], Meta(max_length=2 * len(SAMPLERS))] | None = None

    def sampling(self, grammar: str) -> Sampling:
        """Return what was asked for; the answer has to follow `grammar` if that is not empty."""
        given: dict[str, Any] = {
            name: value for name in _AS_THEY_ARE if (value := getattr(self, name)) is not None
        }
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)  # 0 is llama.cpp's "off", and -1 is vLLM's
        repeat = self.repeat_penalty or self.repetition_penalty
        if repeat is not None:
            given["repeat_penalty"] = repeat
        if self.seed is not None and self.seed != -1:  # -1 is llama-server's "choose one"
            given["seed"] = self.seed % SEEDS
        if self.dry_sequence_breakers is not None:
            given["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        if self.samplers is not None:
            given["samplers"] = tuple(self.samplers)
        if self.logit_bias:
            given["logit_bias"] = tuple(sorted(self.logit_bias.items()))
        return Sampling(**given, grammar=grammar)


_AS_THEY_ARE = tuple(
    field
    for field in SamplingFields.__struct_fields__
    if field
    not in (
        "top_k", "repeat_penalty", "repetition_penalty", "seed", "dry_sequence_breakers",
        "logit_bias", "samplers",
    )
)  # fmt: skip
