"""The shapes of OpenAI's answers: objects, usage and errors.

A core, used by `schema.py` (errors), `app.py` and `deliver.py`. What requests look like is in
`schema.py`, what the answers of the endpoints look like in `forms.py`.
Next to what OpenAI defines, answers carry `timings` with the names that llama-server gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from agent.engine.generation import Timings
from agent.errors import CoveyError, UsageError

FinishReason = Literal["stop", "length", "tool_calls"]
Json = dict[str, Any]


class ApiError(UsageError):
    """A request that cannot be served as it is; `param` names the field that is at fault."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.http_status = status
        self.param = param
        self.code = code


def error_body(error: CoveyError, status: int | None = None) -> Json:
    """Return `error` as OpenAI's error object; `status` replaces the error's own HTTP status."""
    status = status or error.http_status
    return {
        "error": {
            "message": error.line(),
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
    }


def model_object(name: str, created: int, context: int, capabilities: list[str]) -> Json:
    """Return one entry of /v1/models; `created` in unix seconds, `context` in tokens.

    `capabilities` name what may be asked for: chat, completions, embeddings, rerank.
    """
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "covey",
        "context_length": context,
        "capabilities": capabilities,
    }


def together(costs: Sequence[Timings]) -> Timings:
    """Return what several answers to one prompt cost: all began when the first had its prompt."""
    first = costs[0]
    return Timings(
        first.prompt_tokens, first.prompt_s, sum(cost.generated for cost in costs),
        max(cost.generate_s for cost in costs), first.reused,
        sum(cost.drafted for cost in costs), sum(cost.accepted for cost in costs),
    )  # fmt: skip


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Json:
    """Return the token counts of one answer; `cached_tokens` of the prompt were in the caches."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def timings(cost: Timings) -> Json:
    """Return what an answer cost under llama-server's names: milliseconds and tokens/s."""
    return {
        "cache_n": cost.reused,
        **_timed("prompt", cost.prompt_tokens - cost.reused, cost.prompt_s),
        **_timed("predicted", cost.generated, cost.generate_s),
        **({"draft_n": cost.drafted, "draft_n_accepted": cost.accepted} if cost.drafted else {}),
    }


def _timed(name: str, tokens: int, seconds: float) -> Json:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(seconds * 1e3, 3),
        f"{name}_per_token_ms": round(seconds * 1e3 / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens / seconds, 3) if seconds > 0 else 0.0,
    }
