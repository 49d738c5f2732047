"""The shapes of OpenAI's answers: objects, stream chunks, usage and errors.

A core, used by `schema.py` (errors) and `app.py`. What requests look like is in `schema.py`.
Next to what OpenAI defines, answers carry `timings` with the names that llama-server gives them.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from agent.engine.generation import Timings
from agent.errors import CoveyError, UsageError

FinishReason = Literal["stop", "length"]
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
    }


def _timed(name: str, tokens: int, seconds: float) -> Json:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(seconds * 1e3, 3),
        f"{name}_per_token_ms": round(seconds * 1e3 / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens / seconds, 3) if seconds > 0 else 0.0,
    }


class Form(Protocol):
    """How one endpoint says its answer, whole or as a stream of chunks."""

    def begin(self) -> Json | None:
        """Return the chunk that opens a stream, if there is one."""

    def delta(self, text: str) -> Json:
        """Return the chunk that carries `text`."""

    def end(self, reason: FinishReason, extra: Json) -> Json:
        """Return the chunk that says why it ended; `extra` is added to it."""

    def counted(self, counts: Json) -> Json:
        """Return the chunk that carries the usage and no choice."""

    def whole(self, text: str, reason: FinishReason, extra: Json) -> Json:
        """Return the answer in one piece; `extra` (usage, timings) is added to it."""


class ChatForm:
    """/v1/chat/completions. `id_` is unique, `created` unix seconds; see `Form`."""

    def __init__(self, id_: str, created: int, model: str, *, include_usage: bool) -> None:
        self._head = {"id": f"chatcmpl-{id_}", "created": created, "model": model}
        # With include_usage every chunk has the field, null until the last one.
        self._no_usage: Json = {"usage": None} if include_usage else {}

    def _chunk(self, delta: Json, reason: FinishReason | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [choice],
            **self._no_usage,
        }

    def begin(self) -> Json | None:
        """Return the chunk with the role, as OpenAI sends it first."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, text: str) -> Json:
        """Return the chunk that carries `text`."""
        return self._chunk({"content": text})

    def end(self, reason: FinishReason, extra: Json) -> Json:
        """Return the chunk that says why it ended."""
        return self._chunk({}, reason) | extra

    def counted(self, counts: Json) -> Json:
        """Return the chunk that carries the usage and no choice."""
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": counts,
        }

    def whole(self, text: str, reason: FinishReason, extra: Json) -> Json:
        """Return the answer in one piece."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], **extra}


class CompletionForm:
    """/v1/completions: the chunks and the whole answer are one kind of object; see `Form`."""

    def __init__(self, id_: str, created: int, model: str, *, include_usage: bool) -> None:
        self._head = {
            "id": f"cmpl-{id_}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._no_usage: Json = {"usage": None} if include_usage else {}

    def _choices(self, text: str, reason: FinishReason | None) -> Json:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        return {**self._head, "choices": [choice]}

    def begin(self) -> Json | None:
        """Return nothing: the first chunk is the first text."""
        return None

    def delta(self, text: str) -> Json:
        """Return the chunk that carries `text`."""
        return self._choices(text, None) | self._no_usage

    def end(self, reason: FinishReason, extra: Json) -> Json:
        """Return the chunk that says why it ended."""
        return self._choices("", reason) | self._no_usage | extra

    def counted(self, counts: Json) -> Json:
        """Return the chunk that carries the usage and no choice."""
        return {**self._head, "choices": [], "usage": counts}

    def whole(self, text: str, reason: FinishReason, extra: Json) -> Json:
        """Return the answer in one piece."""
        return self._choices(text, reason) | extra
