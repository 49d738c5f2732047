"""docs/tried.md: what is typed wrong is told as the document shows it."""

from __future__ import annotations

from typist import Typist, blocks, is_shown


def test_what_is_typed_wrong_is_told_in_these_words(typist: Typist) -> None:
    told = blocks("tried.md")
    assert sum(block.fails > 0 for block in told) > 10
    for block in told:
        assert not block.fails or block.shown, block.text
        typist.type(block)


def test_what_differs_is_not_compared() -> None:
    assert is_shown("Error: … is gone.\n", "Error: /a/b is gone.")
    assert is_shown("one\n…\n", "one\ntwo\nthree\n")
    assert not is_shown("Error: … is gone.\n", "Error: /a/b is gone. Or not.")
    assert not is_shown("Error.\n", "error.\n")
