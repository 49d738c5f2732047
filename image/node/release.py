"""What an image says of itself: /usr/lib/covey/release, laid there when it was built. A core.

    {"version": "0.21.0", "arch": "x86_64", "keys": ["BASE64", …]}

`keys` are the Ed25519 public keys of those whose updates it takes; who has none takes none.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import PurePosixPath

import msgspec

from agent.errors import StateError, UsageError
from agent.unreadable import UNREADABLE
from image.node.manifest import Arch, Flavour, Version

PATH = PurePosixPath("usr/lib/covey/release")
_PUBLIC_WORD = "covey-update-public-key-1"
_KEY_BYTES = 32


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An image's version, its kind of machine, and whose updates it takes (32 bytes each)."""

    version: Version
    arch: Arch
    keys: tuple[bytes, ...] = ()
    flavour: Flavour = "virt"


def encode(release: Release) -> bytes:
    """Return the file's bytes, the same for the same release; raises UsageError for nonsense."""
    raw = msgspec.json.encode(release) + b"\n"
    try:
        decode(raw)
    except StateError as error:
        raise UsageError(error.message) from None
    return raw


def decode(raw: bytes) -> Release:
    """Return what a release file says; raises StateError for what is none."""
    try:
        release = msgspec.json.decode(raw, type=Release)
    except UNREADABLE as error:
        raise StateError(f"the image's release file makes no sense: {error}") from None
    if any(len(key) != _KEY_BYTES for key in release.keys):
        raise StateError("the image's release file has a key that is no Ed25519 public key")
    return release


def encode_public(key: bytes) -> str:
    """Return the line of text that a public key (32 bytes) is handed on as."""
    return f"{_PUBLIC_WORD} {base64.b64encode(key).decode()}\n"


def decode_public(text: str) -> bytes:
    """Return the public key in such a line; raises UsageError for anything else."""
    word, _, coded = text.strip().partition(" ")
    try:
        key = base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if word != _PUBLIC_WORD or len(key) != _KEY_BYTES:
        raise UsageError(
            "this is no public key for updates",
            hint="Name the .pub file that `image/sign --new-key` made, not the key itself.",
        )
    return key
