"""Where a key is kept: one file, one line of base64 (the 32-byte seed), mode 0600.

A shell around `keys.py`. A key file is made once and never written again: a damaged one is an
error for a person to settle, since its replacement would be another node.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path

from agent.errors import StateError
from agent.identity import privatefile
from agent.identity.keys import SEED_BYTES, NodeKey


def load(path: Path) -> NodeKey:
    """Read a key file.

    Raises StateError when it is missing, damaged, or can be read by others.
    """
    key = load_if_there(path)
    if key is None:
        raise StateError(f"there is no key file {path}", hint="Restore it from a backup.")
    return key


def load_or_create(path: Path) -> NodeKey:
    """Read a key file, or make one with a new key; its directory is made with mode 0700.

    Raises StateError when the file is damaged or open to others, or cannot be written.
    """
    key = load_if_there(path)
    if key is not None:
        return key
    privatefile.ensure_directory(path.parent)
    key = NodeKey(secrets.token_bytes(SEED_BYTES))
    if privatefile.create(path, base64.b64encode(key.seed) + b"\n"):
        return key
    return load(path)  # another process made one at the same moment: that one counts


def load_if_there(path: Path) -> NodeKey | None:
    """Read a key file, or return None when there is none; raises StateError like `load`."""
    raw = privatefile.read(path, "key file")
    if raw is None:
        return None
    try:
        seed = base64.b64decode(raw.removesuffix(b"\n"), validate=True)
    except binascii.Error:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise StateError(
            f"key file {path} is damaged: it does not hold one line of base64 with 32 bytes",
            hint="Restore it from a backup; a new key would be a new node that has to join again.",
        )
    return NodeKey(seed)
