"""Text as it is sent, against what a naive reading of the whole answer gives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.engine.serve.text import StopMatcher, Utf8Stream


def cut(whole: bytes, marks: list[int]) -> list[bytes]:
    """Cut `whole` at `marks` (taken modulo its length)."""
    places = sorted({0, len(whole), *(mark % (len(whole) + 1) for mark in marks)})
    return [whole[a:b] for a, b in pairwise(places)]


marks = st.lists(st.integers(0, 100), max_size=12)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="aé€😀\ufffd\n", max_size=12), marks=marks)
def test_characters_survive_any_cut(text: str, marks: list[int]) -> None:
    stream = Utf8Stream()
    parts = [stream.push(piece) for piece in cut(text.encode(), marks)]
    assert "".join(parts) == text


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=16), marks=marks)
@example(data=b"\xed\xa0", marks=[])
def test_bad_bytes_are_replaced_as_python_does_and_a_cut_end_is_dropped(
    data: bytes, marks: list[int]
) -> None:
    stream = Utf8Stream()
    got = "".join(stream.push(piece) for piece in cut(data, marks))
    whole = data.decode(errors="replace")
    # Of half a surrogate, which is no character, Python's decoder holds back two bytes.
    assert whole in (got, got + "\ufffd", got + "\ufffd\ufffd")
    # What is missing is a cut-off character: completing it gives more text, never less.
    assert (data + b"a").decode(errors="replace").startswith(got)


def test_a_character_over_four_tokens_is_sent_once_it_is_whole() -> None:
    stream = Utf8Stream()
    assert [stream.push(bytes([byte])) for byte in "😀".encode()] == ["", "", "", "😀"]


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Return the text before the stop string that is complete first, reading letter by letter."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=250, deadline=None)
@given(
    text=st.text(alphabet="ab\n", max_size=20),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4),
    marks=marks,
)
def test_stops_match_the_naive_reading(text: str, stops: list[str], marks: list[int]) -> None:
    matcher = StopMatcher(stops)
    sent = ""
    for piece in cut(text.encode(), marks):
        sent += matcher.push(piece.decode())
        before, _ = naive(text, stops)
        assert before.startswith(sent), "sent text that a stop string takes back"
    if matcher.matched is None:
        sent += matcher.flush()
    assert (sent, matcher.matched) == naive(text, stops)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=16), stop=st.text(alphabet="abc", min_size=1, max_size=4)
)
def test_no_more_is_held_back_than_needed(text: str, stop: str) -> None:
    matcher = StopMatcher([stop])
    sent = "".join(matcher.push(letter) for letter in text)
    if matcher.matched is None:
        held = text[len(sent) :]
        assert stop.startswith(held) and len(held) < len(stop)


def test_after_a_match_nothing_more_comes() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push(p) for p in ("one E", "N", "D two", "three")] == ["one ", "", "", ""]
    assert matcher.matched == "END"
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
