"""Hostile values in well-formed messages: changed bytes seldom get so far, for few still parse.

    reshaped(chance, raw)   a msgpack or JSON message with some values replaced, lost or doubled

What is packed within what is packed (a certificate in a reply) is changed inside as well. Bytes in
front of the msgpack (a kind, an id, a signature) stay as they are.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

VALUES: tuple[Any, ...] = (
    0, 1, -1, 127, 255, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**63 - 1, 2**64 - 1,
    -(2**31), -(2**63), 0.0, -0.0, 0.5, 1e38, 1e308, float("nan"), float("inf"), float("-inf"),
    True, False, None, "", "x", "é", "\x1b[2J", "\0", "\n", "\u202e", "x" * 300, "4" * 70, "a:1",
    "[::1]:0", "127.0.0.1:4001", "../..", b"", bytes(4), bytes(16), bytes(31), bytes(32), bytes(33),
    bytes(64), b"\xff" * 32, b"\x01" + bytes(31), b"\xff" * 64, bytes(500), [], {}, [[]],
    [None] * 20, {"type": "x"}, {"": 0}, [[0, 0]] * 3,
)  # fmt: skip
# Where the msgpack begins: at once, after a kind and an id, after a kind and a signature.
OFFSETS = (0, 9, 65)
# A message of ours is nested less than this.
DEPTH_MAX = 8


def reshaped(chance: random.Random, raw: bytes) -> bytes | None:
    """Return another message of the same form, or None for what is neither msgpack nor JSON."""
    for offset in OFFSETS:
        tree = _packed(raw[offset:])
        if tree is not None:
            return raw[:offset] + msgspec.msgpack.encode(_changed(chance, tree))
    try:
        tree = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return msgspec.json.encode(_changed(chance, tree))


def _packed(raw: bytes) -> list[Any] | dict[Any, Any] | None:
    try:
        tree = msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return None
    return tree if isinstance(tree, (list, dict)) else None


def _changed(chance: random.Random, tree: Any) -> Any:
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        tree = _change(chance, tree, 0)
    return tree


def _change(chance: random.Random, tree: Any, depth: int) -> Any:
    """Return the tree with one place changed."""
    deeper = depth < DEPTH_MAX and chance.random() < 0.8
    match tree:
        case list() if tree and deeper:
            at = chance.randrange(len(tree))
            return [*tree[:at], *_one(chance, tree[at], depth), *tree[at + 1 :]]
        case dict() if tree and deeper:
            key = chance.choice(list(tree))
            found = _one(chance, tree[key], depth)
            kept = {k: v for k, v in tree.items() if k != key}
            if chance.random() < 0.05:
                key = chance.choice(("", "x", "type", "\x1b", 5))
            return kept | ({key: found[0]} if found else {})
        case bytes() if deeper and (inner := _packed(tree)) is not None:
            return msgspec.msgpack.encode(_change(chance, inner, depth + 1))
        case bytes() | str() if tree and chance.random() < 0.5:
            return tree * chance.randrange(1, 9) if chance.random() < 0.5 else tree[:-1]
        case int() if not isinstance(tree, bool) and chance.random() < 0.3:
            return max(-(2**63), min(2**64 - 1, tree + chance.choice((-1, 1, 100, 10**9))))
    return chance.choice(VALUES)


def _one(chance: random.Random, value: Any, depth: int) -> list[Any]:
    """Return what takes a value's place: nothing, twice the same, or a changed one."""
    match chance.randrange(10):
        case 0:
            return []
        case 1:
            return [value, value]
    return [_change(chance, value, depth + 1)]
