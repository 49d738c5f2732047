"""Token counts read off the bytes of answers, however they are cut."""

from __future__ import annotations

import gzip
import json
import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.usage import HEAD_BYTES, TAIL_BYTES, Meter, Tokens, of_prompt


def sse(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def delta(text: str, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46,
         "prompt_tokens_details": {"cached_tokens": 5}}  # fmt: skip
STREAM = sse(*[delta("x", usage=None)] * 3, {"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n"
TIMINGS = {"cache_n": 4, "prompt_n": 6, "prompt_ms": 1.5, "predicted_n": 7, "predicted_ms": 2.0}
END = {"index": 0, "delta": {}, "finish_reason": "stop"}
FORMS = {
    "a whole answer": (json.dumps({"choices": [{"text": "hi"}], "usage": USAGE}), (12, 34, 5)),
    "spaces": ('{"usage" : {"prompt_tokens" : 12 , "completion_tokens":\n 34}}', (12, 34)),
    "a stream that asked": (STREAM.decode(), (12, 34, 5)),
    "embeddings, usage last": (
        json.dumps({"data": [[0.25] * 9000], "usage": {"prompt_tokens": 8, "total_tokens": 8}}),
        (8, 0),
    ),
    "embeddings, usage first": (
        json.dumps({"usage": {"prompt_tokens": 8, "total_tokens": 8}, "data": [[0.25] * 9000]}),
        (8, 0),
    ),
    "anthropic": (
        json.dumps({"content": [], "usage": {"input_tokens": 10, "output_tokens": 5,
                    "cache_creation_input_tokens": 3, "cache_read_input_tokens": 2}}),
        (15, 5, 2),
    ),
    "an anthropic stream": (
        'event: message_start\n'
        'data: {"message":{"usage":{"input_tokens":25,"output_tokens":1}}}\n\n'
        + "event: content_block_delta\ndata: {}\n\n" * 1000
        + 'event: message_delta\ndata: {"delta":{},"usage":{"output_tokens":15}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        (25, 15),
    ),
    "a short anthropic stream": (
        'data: {"message":{"usage":{"input_tokens":25,"cache_read_input_tokens":5,'
        '"output_tokens":1}}}\n\ndata: {"usage":{"input_tokens":25,"cache_read_input_tokens":5,'
        '"output_tokens":15}}\n\n',
        (30, 15, 5),
    ),
    "responses": (
        sse({"type": "response.created", "response": {"usage": None}},
            {"type": "response.completed", "response": {"usage": {
                "input_tokens": 7, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 4},
                "total_tokens": 16}}}).decode(),
        (7, 9, 0),
    ),
    "ollama": (
        '{"message":{"content":"x"},"done":false}\n' * 500
        + '{"done":true,"prompt_eval_count":26,"eval_count":298,"eval_duration":4}\n',
        (26, 298),
    ),
    "a stream of a head that did not ask": (
        (sse(delta("x"), {"choices": [END], "timings": TIMINGS}) + b"data: [DONE]\n\n").decode(),
        (10, 7, 4),
    ),
    "two answers in such a stream": (
        sse({"choices": [END], "timings": TIMINGS},
            {"choices": [END], "timings": {**TIMINGS, "predicted_n": 5}}).decode(),
        (10, 12, 4),
    ),
    "timings with each token": (
        sse(delta("x", timings={**TIMINGS, "predicted_n": 1}),
            delta("x", timings={**TIMINGS, "predicted_n": 2}),
            {"choices": [END], "timings": {**TIMINGS, "predicted_n": 2}}).decode(),
        (10, 2, 4),
    ),
    "a text that looks like usage": (
        json.dumps({"usage": USAGE, "choices": [{"text": '"usage": {"prompt_tokens": 0}'}]}),
        (12, 34, 5),
    ),
    "two, the last counts": ('"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}', (2, 0)),
    "cut before its end": ('"completion_tokens":5,"usage":{"prompt_tokens":12', (12, 0)),
}  # fmt: skip


def fed(data: bytes, sizes: list[int], encoding: str = "") -> Meter:
    meter, at, turn = Meter(), 0, 0
    meter.begin(encoding)
    while at < len(data):
        size = sizes[turn % len(sizes)]
        meter.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    return meter


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [[10**6], [1, 7, 300], [4096]])
def test_forms(form: str, sizes: list[int]) -> None:
    text, expected = FORMS[form]
    meter = fed(text.encode(), sizes)
    assert meter.tokens() == Tokens(*expected)
    assert meter.fed == len(text)


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=30), before=st.integers(0, 60_000))
def test_any_cut_gives_the_same(sizes: list[int], before: int) -> None:
    data = sse(delta("x" * before)) + STREAM
    assert fed(data, sizes).tokens() == Tokens(12, 34, 5)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_compressed_answers(encoding: str) -> None:
    noise = Random(5).randbytes(40_000).hex()
    data = json.dumps({"choices": [{"text": noise}], "usage": USAGE}).encode()
    packed = zlib.compress(data) if encoding == "deflate" else gzip.compress(data)
    assert fed(packed, [1000], encoding).tokens() == Tokens(12, 34, 5)


def test_what_is_not_what_it_says_is_estimated() -> None:
    meter = fed(STREAM, [100], "gzip")
    assert meter.fed == len(STREAM)
    assert meter.estimate() > 0
    assert fed(b"\x28\xb5\x2f\xfd" * 100, [50], "zstd").tokens() is None


def test_a_bomb_is_not_unpacked_at_once() -> None:
    meter = fed(gzip.compress(b"\0" * 2**26), [2**20], "gzip")
    assert meter.tokens() is None
    assert len(meter._tail) <= 2 * TAIL_BYTES + 2**18


def test_memory_is_bounded() -> None:
    meter = Meter()
    for size in (1, 10, 5000, 100_000):
        for _ in range(100):
            meter.feed(b"x" * size)
    assert len(meter._head) == HEAD_BYTES
    assert len(meter._tail) <= 2 * TAIL_BYTES


def test_estimates() -> None:
    assert fed(sse(*[delta("x")] * 40), [77]).tokens() is None
    events = fed(sse(*[delta("x")] * 40), [77]).estimate()
    assert 35 <= events <= 40  # a cut may fall into an event's end
    assert fed(b"x" * 401, [9]).estimate() == 101
    assert Meter().estimate() == 0
    assert (of_prompt(0), of_prompt(401)) == (1, 100)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'data: {"choices":[]}\n\ndata: [DONE]\n\n',
        b'{"usage":null}',
        b'{"usage":{"prompt_tokens":12345678901234}}',
        b"\x1f\x8b\x08\x00 compressed",
    ],
)
def test_what_says_nothing_is_not_guessed(data: bytes) -> None:
    assert fed(data, [5]).tokens() is None


def test_it_may_be_asked_before_the_end_and_again() -> None:
    meter = fed(sse(delta("x")), [999])
    assert (meter.tokens(), meter.events) == (None, 1)
    meter.feed(STREAM)
    assert (meter.tokens(), meter.tokens()) == (Tokens(12, 34, 5), Tokens(12, 34, 5))
    assert meter.events == 6


@given(data=st.lists(st.sampled_from([b"\n", b"a", b"\n\n", b"x" * 9000]), min_size=1, max_size=8))
def test_how_it_ends_so_far(data: list[bytes]) -> None:
    meter = Meter()
    for chunk in data:
        meter.feed(chunk)
    assert meter.ends_with(b"\n\n") == b"".join(data).endswith(b"\n\n")
