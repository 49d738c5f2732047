"""What clients may ask for: from a request's bytes to a checked `Ask`, or an ApiError.

A core, used by `app.py`. Fields that nobody knows are accepted, since clients send many; a field
that is known and would change the answer, and that the head cannot do yet, is refused by name
unless it holds the value that changes nothing. Nothing is silently ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.engine.generation import Sampling
from agent.engine.serve.fields import convert, json_fields, named_model
from agent.engine.serve.messages import Message, for_template
from agent.engine.serve.offers import MAX_TOOLS, Choice, NamedChoice, Offer, Tool, offer
from agent.engine.serve.openai import ApiError
from agent.engine.serve.response_format import ResponseFormat, format_grammar, schema_grammar
from agent.engine.serve.sampling import SamplingFields, TokenId

# OpenAI's are 128 and 20; each choice takes a place of its own in the ring.
MAX_CHOICES = 16
MAX_LOGPROBS = 20
# OpenAI's limit. The length bounds the work per token while text is held back.
MAX_STOPS = 4
MAX_STOP_CHARS = 1000
# OpenAI's default for /v1/completions; chats go on until the model ends or the context is full.
COMPLETION_MAX_TOKENS = 16

# Fields that the head cannot do yet, with the values (next to null) that ask for nothing.
_NOT_YET: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "best_of": (1,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "suffix": ("",),
    "web_search_options": (),
    # llama-server
    "n_probs": (0,),
    # vLLM
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "prompt_logprobs": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
}


@dataclass(frozen=True)
class Ask:
    """What every endpoint shares; `max_tokens` None goes on as far as the context reaches.

    `choices` answers are wanted. `logprobs` is how many of the likeliest tokens are told with each
    token; None: not even its own probability.
    """

    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    stops: tuple[str, ...]
    sampling: Sampling
    choices: int
    logprobs: int | None


@dataclass(frozen=True)
class ChatAsk(Ask):
    """A chat: messages with text content, the client's own variables for the template, tools."""

    messages: tuple[dict[str, Any], ...]
    variables: dict[str, Any]
    offer: Offer


@dataclass(frozen=True)
class CompletionAsk(Ask):
    """A prompt as text or as token ids; `echo` repeats it before the answer."""

    prompt: str | tuple[int, ...]
    echo: bool


def parse_chat(body: bytes, model: str | None = None) -> ChatAsk:
    """Return the checked request of /v1/chat/completions; raises ApiError.

    `model` is taken where the request names none.
    """
    fields = json_fields(body, _NOT_YET)
    fields["model"] = fields.get("model") or model
    request = convert(fields, _ChatRequest)
    return ChatAsk(
        **_shared(request),
        logprobs=_chat_logprobs(request),
        max_tokens=_limit(request, None),
        messages=tuple(
            for_template(index, raw, message)
            for index, (raw, message) in enumerate(
                zip(fields["messages"], request.messages, strict=True)
            )
        ),
        variables=request.chat_template_kwargs or {},
        offer=_offer(request, fields.get("tools") or []),
    )


def parse_completion(body: bytes) -> CompletionAsk:
    """Return the checked request of /v1/completions; raises ApiError."""
    request = convert(json_fields(body, _NOT_YET), _CompletionRequest)
    return CompletionAsk(
        **_shared(request),
        logprobs=_completion_logprobs(request),
        max_tokens=_limit(request, COMPLETION_MAX_TOKENS),
        prompt=_prompt(request.prompt),
        echo=request.echo or False,
    )


_Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
_Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Request(SamplingFields, frozen=True, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None  # llama-server's, as is the next one
    json_schema: dict[str, Any] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | None = None


class _ChatRequest(_Request, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: _Logprobs | None = None


class _CompletionRequest(_Request, frozen=True, kw_only=True):
    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: _Logprobs | bool | None = None


def _shared(request: _Request) -> dict[str, Any]:
    stop = request.stop or []
    options = request.stream_options
    return {
        "model": named_model(request.model),
        "stream": request.stream or False,
        "include_usage": bool(options and options.include_usage),
        "stops": (stop,) if isinstance(stop, str) else tuple(stop),
        "choices": request.n or 1,
        "sampling": request.sampling(_grammar(request)),
    }


def _offer(request: _ChatRequest, raw: list[dict[str, Any]]) -> Offer:
    found = offer(
        request.tools or (), raw, request.tool_choice or "auto",
        several=request.parallel_tool_calls is not False,
    )  # fmt: skip
    if found.tools and _grammar(request):
        raise ApiError(
            "`tools` that may be called do not go together with what the answer looks like",
            hint="Leave `response_format` or `grammar` out, or set `tool_choice` to none.",
            param="tools",
        )
    return found


def _grammar(request: _Request) -> str:
    asked = {
        "response_format": request.response_format and format_grammar(request.response_format),
        "json_schema": request.json_schema and schema_grammar(request.json_schema, "json_schema"),
        "grammar": request.grammar,
    }
    given = [name for name, grammar in asked.items() if grammar]
    if len(given) > 1:
        raise ApiError(
            f"`{given[0]}` and `{given[1]}` both say what the answer looks like",
            hint="Leave one of them out.",
            param=given[1],
        )
    return asked[given[0]] or "" if given else ""


def _chat_logprobs(request: _ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise ApiError(
            "`top_logprobs` needs `logprobs`", hint="Set `logprobs` to true.", param="top_logprobs"
        )
    return None


def _completion_logprobs(request: _CompletionRequest) -> int | None:
    asked = request.logprobs
    if asked is None or asked is False:
        return None
    if request.echo:
        raise ApiError(
            "`logprobs` is not supported together with `echo`: the prompt's are not known",
            hint="Leave one of them out.",
            param="logprobs",
            code="unsupported_parameter",
        )
    return 0 if asked is True else asked


def _limit(request: _Request, default: int | None) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value: int | None = getattr(request, name)
        if value is None:
            continue
        if value == -1:  # llama-server's word for "as far as the context reaches"
            return None
        if value < 1:
            raise ApiError(f"`{name}` is {value}; it must be at least 1", param=name)
        return value
    return default


def _prompt(prompt: str | list[Any]) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    if len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    elif len(prompt) > 1 and isinstance(prompt[0], str | list):
        raise ApiError(
            f"`prompt` holds {len(prompt)} prompts, but this server takes one in a request",
            hint="Send a request for each.",
            param="prompt",
            code="unsupported_parameter",
        )
    try:
        ids = msgspec.convert(prompt, tuple[TokenId, ...])
    except msgspec.ValidationError as error:
        raise ApiError(
            "`prompt` must be a text, a list with one text, or a list of token ids",
            param="prompt",
        ) from error
    if not ids:
        raise ApiError("`prompt` is empty", param="prompt")
    return ids
