"""A request in a dialect on its way to a replica, and the answer's way back, in any chunking."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.port import Refused, Translated
from gateway.dialects.translation import Garbled, Translation


class Shouting:
    """A dialect that says all it is told, loudly; one line a thing."""

    def __init__(self, content_type: str = "text/event-stream") -> None:
        self._content_type = content_type

    def ask(self, body: bytes, now: float) -> Translated:
        fields = json.loads(body)
        return Translated(
            fields, "/v1/chat/completions", "stream" in fields, self._content_type, ShoutingReader()
        )

    def error(self, status: int, message: str, kind: str) -> bytes:
        return f"{status} {message} {kind}".encode()


class ShoutingReader:
    def whole(self, answer: dict[str, Any]) -> bytes:
        return str(answer["said"]).upper().encode()

    def event(self, chunk: dict[str, Any]) -> bytes:
        return str(chunk["said"]).upper().encode() + b"\n"

    def end(self) -> bytes:
        return b"END\n"

    def broken(self, message: str, code: str) -> bytes:
        return f"BROKEN {message} {code}\n".encode()


def translation(content_type: str = "text/event-stream", **fields: Any) -> Translation:
    asked = {"model": "m", "stream": True, **fields}
    return Translation(Shouting(content_type), json.dumps(asked).encode(), 0.0)


def through(pieces: list[bytes], content_type: str = "text/event-stream") -> bytes:
    one = translation(content_type)
    return b"".join([*map(one.push, pieces), one.close()])


def event(**fields: Any) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(fields)


DONE = b"data: [DONE]\n\n"
EVENTS = st.lists(
    st.sampled_from(
        [
            event(said="a"), event(said="é"), b": here\n\n", b"event: x\n" + event(said="b"),
            event(error={"message": "it broke", "code": 500}), b"data: {\n\n", DONE,
        ]
    ),
    max_size=8,
)  # fmt: skip


@given(EVENTS, st.lists(st.integers(0, 300), max_size=20))
def test_any_chunking_gives_the_same(events: list[bytes], at: list[int]) -> None:
    stream = b"".join(events)
    places = sorted({place % (len(stream) + 1) for place in at})
    cut = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    assert through(cut) == through([stream])


@given(EVENTS)
def test_a_stream_has_one_end(events: list[bytes]) -> None:
    lines = through(events).splitlines()
    ends = [line for line in lines if line.startswith((b"END", b"BROKEN"))]
    assert len(ends) == 1
    assert lines[-1] == ends[0]


def test_what_becomes_of_a_stream() -> None:
    assert through([event(said="a"), event(said="b"), DONE]) == b"A\nB\nEND\n"
    assert through([event(said="a"), b"data: [DONE]"]) == b"A\nEND\n"
    assert through([b": here\n\n", DONE]) == b": here\n\nEND\n"
    assert through([b": here\n\n", DONE], "application/x-ndjson") == b"END\n"
    assert through([DONE, event(said="late"), b": here\n\n"]) == b"END\n"
    early = b"BROKEN The model's server ended its answer before it was whole server_error\n"
    assert through([event(said="a")]) == b"A\n" + early
    assert through([]) == early
    odd = b"BROKEN The model's server does not stream as an OpenAI server does server_error\n"
    assert through([event(said="a"), b"data: []\n\n", DONE]) == b"A\n" + odd
    assert through([event(other="a"), DONE]) == odd


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"message": "no", "type": "server_error", "code": None}, "no server_error"),
        ({"message": "no", "type": "t", "code": "c"}, "no c"),
        ({"message": "no", "code": 500}, "no server_error"),
        ({}, "The model's server failed server_error"),
        ("no", "no server_error"),
    ],
)
def test_an_error_in_a_stream_ends_it(error: Any, told: str) -> None:
    stream = [event(said="a"), event(error=error), event(said="b"), DONE]
    assert through(stream).decode() == f"A\nBROKEN {told}\n"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, b'{"error":{"message":"no","type":"t","code":"c"}}', "400 no c"),
        (400, b'{"error":{"message":"no","type":"t","code":null}}', "400 no t"),
        (500, b'{"error":{"message":"no"}}', "500 no server_error"),
        (404, b'{"error":"no such model"}', "404 no such model invalid_request_error"),
        (400, b'{"error":{}}', "400 Status 400 invalid_request_error"),
        (502, b"<html>", "502 The model's server answered with status 502 server_error"),
        (502, b"\xff", "502 The model's server answered with status 502 server_error"),
        (404, b"[" * 100_000, "404 The model's server answered with status 404"
         " invalid_request_error"),
    ],
)  # fmt: skip
def test_an_error_keeps_its_status_and_words(status: int, body: bytes, told: str) -> None:
    assert translation().error(status, body).decode() == told


def test_a_whole_answer() -> None:
    assert translation().whole(b'{"said":"a"}') == b"A"
    for body in (b"{", b"[]", b"{}", b"\xff", b'{"x":' + b"[" * 100_000):
        with pytest.raises(Garbled):
            translation().whole(body)


def test_what_the_replica_is_asked() -> None:
    one = translation(stream=True)
    assert (one.model, one.path, one.streamed, one.answers) == (
        "m", "/v1/chat/completions", True, True,
    )  # fmt: skip
    assert json.loads(one.body) == {"model": "m", "stream": True}
    for model in (None, "", 5):
        with pytest.raises(Refused, match="names no model"):
            translation(model=model)
