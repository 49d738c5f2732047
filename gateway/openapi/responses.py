"""OpenAI's Responses API as the gateway serves it (`dialects/responses.py`). A core, data alone.

Used by `document.py`.
"""

from __future__ import annotations

from gateway.openapi.openai import ERROR
from gateway.openapi.words import (
    ANY,
    COUNT,
    EVENTS,
    FLAG,
    FUNCTION,
    NAME,
    SHARE,
    TEMPERATURE,
    TEXT,
    Json,
    Said,
    Stream,
    always,
    ask,
    either,
    in_path,
    many,
    maybe,
    ref,
    refuse,
    thing,
    words,
)

TAG = "OpenAI"
_CONTENT = either(TEXT, many(ref("ResponsePart")))
_NOT_KEPT = "Responses are not kept here, whatever `store` says."

SCHEMAS: Json = {
    "ResponsePart": either(
        thing({"type": words("input_text", "output_text", "text"), "text": TEXT}),
        thing({"type": always("refusal"), "refusal": TEXT}),
        thing({"type": always("input_image"), "image_url": TEXT}, {"detail": TEXT}),
        thing({"type": always("input_file"), "file_data": TEXT}, {"filename": TEXT}),
        thing({"type": always("input_audio"), "input_audio": thing({"data": TEXT})}),
    ),
    "ResponseItem": either(
        thing(
            {"role": words("user", "assistant", "system", "developer"), "content": _CONTENT},
            {"type": always("message")},
        ),
        thing({"type": always("function_call"), "call_id": NAME, "name": FUNCTION},
              {"arguments": TEXT}),
        thing({"type": always("function_call_output"), "call_id": NAME, "output": _CONTENT}),
        thing({"type": always("reasoning")}),
    ),
    "ResponseRequest": thing(
        {"model": NAME, "input": either(TEXT, many(ref("ResponseItem"), 1))},
        {
            "instructions": maybe(TEXT),
            "stream": maybe(FLAG),
            "tools": maybe(
                many(
                    thing(
                        {"type": always("function"), "name": FUNCTION},
                        {"description": maybe(TEXT), "parameters": maybe(thing({})),
                         "strict": maybe(FLAG)},
                    )
                )
            ),
            "tool_choice": maybe(
                either(
                    words("none", "auto", "required"),
                    thing({"type": always("function"), "name": FUNCTION}),
                )
            ),
            "parallel_tool_calls": maybe(FLAG),
            "text": maybe(
                thing(
                    {},
                    {
                        "format": maybe(
                            thing(
                                {"type": words("text", "json_object", "json_schema")},
                                {"name": maybe(TEXT), "schema": maybe(thing({})),
                                 "strict": maybe(FLAG)},
                            )
                        ),
                        "verbosity": maybe(TEXT),
                    },
                )
            ),
            "reasoning": maybe(thing({}, {"effort": maybe(TEXT)})),
            "max_output_tokens": maybe({**COUNT, "minimum": 1}),
            "temperature": maybe(TEMPERATURE),
            "top_p": maybe(SHARE),
            "metadata": maybe({"type": "object", "additionalProperties": TEXT}),
            "user": maybe(TEXT),
            "store": maybe(FLAG),
        },
    ),
    "ResponseOutput": either(
        thing(
            {
                "type": always("message"),
                "id": NAME,
                "status": TEXT,
                "role": always("assistant"),
                "content": many(
                    thing({"type": always("output_text"), "text": TEXT, "annotations": many(ANY)})
                ),
            }
        ),
        thing(
            {
                "type": always("function_call"),
                "id": NAME,
                "status": TEXT,
                "call_id": NAME,
                "name": NAME,
                "arguments": TEXT,
            }
        ),
    ),
    "Response": thing(
        {
            "id": NAME,
            "object": always("response"),
            "created_at": COUNT,
            "status": words("in_progress", "completed", "incomplete", "failed"),
            "error": maybe(thing({"code": TEXT, "message": TEXT})),
            "incomplete_details": maybe(thing({"reason": TEXT})),
            "model": TEXT,
            "output": many(ref("ResponseOutput")),
            "store": always(False),
            "usage": maybe(
                thing({"input_tokens": COUNT, "output_tokens": COUNT, "total_tokens": COUNT})
            ),
        },
        {"instructions": ANY, "metadata": ANY, "tools": ANY, "tool_choice": ANY, "text": ANY},
    ),
    "ResponseEvent": thing(
        {"type": NAME, "sequence_number": COUNT},
        {
            "response": ref("Response"),
            "item": ref("ResponseOutput"),
            "output_index": COUNT,
            "delta": TEXT,
        },
    ),
}  # fmt: skip

PATHS: Json = {
    "/v1/responses": {
        "post": ask(
            "respond", "Go on with a conversation, of which nothing is kept.", "ResponseRequest",
            Said("The response; with `stream`, its events.", ref("Response")), ERROR, TAG,
            Stream(EVENTS, ref("ResponseEvent")),
        )
    },
    "/v1/responses/{id}": {
        **in_path("id", "A response's id.", {"type": "string", "pattern": "^resp_[a-z0-9]+$"}),
        "get": refuse("response", _NOT_KEPT, ERROR, TAG),
        "delete": refuse("forgetResponse", _NOT_KEPT, ERROR, TAG),
        "post": refuse("changeResponse", _NOT_KEPT, ERROR, TAG),
    },
}  # fmt: skip
