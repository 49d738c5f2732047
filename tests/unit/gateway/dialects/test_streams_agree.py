"""A stream says the same in every dialect and untranslated, however the replica sends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bare_http import Answer, asking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
ASK: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/v1/responses": {"input": "hello"},
    "/api/chat": {"messages": HELLO},
    "/api/generate": {"prompt": "hello"},
    "/generate": {"prompt": "hello"},
}


def events(body: bytes) -> list[dict[str, Any]]:
    # Not splitlines: a text may hold what Unicode calls a line's end.
    lines = body.decode().replace("\r\n", "\n").split("\n")
    told = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    return [json.loads(one) for one in told]


def objects(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.decode().split("\n") if line]


def untranslated(body: bytes) -> str:
    assert b"data: [DONE]" in body
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events(body))


def messages(body: bytes) -> str:
    told = events(body)
    assert told[-1]["type"] == "message_stop"
    return "".join(
        event["delta"]["text"] for event in told if event["type"] == "content_block_delta"
    )


def responses(body: bytes) -> str:
    told = events(body)
    assert told[-1]["type"] == "response.completed"
    return "".join(e["delta"] for e in told if e["type"] == "response.output_text.delta")


def ollama_chat(body: bytes) -> str:
    told = objects(body)
    assert told[-1]["done"]
    return "".join(one["message"]["content"] for one in told)


def ollama_generate(body: bytes) -> str:
    told = objects(body)
    assert told[-1]["done"]
    return "".join(one["response"] for one in told)


def foundation(body: bytes) -> str:
    told = events(body)
    assert told[-1]["done"]
    return "".join(one["text"] for one in told)


TEXT: dict[str, Callable[[bytes], str]] = {
    CHAT: untranslated,
    "/v1/messages": messages,
    "/v1/responses": responses,
    "/api/chat": ollama_chat,
    "/api/generate": ollama_generate,
    "/generate": foundation,
}


def stream(pieces: list[str], ends: list[str], *, escaped: bool) -> bytes:
    """Return a stream that says `pieces`, each event with one of `ends`."""
    told = [json.dumps(chunk(piece), ensure_ascii=escaped) for piece in pieces]
    told += [json.dumps(chunk("", "stop")), "[DONE]"]
    return b"".join(
        f"data: {one}{ends[number % len(ends)]}".encode() for number, one in enumerate(told)
    )


def chunk(text: str, reason: str | None = None) -> dict[str, Any]:
    # Chat completions have `delta`, completions have `text`; who reads one skips the other.
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": reason}
    return {"id": "chatcmpl-1", "created": 1, "model": "m", "choices": [choice]}


@pytest.mark.parametrize("path", ASK)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(
        st.text(max_size=8) | st.sampled_from(["é", "😀", "\n\n", "data: "]), max_size=8
    ),
    ends=st.lists(st.sampled_from(["\n\n", "\r\n\r\n", "\n\n: here\n\n"]), min_size=1, max_size=3),
    escaped=st.booleans(),
    framing=st.sampled_from(["chunked", "chunked", "close", "length"]),
    sizes=st.lists(st.integers(1, 60), max_size=60),
    cuts=st.lists(st.integers(0, 3000), max_size=20),
)
def test_the_text_is_what_the_replica_said(
    world: Any, path: str, pieces: list[str], ends: list[str], escaped: bool, framing: str,
    sizes: list[int], cuts: list[int],
) -> None:  # fmt: skip
    body = stream(pieces, ends, escaped=escaped)
    answer = Answer(
        headers=[("Content-Type", "text/event-stream")], body=body, framing=framing,
        sizes=tuple(sizes),
    )  # fmt: skip
    ask = json.dumps({**ASK[path], "model": "m", "stream": True}).encode()
    got = world.through(answer, cuts, asking(path=path, body=ask))
    assert (got.status, got.whole) == (200, True)
    assert TEXT[path](got.body) == "".join(pieces)
    if path == CHAT:
        assert got.body == body
