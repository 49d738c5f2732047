"""Whoever decodes what others wrote takes all that msgspec raises for it (agent/unreadable.py)."""

import ast
from pathlib import Path

import msgspec
import pytest

from agent.unreadable import UNREADABLE

ROOT = Path(__file__).parents[3]
# Each of these alone leaves out texts that are no UTF-8, or nesting beyond Python's stack.
PARTIAL = frozenset({"DecodeError", "MsgspecError"})


def caught(handler: ast.ExceptHandler) -> set[str]:
    """Return the last parts of the names in an `except`."""
    names = ast.walk(handler.type) if handler.type is not None else ()
    return {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in names
        if isinstance(node, ast.Attribute | ast.Name)
    }


def partial(source: ast.AST) -> list[int]:
    """Return the lines of handlers that take a part only."""
    found = []
    for node in ast.walk(source):
        if isinstance(node, ast.ExceptHandler) and (names := caught(node)) & PARTIAL:
            texts = {"UnicodeDecodeError", "ValueError"} & names
            if "Exception" not in names and not (texts and "RecursionError" in names):
                found.append(node.lineno)
    return found


def test_handlers_take_all_or_none() -> None:
    files = [path for package in ("agent", "gateway", "image")
             for path in (ROOT / package).rglob("*.py")]  # fmt: skip
    found = {path: lines for path in files if (lines := partial(ast.parse(path.read_text())))}
    assert found == {}


def test_a_handler_that_takes_a_part_is_seen() -> None:
    text = "try:\n    pass\nexcept (OSError, msgspec.DecodeError):\n    pass\n"
    assert partial(ast.parse(text)) == [3]
    whole = text.replace("msgspec.DecodeError", "msgspec.DecodeError, ValueError, RecursionError")
    assert partial(ast.parse(whole)) == []


@pytest.mark.parametrize("raw", [b'"\xff"', b"[" * 5000, b"{", b"[]"])
def test_it_is_all(raw: bytes) -> None:
    kind = list[object] if raw.startswith(b"[[") else str
    with pytest.raises(UNREADABLE):
        msgspec.json.decode(raw, type=kind)
