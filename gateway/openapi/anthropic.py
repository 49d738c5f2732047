"""Anthropic's Messages API as the gateway serves it (`dialects/anthropic.py`). A core, data alone.

Used by `document.py`.
"""

from __future__ import annotations

from gateway.openapi.words import (
    COUNT,
    EVENTS,
    FLAG,
    FUNCTION,
    NAME,
    SHARE,
    TEXT,
    TOKEN,
    Error,
    Json,
    Said,
    Stream,
    always,
    ask,
    either,
    many,
    maybe,
    ref,
    thing,
    words,
)

TAG = "Anthropic"
ERROR = Error("AnthropicError")

_STOP = maybe(
    words("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal")
)  # fmt: skip
_TEXTS = either(TEXT, many(ref("MessageText")))
_COUNTED: Json = {
    "system": maybe(_TEXTS),
    "tools": maybe(
        many(
            thing(
                {"name": FUNCTION, "input_schema": thing({})},
                {"type": maybe(always("custom")), "description": maybe(TEXT)},
            )
        )
    ),
    "tool_choice": maybe(
        thing(
            {"type": words("auto", "any", "tool", "none")},
            {"name": maybe(TEXT), "disable_parallel_tool_use": maybe(FLAG)},
        )
    ),
    "thinking": maybe(thing({"type": words("enabled", "disabled", "adaptive")})),
}
_NEEDED: Json = {"model": NAME, "messages": many(ref("MessageTurn"), 1)}

SCHEMAS: Json = {
    "AnthropicError": thing(
        {"type": always("error"), "error": thing({"type": TEXT, "message": TEXT})}
    ),
    "MessageText": thing({"type": always("text"), "text": TEXT}),
    "MessageTurn": either(
        thing(
            {
                "role": words("user", "system"),
                "content": either(
                    TEXT,
                    many(
                        either(
                            ref("MessageText"),
                            thing(
                                {"type": always("image"), "source": thing({"type": TEXT})},
                            ),
                            thing(
                                {"type": always("tool_result"), "tool_use_id": NAME},
                                {"content": maybe(_TEXTS), "is_error": maybe(FLAG)},
                            ),
                        )
                    ),
                ),
            }
        ),
        thing(
            {
                "role": always("assistant"),
                "content": either(
                    TEXT,
                    many(
                        either(
                            ref("MessageText"),
                            thing(
                                {"type": always("tool_use"), "id": NAME, "name": FUNCTION,
                                 "input": thing({})}
                            ),
                            thing({"type": words("thinking", "redacted_thinking")}),
                        )
                    ),
                ),
            }
        ),
    ),
    "MessageRequest": thing(
        _NEEDED | {"max_tokens": {**COUNT, "minimum": 1}},
        {
            **_COUNTED,
            "stream": maybe(FLAG),
            "temperature": maybe(SHARE),
            "top_p": maybe(SHARE),
            "top_k": maybe(TOKEN),
            "stop_sequences": maybe({**many(NAME), "maxItems": 4}),
            "output_config": thing(
                {},
                {
                    "format": maybe(
                        thing({"type": always("json_schema"), "schema": thing({})})
                    ),
                    "effort": maybe(TEXT),
                },
            ),
        },
    ),
    "MessageCountRequest": thing(_NEEDED, _COUNTED),
    "Message": thing(
        {
            "id": NAME,
            "type": always("message"),
            "role": always("assistant"),
            "model": TEXT,
            "content": many(
                either(
                    thing({"type": always("text"), "text": TEXT}),
                    thing(
                        {"type": always("tool_use"), "id": NAME, "name": NAME, "input": thing({})}
                    ),
                )
            ),
            "stop_reason": _STOP,
            "stop_sequence": maybe(TEXT),
            "usage": ref("MessageUsage"),
        }
    ),
    "MessageUsage": thing(
        {
            "input_tokens": COUNT,
            "cache_creation_input_tokens": COUNT,
            "cache_read_input_tokens": COUNT,
            "output_tokens": COUNT,
        }
    ),
    "MessageEvent": thing(
        {
            "type": words(
                "message_start", "content_block_start", "ping", "content_block_delta",
                "content_block_stop", "message_delta", "message_stop", "error",
            )
        },
        {
            "message": ref("Message"),
            "index": COUNT,
            "content_block": thing({"type": TEXT}),
            "delta": thing({}, {"type": TEXT, "stop_reason": _STOP}),
            "usage": ref("MessageUsage"),
            "error": thing({"type": TEXT, "message": TEXT}),
        },
    ),
    "MessageCount": thing({"input_tokens": COUNT}),
}  # fmt: skip

PATHS: Json = {
    "/v1/messages": {
        "post": ask(
            "message", "Go on with a chat.", "MessageRequest",
            Said("The message; with `stream`, its events.", ref("Message")), ERROR, TAG,
            Stream(EVENTS, ref("MessageEvent")),
        )
    },
    "/v1/messages/count_tokens": {
        "post": ask(
            "countMessage", "Count a chat's tokens, by the replica's own template.",
            "MessageCountRequest", Said("The count.", ref("MessageCount")), ERROR, TAG,
        )
    },
}  # fmt: skip
