"""GRUB's environment block, as grub-editenv writes it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StateError
from image.node.envblock import BLOCK_BYTES, decode, encode

NAMES = st.text("abc_xyz09", min_size=1, max_size=8)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def test_a_block() -> None:
    block = encode({"first": "a", "odd": "x\\y\nz=#"})
    assert block.startswith(b"# GRUB Environment Block\nfirst=a\nodd=x\\\\y\\\nz=#\n###")
    assert len(block) == BLOCK_BYTES
    assert decode(block) == {"first": "a", "odd": "x\\y\nz=#"}


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_what_is_written_is_read(values: dict[str, str]) -> None:
    assert decode(encode(values)) == values


def test_it_has_to_fit() -> None:
    room = BLOCK_BYTES - len("# GRUB Environment Block\na=\n")
    assert decode(encode({"a": "x" * room})) == {"a": "x" * room}
    with pytest.raises(StateError, match="do not fit"):
        encode({"a": "x" * (room + 1)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda block: b"",
        lambda block: block[:-1],
        lambda block: block + b"#",
        lambda block: bytes(BLOCK_BYTES),
        lambda block: b"#" * BLOCK_BYTES,
        lambda block: block[:-1] + b"\n",
        lambda block: block.replace(b"a=b", b"a b"),
        lambda block: block.replace(b"a=b", b"a=\xff"),
        lambda block: block.replace(b"a=b\n", b"a=b#"),
    ],
)
def test_what_is_no_whole_block_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StateError, match="damaged"):
        decode(damage(encode({"a": "b"})))


@given(st.binary(max_size=BLOCK_BYTES - 25))
def test_any_bytes_are_values_or_refused(raw: bytes) -> None:
    block = encode({})[:25] + raw.ljust(BLOCK_BYTES - 25, b"#")
    try:
        values = decode(block)
    except StateError:
        return
    assert decode(encode(values)) == values


@pytest.mark.skipif(shutil.which("grub-editenv") is None, reason="grub-editenv is not installed")
def test_grub_reads_and_writes_the_same(tmp_path: Path) -> None:
    file = tmp_path / "grubenv"
    file.write_bytes(encode({"first": "a", "slot_a": "g"}))
    subprocess.run(["grub-editenv", file, "set", "slot_a=2"], check=True)
    assert file.read_bytes() == encode({"first": "a", "slot_a": "2"})
    listed = subprocess.run(["grub-editenv", file, "list"], check=True, stdout=subprocess.PIPE)
    assert listed.stdout == b"first=a\nslot_a=2\n"
