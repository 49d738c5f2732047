"""Signed updates, and an appliance in a folder that takes them: its disk is files."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from image.node import slotblocks
from image.node.machine import Machine
from image.node.manifest import Arch, Manifest, Part, sign
from image.node.release import Release
from image.node.slots import State

SEED = b"k" * 32
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
SLOT_BYTES = 6 << 20
CONTENT = random.Random(8).randbytes((5 << 20) + 777)


def update(
    version: str = "0.2.0", *, arch: Arch = "x86_64", floor: str = "0.0.0", seed: bytes = SEED,
    content: bytes = CONTENT,
) -> bytes:  # fmt: skip
    """Return the file of a signed update."""
    part = Part("root", len(content), hashlib.sha256(content).hexdigest())
    return sign(Manifest(version, arch, floor, (part,)), seed) + content


def appliance(
    folder: Path, state: State | None = None, *, version: str = "0.1.0", running: str = "a"
) -> Machine:
    """Return an appliance whose slots and boot partition lie in a folder."""
    for name, block in zip(slotblocks.FILES, slotblocks.fresh(state or State()), strict=True):
        (folder / name).write_bytes(block)
    devices = {}
    for slot in ("a", "b"):
        devices[slot] = folder / f"slot-{slot}"
        devices[slot].write_bytes(b"old " * (SLOT_BYTES // 4))
    return Machine(
        "b" if running == "b" else "a", Release(version, "x86_64", (PUBLIC,)), folder,
        {"a": devices["a"], "b": devices["b"]},
    )  # fmt: skip
