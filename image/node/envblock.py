"""GRUB's environment block: 1,024 bytes that hold NAME=VALUE lines. A core.

    # GRUB Environment Block\\n  NAME=VALUE\\n …  ####…

As GRUB's lib/envblk.c has it: a backslash stands before a backslash and a line end in a value, and
the rest is filled with #. GRUB changes values in their place and appends new names, so a block of
ours with the names in the same order is, byte for byte, what GRUB writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.errors import StateError

BLOCK_BYTES = 1024
_HEADER = b"# GRUB Environment Block\n"
_LINE = re.compile(rb"([^=\n\\#][^=\n\\]*)=((?:[^\\\n]|\\[\\\n])*)\n")
_FILLED = re.compile(rb"#*")
_ESCAPED = re.compile(rb"\\(.)", re.S)


def encode(values: Mapping[str, str]) -> bytes:
    """Return the block that holds these values; raises StateError when they do not fit."""
    raw = _HEADER + b"".join(
        name.encode() + b"=" + re.sub(rb"([\\\n])", rb"\\\1", value.encode()) + b"\n"
        for name, value in values.items()
    )
    if len(raw) > BLOCK_BYTES:
        raise StateError(f"{len(raw)} bytes do not fit GRUB's block of {BLOCK_BYTES}")
    return raw.ljust(BLOCK_BYTES, b"#")


def decode(block: bytes) -> dict[str, str]:
    """Return a block's values; raises StateError for anything that is no whole block."""
    if len(block) != BLOCK_BYTES or not block.startswith(_HEADER):
        raise _damaged()
    values: dict[str, str] = {}
    at = len(_HEADER)
    while found := _LINE.match(block, at):
        try:
            values[found[1].decode()] = _ESCAPED.sub(rb"\1", found[2]).decode()
        except UnicodeDecodeError:
            raise _damaged() from None
        at = found.end()
    if not _FILLED.fullmatch(block, at):
        raise _damaged()
    return values


def _damaged() -> StateError:
    return StateError(
        "GRUB's environment block is damaged",
        hint="The other copy counts; this one is written anew with the next change.",
    )
