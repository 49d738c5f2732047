"""llama-server's, Foundation42's and the gateway's own endpoints. A core, data alone.

Used by `document.py`.
"""

from __future__ import annotations

from gateway.openapi.openai import ERROR
from gateway.openapi.words import (
    ANY,
    COUNT,
    EVENTS,
    FLAG,
    NAME,
    NUMBER,
    PLAIN,
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
    many,
    maybe,
    ref,
    tell,
    thing,
    words,
)

LLAMA, FOUNDATION, OWN = "llama.cpp", "Foundation42", "Covey"
TAGS = (LLAMA, FOUNDATION, OWN)
_FOUNDATION_ERROR = Error("FoundationError")

_TOLD: Json = {"model": TEXT, "finish_reason": maybe(TEXT), "usage": maybe(ref("Usage"))}
_MEASURED: Json = {
    "in_flight": COUNT,
    "requests": COUNT,
    "cooling_s": NUMBER,
    "first_byte_s": {"type": "object", "additionalProperties": NUMBER},
    "token_s": NUMBER,
    "rtt_s": maybe(NUMBER),
}


def _open(operation: Json) -> Json:
    """Return the description of what needs no key."""
    del operation["responses"]["401"]
    return operation | {"security": []}


SCHEMAS: Json = {
    "TokenizeRequest": thing(
        {},
        {
            "model": NAME,
            "content": TEXT,
            "messages": many(ref("ChatMessage"), 1),
            "add_special": maybe(FLAG),
            "parse_special": maybe(FLAG),
            "with_pieces": maybe(FLAG),
        },
    )
    | {"oneOf": [{"required": ["content"]}, {"required": ["messages"]}]},
    "Tokens": thing(
        {"tokens": many(either(WHOLE, thing({"id": WHOLE, "piece": either(TEXT, many(COUNT))})))}
    ),
    "DetokenizeRequest": thing({"tokens": many(TOKEN)}, {"model": NAME}),
    "FoundationError": thing({"error": TEXT}),
    "GenerateRequest": thing(
        {"prompt": NAME},
        {
            "model": maybe(TEXT),
            "max_tokens": maybe(WHOLE),
            "temperature": maybe(TEMPERATURE),
            "stream": maybe(FLAG),
        },
    ),
    "Generated": thing({"text": TEXT} | _TOLD),
    "GeneratedEvent": either(
        thing({"text": TEXT, "done": always(False)}),
        thing({"text": TEXT, "done": always(True)} | _TOLD),
        thing({"error": TEXT}),
    ),
    "Peers": thing(
        {
            "count": COUNT,
            "peers": many(
                thing({"id": NAME, "source": TEXT, "models": many(TEXT), "healthy": FLAG})
            ),
        }
    ),
    "PeersMetrics": thing({"peers": many(thing({"id": NAME, "healthy": FLAG}, _MEASURED))}),
    "Healthy": thing({"status": always("ok"), "models": many(NAME, 1)}),
    "Status": thing(
        {
            "strategy": NAME,
            "agent": NAME,
            "keys": maybe(thing({"required": FLAG})),
            "replicas": many(
                thing(
                    {
                        "name": NAME,
                        "url": NAME,
                        "source": words("mesh", "named"),
                        "models": many(TEXT),
                        "usable": FLAG,
                        "reason": TEXT,
                        "breaker": TEXT,
                    }
                    | _MEASURED
                )
            ),
        }
    ),
}  # fmt: skip

PATHS: Json = {
    "/tokenize": {
        "post": ask(
            "tokenize", "Turn a text, or a chat, into the model's tokens.", "TokenizeRequest",
            Said("The tokens.", ref("Tokens")), ERROR, LLAMA,
        )
    },
    "/detokenize": {
        "post": ask(
            "detokenize", "Turn tokens into text.", "DetokenizeRequest",
            Said("The text.", thing({"content": TEXT})), ERROR, LLAMA,
        )
    },
    "/generate": {
        "post": ask(
            "generate", "Go on with a text.", "GenerateRequest",
            Said("The text; with `stream`, as it comes.", ref("Generated")),
            _FOUNDATION_ERROR, FOUNDATION, Stream(EVENTS, ref("GeneratedEvent")),
        )
    },
    "/peers": {
        "get": tell(
            "peers", "List the replicas.", Said("The replicas.", ref("Peers")), ERROR, FOUNDATION
        )
    },
    "/peers/metrics": {
        "get": tell(
            "peersMetrics", "Tell what was measured of each replica; times in seconds.",
            Said("The replicas.", ref("PeersMetrics")), ERROR, FOUNDATION,
        )
    },
    "/health": {
        "get": _open(
            tell(
                "health", "Tell whether any model can be used; else 503, and the `reason`.",
                Said("These can.", ref("Healthy")), ERROR, OWN,
            )
        )
    },
    "/metrics": {
        "get": tell(
            "metrics", "Tell Prometheus what was counted.",
            Said("The exposition.", TEXT, PLAIN), ERROR, OWN,
        )
    },
    "/gateway/status": {
        "get": _open(
            tell(
                "status", "Tell `gateway status` everything, on the gateway's own machine alone.",
                Said("What it knows.", ref("Status")), ERROR, OWN, also=("403",),
            )
        )
    },
    "/openapi.json": {
        "get": tell(
            "describe", "Describe all this.",
            Said("This.", thing({"openapi": NAME, "info": ANY, "paths": ANY})), ERROR, OWN,
        )
    },
}  # fmt: skip
