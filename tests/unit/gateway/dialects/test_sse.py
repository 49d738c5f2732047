"""Server-sent events: whatever the chunks, the same events come of the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.dialects import sse
from gateway.dialects.sse import Comment, Event, Parser, TooLong

LINES = st.lists(
    st.sampled_from(
        [
            b"data: a", b"data:b", b"data", b"data:  two", b"event: named", b"event:", b"", b"",
            b": hello", b":", b"id: 7", b"retry: 10", b"other", b"data: \xff",
            b"\xef\xbb\xbfdata: c",
        ]
    ),
    max_size=20,
)  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def parse(pieces: list[bytes]) -> list[Event | Comment]:
    parser = Parser()
    return [item for piece in pieces for item in parser.push(piece)]


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(stream) + 1) for place in at})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@given(LINES, ENDS, st.lists(st.integers(0, 400), max_size=30))
@example([b"data: a", b"", b"data: b", b""], b"\r\n", list(range(40)))
def test_any_chunking_gives_the_same(lines: list[bytes], end: bytes, at: list[int]) -> None:
    stream = b"".join(line + end for line in lines)
    assert parse(cut(stream, at)) == parse([stream])


@given(LINES, ENDS)
def test_the_ends_of_lines_are_alike(lines: list[bytes], end: bytes) -> None:
    with_lf, other = (b"".join(line + e for line in lines) for e in (b"\n", end))
    assert parse([other]) == parse([with_lf])


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (b"data: a\n\n", [Event("", b"a")]),
        (b"data: a\ndata: b\n\ndata:c\n\n", [Event("", b"a\nb"), Event("", b"c")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [Event("x", b"a"), Event("", b"b")]),
        (b"event: x\n\ndata: b\n\n", [Event("", b"b")]),
        (b": still working\n\ndata: a\n\n", [Comment(b"still working"), Event("", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("", b"a")]),
        (b"data\n\n", [Event("", b"")]),
        (b"data:  a\n\n", [Event("", b" a")]),
        (b"data: cut off", []),
        (b"data: cut off\n", []),
        (b"id: 1\nretry: 2\nunknown: 3\n\n", []),
    ],
)
def test_what_the_standard_says(stream: bytes, told: list[Event | Comment]) -> None:
    assert parse([stream]) == told


def test_an_event_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    small = Parser()
    for _ in range(100):
        assert small.push(b"data: a\n\n") == [Event("", b"a")]
    for stream in (b"data: ", b"data: a\n"):
        parser = Parser()
        with pytest.raises(TooLong):
            for _ in range(101):
                parser.push(stream)


def test_what_is_written_is_read_back() -> None:
    written = sse.comment(b"here") + sse.event("said", {"text": "a\nb\r"})
    assert parse([written]) == [Comment(b"here"), Event("said", b'{"text":"a\\nb\\r"}')]
