"""How Ollama's clients say what an answer is to be like: `options`, `format` and `think`.

A core, used by `ollama.py`. Options that Ollama takes for how a model is loaded (`num_ctx`,
`num_gpu`, `num_thread`, …) and those that nobody knows change nothing: the mesh's plan says how a
model runs, and Ollama too passes over what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects.port import Refused

# Ollama's names and llama.cpp's, which heads and llama-server take as they are.
_NAMES = """
    temperature top_k top_p min_p typical_p seed repeat_last_n repeat_penalty presence_penalty
    frequency_penalty mirostat mirostat_tau mirostat_eta
    dynatemp_range dynatemp_exponent top_n_sigma xtc_probability xtc_threshold min_keep
    dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
    logit_bias ignore_eos samplers
"""
_AS_THEY_ARE = frozenset(_NAMES.split())


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` as fields of OpenAI's and llama.cpp's; raises Refused.

    `max_tokens` is missing where the answer may go on as far as the context reaches.
    """
    fields = {
        name: value
        for name, value in options.items()
        if name in _AS_THEY_ARE and value is not None
    }  # fmt: skip
    limit = _limit(options.get("num_predict"))
    if limit > 0:  # -1 and -2 are Ollama's words for no limit
        fields["max_tokens"] = limit
    if stops := _stops(options.get("stop")):
        fields["stop"] = stops
    return fields


def _limit(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise Refused(400, 'option "num_predict" must be of type integer')
    return int(value)


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise Refused(400, 'option "stop" must be an array of strings')
    return [stop for stop in stops if stop]


def response_format(value: Any) -> dict[str, Any]:
    """Return the field for `format`: "json", a JSON schema, or nothing; raises Refused."""
    if value is None or value == "":
        return {}
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(value, dict):
        named = {"name": "format", "schema": value}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    raise Refused(400, 'invalid format: expected "json" or a JSON schema')


def thinking(value: bool | str | None) -> dict[str, Any]:
    """Return the field for `think`, which templates know as variables; their own default if None.

    `enable_thinking` is what the templates of Qwen and its kin look at, `reasoning_effort` those of
    models that know several levels.
    """
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"chat_template_kwargs": {"enable_thinking": value}}
    return {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": value}}


def probabilities(wanted: bool | None, top: int | None) -> dict[str, Any]:
    """Return the fields for `logprobs` and `top_logprobs`."""
    if not wanted:
        return {}
    return {"logprobs": True} | ({"top_logprobs": top} if top else {})
