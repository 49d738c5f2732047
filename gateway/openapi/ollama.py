"""Ollama's API as the gateway serves it (`dialects/ollama*.py`). A core, data alone.

Streams are lines of JSON, and are the answer unless the request says `"stream": false`. Used by
`document.py`.
"""

from __future__ import annotations

from gateway.openapi import openai
from gateway.openapi.words import (
    COUNT,
    FLAG,
    FUNCTION,
    JSON,
    LINES,
    NAME,
    NUMBER,
    PLAIN,
    TEMPERATURE,
    TEXT,
    WHOLE,
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
    tell,
    thing,
    words,
)

TAG = "Ollama"
ERROR = Error("OllamaError")

_ASKED: Json = {
    "stream": maybe(FLAG),
    "format": maybe(either(words("", "json"), thing({}))),
    "options": maybe(
        thing(
            {},
            {
                "num_predict": maybe(WHOLE),
                "temperature": maybe(TEMPERATURE),
                "seed": maybe(WHOLE),
                "stop": maybe(either(TEXT, many(TEXT))),
            },
        )
    ),
    "think": maybe(either(FLAG, TEXT)),
    "logprobs": maybe(FLAG),
    "top_logprobs": maybe(WHOLE),
}
_IMAGE: Json = {"type": "string", "contentEncoding": "base64", "minLength": 1}
_SAID: Json = {
    "done_reason": TEXT,
    "logprobs": many(thing({})),
    "total_duration": WHOLE,
    "load_duration": WHOLE,
    "prompt_eval_count": COUNT,
    "prompt_eval_duration": WHOLE,
    "eval_count": COUNT,
    "eval_duration": WHOLE,
}
_HEAD: Json = {"model": NAME, "created_at": TEXT, "done": FLAG}
_CALL = thing({"function": thing({"name": TEXT, "arguments": thing({})})})
_DETAILS = thing({"family": TEXT, "format": TEXT, "parameter_size": TEXT})
_LISTED: Json = {
    "name": NAME, "model": NAME, "size": COUNT, "digest": NAME, "details": _DETAILS
}  # fmt: skip
_BODY_OF_SHOW: Json = {
    "requestBody": {"required": True, "content": {JSON: {"schema": ref("OllamaShowRequest")}}}
}

SCHEMAS: Json = {
    "OllamaError": thing({"error": TEXT}),
    "OllamaMessage": thing(
        {"role": NAME},
        {
            "content": maybe(TEXT),
            "thinking": maybe(TEXT),
            "tool_calls": maybe(
                many(
                    thing({"function": thing({"name": FUNCTION}, {"arguments": maybe(thing({}))})})
                )
            ),
            "tool_name": maybe(TEXT),
            "images": maybe(many(_IMAGE)),
        },
    ),
    "OllamaChatRequest": thing(
        {"model": NAME},
        {
            **_ASKED,
            "messages": maybe(many(ref("OllamaMessage"))),
            "tools": maybe(many(ref("Tool"))),
        },
    ),
    "OllamaGenerateRequest": thing(
        {"model": NAME},
        {
            **_ASKED,
            "prompt": maybe(TEXT),
            "suffix": maybe(TEXT),
            "system": maybe(TEXT),
            "raw": maybe(FLAG),
            "images": maybe(many(_IMAGE)),
        },
    ),
    "OllamaChat": thing(
        _HEAD
        | {
            "message": thing(
                {"role": always("assistant"), "content": TEXT},
                {"thinking": TEXT, "tool_calls": many(_CALL)},
            )
        },
        _SAID,
    ),
    "OllamaText": thing(_HEAD | {"response": TEXT}, {**_SAID, "thinking": TEXT}),
    "OllamaEmbedRequest": thing(
        {"model": NAME},
        {"input": maybe(either(TEXT, many(TEXT))), "dimensions": maybe({**COUNT, "minimum": 1})},
    ),
    "OllamaEmbeddings": thing(
        {"model": NAME, "embeddings": many(many(NUMBER))}, {"prompt_eval_count": COUNT}
    ),
    "OllamaEmbeddingsRequest": thing({"model": NAME}, {"prompt": maybe(TEXT)}),
    "OllamaShowRequest": thing({"model": NAME}),
    "OllamaShow": thing(
        {
            "modelfile": TEXT,
            "parameters": TEXT,
            "template": TEXT,
            "details": _DETAILS,
            "model_info": thing({"general.basename": NAME}),
            "capabilities": many(TEXT),
            "modified_at": TEXT,
        }
    ),
    "OllamaTags": thing({"models": many(thing(_LISTED | {"modified_at": TEXT}))}),
    "OllamaRunning": thing(
        {"models": many(thing(_LISTED | {"expires_at": TEXT, "context_length": COUNT}))}
    ),
}

PATHS: Json = {
    "/": {
        "get": tell(
            "root", "Say what Ollama's own programs look for.",
            Said("`Ollama is running`", TEXT, PLAIN), openai.ERROR, TAG,
        )
    },
    "/api/version": {
        "get": tell(
            "version", "Tell which release of Ollama's this speaks like.",
            Said("The release.", thing({"version": NAME})), ERROR, TAG,
        )
    },
    "/api/tags": {
        "get": tell(
            "tags", "List the models.", Said("The models.", ref("OllamaTags")), ERROR, TAG
        )
    },
    "/api/ps": {
        "get": tell(
            "running", "List the models that can be asked now.",
            Said("The models.", ref("OllamaRunning")), ERROR, TAG,
        )
    },
    "/api/show": {
        "post": tell(
            "show", "Tell of one model.", Said("The model.", ref("OllamaShow")), ERROR, TAG,
            also=("400", "403", "404", "408", "413", "429"), more=_BODY_OF_SHOW,
        )
    },
    "/api/chat": {
        "post": ask(
            "ollamaChat", "Go on with a chat.", "OllamaChatRequest",
            Said("The answer, if `stream` is false; else a line for each piece.",
                 ref("OllamaChat")), ERROR, TAG,
            Stream(LINES, either(ref("OllamaChat"), ref(ERROR.schema))),
        )
    },
    "/api/generate": {
        "post": ask(
            "ollamaGenerate", "Answer a prompt.", "OllamaGenerateRequest",
            Said("The answer, if `stream` is false; else a line for each piece.",
                 ref("OllamaText")), ERROR, TAG,
            Stream(LINES, either(ref("OllamaText"), ref(ERROR.schema))),
        )
    },
    "/api/embed": {
        "post": ask(
            "ollamaEmbed", "Turn texts into vectors.", "OllamaEmbedRequest",
            Said("A vector for each text.", ref("OllamaEmbeddings")), ERROR, TAG,
        )
    },
    "/api/embeddings": {
        "post": ask(
            "ollamaEmbeddings", "Turn a text into a vector.", "OllamaEmbeddingsRequest",
            Said("The vector.", thing({"embedding": many(NUMBER)})), ERROR, TAG,
        )
    },
}  # fmt: skip
