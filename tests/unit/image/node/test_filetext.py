"""Files as editors leave them: the same lines, and the same bytes again."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from image.node.filetext import FileText, damaged


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines(encoding: str, end: str) -> None:
    raw = f"grün{end}{end}b\u2028c 🦆{end}d".encode(encoding)
    assert FileText.decode(raw).lines == ("grün", "", "b\u2028c 🦆", "d")


def test_the_last_end_begins_no_line() -> None:
    assert FileText.decode(b"a\n").lines == ("a",)
    assert FileText.decode(b"a\n\n").lines == ("a", "")
    assert FileText.decode(b"").lines == ("",)


def test_damage_is_found() -> None:
    assert damaged(FileText.decode(b"caf\xe9").lines[0])
    assert damaged(FileText.decode(b"\xff\xfe\x00\xd8").lines[0])
    assert not damaged(FileText.decode("café 🦆".encode()).lines[0])


@given(st.binary())
@example(b"\xff\xfea\0\n")
@example(b"\xfe\xff\0a\0")
@example(b"\xef\xbb\xbf\xed\xa0\x80")
def test_nothing_is_lost(raw: bytes) -> None:
    assert FileText.decode(raw).encode() == raw


def test_other_lines() -> None:
    text = FileText.decode(b"\xef\xbb\xbfa\r\nb\nc")
    assert text.with_lines({1: None, 3: "d"}).encode() == b"\xef\xbb\xbfb\nd"
    assert text.with_lines({1: None, 2: None, 3: None}).encode() == b"\xef\xbb\xbf"
