"""The bytes through the gateway are the replica's, however it sends them, and never half of them.

A replica that speaks bare TCP sends answers that hypothesis makes up: any framing, cut anywhere
into writes. A client that speaks bare TCP reads what the real gateway makes of them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from random import Random
from typing import Any

import pytest
from bare_http import BODY, Answer, asking
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

# What belongs to one connection, or is the gateway's own word.
OWN = {"connection", "keep-alive", "trailer", "transfer-encoding", "x-covey-replica",
       "x-covey-route"}  # fmt: skip
# What an HTTP server adds where it is missing.
ADDED = {"date", "server", "content-type", "content-length"}
HOP = ("X-Hop", "1")

EVENTS = st.lists(
    st.builds(
        lambda text, end: f"data: {json.dumps(text, ensure_ascii=False)}{end}".encode(),
        st.text(max_size=20), st.sampled_from(["\n\n", "\r\n\r\n", "\n", "\n\n: here\n\n"]),
    ),
    max_size=12,
).map(b"".join)  # fmt: skip
LARGE = st.builds(
    lambda seed, size: Random(seed).randbytes(size), st.integers(0, 99), st.integers(0, 300_000)
)
PACKED = st.one_of(
    st.tuples(st.just("gzip"), EVENTS.map(gzip.compress)),
    st.tuples(st.just("deflate"), EVENTS.map(zlib.compress)),
)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["X-A", "x-a", "Set-Cookie", "ETag", "Server", "Via", "X-Request-Id"]),
        VALUES | st.just("é ü"),
    ),
    max_size=5,
)
TYPES = st.sampled_from(["text/event-stream", "application/json", "text/event-stream; charset=u"])
SIZES = st.lists(st.sampled_from([1, 2, 7, 100, 5000, 70_000]), max_size=30).map(tuple)
CUTS = st.lists(st.integers(0, 400_000) | st.integers(0, 400), max_size=12)
STATUSES = st.sampled_from(
    [200] * 8 + [201, 202, 203, 204, 206, 226, 299, 304, 307, 400, 404, 409, 422, 429, 451, 499]
)
INTERIM = st.sampled_from(
    [b""] * 3
    + [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 2,
    ]
)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    headers = draw(HEADERS)
    encoding, body = draw(st.tuples(st.just(""), EVENTS | st.binary() | LARGE) | PACKED)
    if encoding:
        headers.append(("Content-Encoding", encoding))
    if draw(st.booleans()):
        headers.append(("Content-Type", draw(TYPES)))
    if draw(st.booleans()):
        headers += [("Connection", HOP[0]), HOP, ("Keep-Alive", "timeout=5")]
    status = draw(STATUSES)
    return Answer(
        status, headers, b"" if status in (204, 304) else body,
        draw(st.sampled_from(["length", "chunked", "close"])), draw(SIZES),
        draw(st.sampled_from([b"", b";a", b';a="b"'])),
        draw(st.sampled_from([b"", b"X-Late: 1\r\n"])), draw(INTERIM),
    )  # fmt: skip


few = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])


@few
@given(answers(), CUTS, st.sampled_from(["1.1", "1.1", "1.0"]))
def test_an_answer_is_the_replicas(
    world: Any, answer: Answer, cuts: list[int], version: str
) -> None:
    got = world.through(answer, cuts, asking(version))
    assert (got.status, got.whole) == (answer.status, True)
    assert got.body == answer.body
    sent: dict[str, list[str]] = defaultdict(list)
    for name, value in answer.headers:
        if name != HOP[0]:
            sent[name.lower()].append(value)
    seen = {name: values for name, values in got.headers.items() if name not in OWN}
    expected = {name: values for name, values in sent.items() if name not in OWN}
    assert {n: v for n, v in seen.items() if n in expected or n not in ADDED} == expected
    assert got.headers.get("content-length", [str(len(answer.body))]) == [str(len(answer.body))]
    assert HOP[0].lower() not in got.headers


@few
@given(answers(), CUTS, st.integers(0, 400_000), st.booleans(), st.sampled_from(["1.1", "1.0"]))
def test_half_an_answer_is_never_a_whole_one(
    world: Any, answer: Answer, cuts: list[int], at: int, reset: bool, version: str
) -> None:
    wire, enough = answer.wire()
    head = len(wire) - len(answer.body)
    stop = at % enough
    # Where only the connection's end ends it, nobody can know.
    assume(reset or answer.framing != "close" or answer.bodiless or stop < head)
    got = world.through_to(answer, cuts, stop, asking(version), reset=reset)
    if "x-covey-replica" not in got.headers:
        event("no answer")
        assert (got.status, got.whole) == (503, True)
        return
    assert got.status == answer.status
    if not got.whole:
        event("cut")
        assert answer.body.startswith(got.body)
        return
    event("an error event")
    assert got.headers["content-type"][0].startswith("text/event-stream")
    said, _, error = got.body.rpartition(b"data: ")
    assert answer.body.startswith(said) and said.endswith(b"\n\n")
    assert "broke off" in json.loads(error)["error"]["message"]
    assert "content-encoding" not in got.headers


def test_nothing_is_added_to_a_packed_stream_that_breaks(world: Any) -> None:
    packed = gzip.compress(b"data: 1\n\n", compresslevel=0)[:20] + b"\n\n"
    headers = [("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip")]
    answer = Answer(
        headers=headers, body=packed * 2, framing="chunked", sizes=(len(packed), len(packed))
    )
    wire = answer.wire()[0]
    stop = wire.index(packed) + len(packed) + 2
    got = world.through_to(answer, [], stop, asking())
    assert (got.body, got.whole) == (packed, False)


@settings(few, max_examples=30)
@given(answers(), CUTS)
def test_an_error_comes_whole_however_it_was_sent(
    world: Any, answer: Answer, cuts: list[int]
) -> None:
    answer.status, answer.interim = 500, b""
    got = world.through(answer, cuts, asking())
    assert (got.status, got.whole, got.body) == (500, True, answer.body)


def packed(encoding: str, body: bytes) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body)
    return zlib.compress(body) if encoding == "deflate" else body


@settings(few, max_examples=100)
@given(
    st.dictionaries(st.text(max_size=5), st.text(), max_size=5), st.integers(0, 200_000),
    st.sampled_from(["", "", "identity", "gzip", "GZIP", "deflate"]), st.booleans(), SIZES, CUTS,
)  # fmt: skip
def test_a_request_arrives_unpacked_and_its_head_says_so(
    world: Any, fields: dict[str, Any], pad: int, encoding: str, chunked: bool,
    sizes: tuple[int, ...], cuts: list[int],
) -> None:  # fmt: skip
    body = json.dumps({**fields, "model": "m", "pad": "x" * pad}).encode()
    more = f"Content-Encoding: {encoding}\r\n".encode() if encoding else b""
    sent = packed(encoding.lower(), body)
    if chunked:
        whole = Answer(framing="chunked", body=sent, sizes=sizes).wire()[0]
        framed = whole.partition(b"\r\n\r\n")[2]
        head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
        request = head + more + b"\r\n" + framed
    else:
        [request] = asking(more=more, body=sent)
    places = sorted({cut % (len(request) + 1) for cut in cuts})
    pieces = [request[a:b] for a, b in zip([0, *places], [*places, len(request)], strict=True)]
    got = world.through(Answer(body=b"ok"), [], pieces)
    assert (got.status, got.body) == (200, b"ok")
    headers, arrived = world.replica.asked
    assert arrived == body
    assert headers["content-length"] == str(len(body))
    assert not {"content-encoding", "transfer-encoding"} & set(headers)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415),
        ("x-lzma", BODY, 415),
        ("gzip", BODY, 400),
        ("gzip", gzip.compress(BODY)[:-12], 400),
        ("gzip", gzip.compress(b'{"model":"m","x":"' + b"x" * 2**24 + b'"}'), 413),
    ],
    # A packed body has the time in it.
    ids=["twice", "lzma", "not packed", "cut off", "too large"],
)
def test_what_cannot_be_unpacked_is_said(
    world: Any, encoding: str, body: bytes, status: int
) -> None:
    more = f"Content-Encoding: {encoding}\r\n".encode()
    got = world.through(Answer(), [], asking(more=more, body=body))
    assert got.status == status
    assert json.loads(got.body)["error"]["message"]
