"""Signed updates: who may sign, for which machine, above which version, and every byte checked."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StateError, UsageError
from image.node.manifest import (
    MAX_BYTES,
    Manifest,
    Part,
    PartCheck,
    UpdateRefused,
    check,
    numbers,
    raised,
    sign,
    verify,
)

SEED, OTHER_SEED = b"k" * 32, b"o" * 32
ROOT = b"squashfs" * 100
PART = Part("root", len(ROOT), hashlib.sha256(ROOT).hexdigest())
MANIFEST = Manifest("0.21.0", "x86_64", "0.20.0", (PART,))


def public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


KEYS = (public(OTHER_SEED), public(SEED))
SIGNED = sign(MANIFEST, SEED)


def refused(act: Callable[[], object], match: str) -> None:
    with pytest.raises(UpdateRefused, match=match):
        act()


def install(version: str = "0.21.0", **machine: object) -> None:
    facts = {"arch": "x86_64", "flavour": "virt", "running": "0.20.3", "floor": "0.19.0",
             "slot_bytes": 1 << 20}  # fmt: skip
    check(msgspec.structs.replace(MANIFEST, version=version), **{**facts, **machine})


def test_any_trusted_key_may_have_signed() -> None:
    assert verify(SIGNED, KEYS) == MANIFEST
    assert verify(SIGNED, KEYS[1:]) == MANIFEST
    assert sign(MANIFEST, SEED) == SIGNED


def test_another_key_is_refused() -> None:
    refused(lambda: verify(SIGNED, KEYS[:1]), "not signed by a key that this machine trusts")
    refused(lambda: verify(SIGNED, ()), "not signed by a key")
    with pytest.raises(StateError, match="no Ed25519 public key"):
        verify(SIGNED, [b"short"])


def test_each_byte_counts() -> None:
    for at in range(len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[at] ^= 1
        with pytest.raises(UpdateRefused):
            verify(bytes(changed), KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(raw: bytes) -> None:
    for tried in (raw, SIGNED + raw + b"x", SIGNED[: len(raw)]):
        with pytest.raises(UpdateRefused):
            verify(tried, KEYS)


def test_what_is_wrong_is_told() -> None:
    head, _, body = SIGNED.partition(b"\n")
    refused(lambda: verify(b"<html>", KEYS), "no update of a Covey appliance")
    refused(lambda: verify(b"covey-update-2 x\n", KEYS), "a form that this version does not know")
    refused(lambda: verify(head[:-8] + b"\n" + body, KEYS), "cut short or garbled")
    refused(lambda: verify(SIGNED + b" " * MAX_BYTES, KEYS), "more than 16384 bytes")
    refused(lambda: verify(b"covey-update-1 !\n" + body, KEYS), "cut short or garbled")


def test_a_manifest_that_nobody_could_install_is_not_signed() -> None:
    replace = msgspec.structs.replace
    refused(lambda: sign(replace(MANIFEST, floor="0.22.0"), SEED), "a floor above its own")
    refused(lambda: sign(replace(MANIFEST, parts=(PART, PART)), SEED), "names a part twice")
    refused(lambda: sign(replace(MANIFEST, version="1.0"), SEED), r"makes no sense.*version")
    refused(lambda: sign(replace(MANIFEST, parts=()), SEED), "makes no sense")
    with pytest.raises(UsageError):
        sign(replace(MANIFEST, arch="mips"), SEED)


def test_which_machine_may_install() -> None:
    install()
    install(running="0.20.99", floor="0.21.0", slot_bytes=len(ROOT))
    refused(lambda: install(arch="aarch64"), "is for x86_64, and this machine is aarch64")
    refused(lambda: install(flavour="metal"), "of the flavour virt, and this one is metal")
    refused(lambda: install(floor="0.21.1", running="0.1.0"), "below 0.21.1, the oldest")
    refused(lambda: install(running="0.21.0"), "not newer than 0.21.0")
    refused(lambda: install("0.9.0", floor="0.1.0", running="0.10.0"), "not newer than 0.10.0")
    refused(lambda: install(slot_bytes=len(ROOT) - 1), "and this disk's slots 799")


def test_a_plain_images_update_is_read_by_versions_that_know_no_flavours() -> None:
    assert b"flavour" not in SIGNED
    replace = msgspec.structs.replace
    other = replace(MANIFEST, flavour="raspberrypi")
    assert verify(sign(other, SEED), KEYS) == other
    with pytest.raises(UsageError):
        sign(replace(MANIFEST, flavour="toaster"), SEED)


def test_an_update_without_a_root_is_refused() -> None:
    other = msgspec.structs.replace(MANIFEST, parts=(Part("boot", 1, "0" * 64),))
    refused(
        lambda: check(
            other, arch="x86_64", flavour="virt", running="0.1.0", floor="0.0.0", slot_bytes=1
        ),
        "has no part 'root'",
    )


def test_the_floor_never_falls() -> None:
    assert raised("0.19.0", MANIFEST) == "0.20.0"
    assert raised("0.100.0", MANIFEST) == "0.100.0"


def test_versions_are_compared_as_numbers() -> None:
    assert numbers("0.10.0") > numbers("0.9.12")
    for none in ("", "1.2", "1.2.3.4", "v1.2.3", "1.02.3", "1.2.3\n", "1.2.-3"):
        with pytest.raises(StateError, match="is no version"):
            numbers(none)


@given(st.lists(st.integers(0, len(ROOT)), max_size=5))
def test_a_part_in_any_pieces(cuts: list[int]) -> None:
    checked = PartCheck(PART)
    edges = [0, *sorted(cuts), len(ROOT)]
    for first, last in itertools.pairwise(edges):
        checked.feed(ROOT[first:last])
    checked.finish()


def test_a_part_that_is_not_what_was_signed() -> None:
    short = PartCheck(PART)
    short.feed(ROOT[:-1])
    refused(short.finish, "ends after 799 of 800 bytes")
    refused(lambda: PartCheck(PART).feed(ROOT + b"x"), "more than its 800 bytes")
    other = PartCheck(PART)
    other.feed(ROOT[:-1] + b"x")
    refused(other.finish, "is not what was signed")
