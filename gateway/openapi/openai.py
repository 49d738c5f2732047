"""OpenAI's API as the gateway serves it, but for Responses (`responses.py`). A core, data alone.

Requests and answers are passed on as they are: what is described here is what the gateway's own
heads take and give, and what it needs itself. Used by `document.py`.
"""

from __future__ import annotations

from gateway.openapi.words import (
    ANY,
    COUNT,
    EVENTS,
    FLAG,
    FUNCTION,
    NAME,
    NUMBER,
    SHARE,
    TEMPERATURE,
    TEXT,
    TOKEN,
    WHOLE,
    Error,
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
    tell,
    thing,
    words,
)

TAG = "OpenAI"
ERROR = Error("OpenAIError")

_CALL = thing({"function": thing({"name": TEXT, "arguments": TEXT})}, {"id": TEXT, "type": TEXT})
_CONTENT = either(TEXT, many(ref("ChatPart")))
_CHOICE: Json = {"index": COUNT, "finish_reason": maybe(TEXT)}
_TEXTS = either(NAME, many(NAME, 1), many(TOKEN, 1), many(many(TOKEN, 1), 1))
_USAGE = thing(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
    {"prompt_tokens_details": maybe(thing({}, {"cached_tokens": maybe(COUNT)}))},
)
_SAMPLING: Json = {
    "stream": maybe(FLAG),
    "stream_options": maybe(thing({}, {"include_usage": maybe(FLAG)})),
    "max_tokens": maybe(WHOLE),
    "temperature": maybe(TEMPERATURE),
    "top_p": maybe(SHARE),
    "n": maybe({"type": "integer", "minimum": 1, "maximum": 16}),
    "stop": maybe(either(TEXT, {**many(NAME), "maxItems": 4})),
    "seed": maybe(WHOLE),
    "presence_penalty": maybe({"type": "number", "minimum": -2, "maximum": 2}),
    "frequency_penalty": maybe({"type": "number", "minimum": -2, "maximum": 2}),
    "logit_bias": maybe(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
    "user": maybe(TEXT),
}

SCHEMAS: Json = {
    "OpenAIError": thing(
        {"error": thing({"message": TEXT, "type": TEXT}, {"param": maybe(TEXT), "code": ANY})}
    ),
    "ChatPart": either(
        thing({"type": always("text"), "text": TEXT}),
        thing({"type": always("image_url"), "image_url": thing({"url": TEXT}, {"detail": TEXT})}),
        thing({"type": always("input_audio"), "input_audio": thing({"data": TEXT})}),
        thing({"type": always("file"), "file": thing({}, {"file_data": TEXT, "filename": TEXT})}),
    ),
    "ChatMessage": either(
        thing({"role": words("system", "developer", "user"), "content": _CONTENT}, {"name": TEXT}),
        thing(
            {"role": always("assistant")},
            {"content": maybe(_CONTENT), "tool_calls": maybe(many(_CALL))},
        ),
        thing({"role": always("tool"), "content": _CONTENT, "tool_call_id": TEXT}),
    ),
    "Tool": thing(
        {
            "type": always("function"),
            "function": thing(
                {"name": FUNCTION}, {"description": TEXT, "parameters": thing({}), "strict": FLAG}
            ),
        }
    ),
    "ChatRequest": thing(
        {"model": NAME, "messages": many(ref("ChatMessage"), 1)},
        {
            **_SAMPLING,
            "max_completion_tokens": maybe(WHOLE),
            "logprobs": maybe(FLAG),
            "top_logprobs": maybe({"type": "integer", "minimum": 0, "maximum": 20}),
            "response_format": maybe(
                thing(
                    {"type": words("text", "json_object", "json_schema")},
                    {"json_schema": thing({"name": NAME}, {"schema": thing({}), "strict": FLAG})},
                )
            ),
            "tools": maybe(many(ref("Tool"))),
            "tool_choice": maybe(
                either(
                    words("none", "auto", "required"),
                    thing({"type": always("function"), "function": thing({"name": FUNCTION})}),
                )
            ),
            "parallel_tool_calls": maybe(FLAG),
            "prompt_cache_key": maybe(TEXT),
        },
    ),
    "Usage": _USAGE,
    "ChatCompletion": thing(
        {
            "id": TEXT,
            "object": always("chat.completion"),
            "created": COUNT,
            "model": TEXT,
            "choices": many(
                thing(
                    _CHOICE
                    | {
                        "message": thing(
                            {"role": always("assistant"), "content": maybe(TEXT)},
                            {"refusal": maybe(TEXT), "tool_calls": maybe(many(_CALL))},
                        )
                    },
                    {"logprobs": maybe(thing({})), "stop_reason": maybe(either(TEXT, WHOLE))},
                ),
            ),
        },
        {"usage": maybe(ref("Usage")), "timings": thing({})},
    ),
    "ChatChunk": thing(
        {
            "id": TEXT,
            "object": always("chat.completion.chunk"),
            "created": COUNT,
            "model": TEXT,
            "choices": many(
                thing(
                    _CHOICE
                    | {
                        "delta": thing(
                            {},
                            {
                                "role": TEXT,
                                "content": maybe(TEXT),
                                "tool_calls": many(thing({})),
                            },
                        )
                    },
                    {"logprobs": maybe(thing({})), "stop_reason": maybe(either(TEXT, WHOLE))},
                )
            ),
        },
        {"usage": maybe(ref("Usage")), "timings": thing({})},
    ),
    "CompletionRequest": thing(
        {"model": NAME, "prompt": either(NAME, many(TOKEN, 1))},
        {**_SAMPLING, "echo": maybe(FLAG), "logprobs": maybe(WHOLE)},
    ),
    "Completion": thing(
        {
            "id": TEXT,
            "object": always("text_completion"),
            "created": COUNT,
            "model": TEXT,
            "choices": many(
                thing(
                    _CHOICE | {"text": TEXT},
                    {"logprobs": maybe(thing({})), "stop_reason": maybe(either(TEXT, WHOLE))},
                )
            ),
        },
        {"usage": maybe(ref("Usage")), "timings": thing({})},
    ),
    "EmbeddingsRequest": thing(
        {"model": NAME, "input": _TEXTS},
        {
            "encoding_format": maybe(words("float", "base64")),
            "dimensions": maybe({"type": "integer", "minimum": 1}),
            "user": maybe(TEXT),
        },
    ),
    "Embeddings": thing(
        {
            "object": always("list"),
            "model": TEXT,
            "data": many(
                thing(
                    {"object": TEXT, "index": COUNT, "embedding": either(TEXT, many(NUMBER))}
                )
            ),
        },
        {"usage": thing({"prompt_tokens": COUNT, "total_tokens": COUNT})},
    ),
    "RerankRequest": thing(
        {
            "model": NAME,
            "query": TEXT,
            "documents": many(either(TEXT, thing({"text": TEXT})), 1),
        },
        {"top_n": maybe({"type": "integer", "minimum": 1}), "return_documents": maybe(FLAG)},
    ),
    "Ranks": thing(
        {
            "results": many(
                thing({"index": COUNT, "relevance_score": NUMBER}, {"document": ANY})
            )
        },
        {"object": TEXT, "model": TEXT, "usage": thing({})},
    ),
    "Model": thing(
        {
            "id": NAME,
            "object": always("model"),
            "created": COUNT,
            "owned_by": TEXT,
            "context_length": maybe(COUNT),
            "architecture": thing({"input_modalities": many(words("text", "image"))}),
            "covey": thing({"replicas": many(NAME), "usable": COUNT}),
        }
    ),
}  # fmt: skip

PATHS: Json = {
    "/v1/chat/completions": {
        "post": ask(
            "chat", "Go on with a chat.", "ChatRequest",
            Said("The answer; with `stream`, as it comes.", ref("ChatCompletion")), ERROR, TAG,
            Stream(EVENTS, either(ref("ChatChunk"), ref(ERROR.schema))),
        )
    },
    "/v1/completions": {
        "post": ask(
            "complete", "Go on with a text.", "CompletionRequest",
            Said("The text; with `stream`, as it comes.", ref("Completion")), ERROR, TAG,
            Stream(EVENTS, either(ref("Completion"), ref(ERROR.schema))),
        )
    },
    "/v1/embeddings": {
        "post": ask(
            "embed", "Turn texts into vectors, by a model that is made for it.",
            "EmbeddingsRequest", Said("A vector for each text.", ref("Embeddings")), ERROR, TAG,
        )
    },
    "/v1/rerank": {
        "post": ask(
            "rerank", "Rank documents by how well they fit a query, as Jina's and Cohere's APIs.",
            "RerankRequest", Said("The best first.", ref("Ranks")), ERROR, TAG,
        )
    },
    "/v1/models": {
        "get": tell(
            "models", "List the models that any replica has.",
            Said("The models.", thing({"object": always("list"), "data": many(ref("Model"))})),
            ERROR, TAG,
        )
    },
    "/v1/models/{id}": {
        "get": tell(
            "model", "Tell of one model.", Said("The model.", ref("Model")), ERROR, TAG,
            also=("404",), more=in_path("id", "The model's name, which may hold slashes."),
        )
    },
}  # fmt: skip
