"""What an update says about itself, signed by who made it. A core.

    covey-update-1 BASE64(signature)\\n      Ed25519, over a prefix and all bytes of the second line
    {"version": "0.21.0", "arch": "x86_64", "floor": "0.20.0", "parts": [...]}\\n

Nothing is read of it, and nothing is written to the disk, before the signature is verified. Each
part is then checked by size and SHA-256 while it arrives, and again after it was written.

Of one architecture there are images that start in other ways (a Raspberry Pi's from its own
firmware), so a manifest that is not for `virt`, the plain one, names its `flavour`.

An old version that was signed once stays signed. So a manifest names a `floor`: a machine on which
that version has proved itself refuses any below it, whoever offers it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.errors import StateError, UsageError
from agent.unreadable import UNREADABLE

# A manifest has some hundred bytes; one of more is not worth a look at its signature.
MAX_BYTES = 16 * 1024
# The part that goes into the slot: squashfs with kernel and initramfs inside.
ROOT = "root"
_WORD = b"covey-update-1"
_PREFIX = b"covey-update-manifest-v1\0"
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64

Version = Annotated[str, msgspec.Meta(pattern=r"\A(0|[1-9][0-9]{0,5})(\.(0|[1-9][0-9]{0,5})){2}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Arch = Literal["x86_64", "aarch64"]
Flavour = Literal["virt", "metal", "raspberrypi"]


class UpdateRefused(UsageError):
    """This update is not installed; the message says why. The disk is as it was."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the update: its size in bytes, and the SHA-256 of all of it in hex."""

    name: Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9-]{0,31}\Z")]
    size: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A version for one kind of machine; `floor` is the oldest that may follow it."""

    version: Version
    arch: Arch
    floor: Version
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1, max_length=16)]
    # Left out where it is this one, so that versions from before there were others can read it.
    flavour: Flavour = "virt"

    def part(self, name: str) -> Part:
        """Return a part; raises UpdateRefused when the update has none of that name."""
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            raise UpdateRefused(
                f"the update to {self.version} has no part {name!r}",
                hint="It was made for another kind of image.",
            )
        return found


def sign(manifest: Manifest, key: bytes) -> bytes:
    """Return the signed manifest's bytes; `key` is an Ed25519 seed (32 bytes).

    Raises UsageError for a manifest that nobody could install.
    """
    body = msgspec.json.encode(manifest) + b"\n"
    _decode(body)
    signature = Ed25519PrivateKey.from_private_bytes(key).sign(_PREFIX + body)
    return _WORD + b" " + base64.b64encode(signature) + b"\n" + body


def verify(raw: bytes, keys: Sequence[bytes]) -> Manifest:
    """Return the manifest that one of `keys` (Ed25519, 32 bytes each) signed.

    Raises UpdateRefused, saying whether it is no manifest at all, not signed, or not by these.
    """
    if len(raw) > MAX_BYTES:
        raise UpdateRefused(f"an update's manifest of more than {MAX_BYTES} bytes is none")
    head, _, body = raw.partition(b"\n")
    word, _, text = head.partition(b" ")
    if word != _WORD:
        newer = word.startswith(b"covey-update-") and word[13:14].isdigit()
        raise UpdateRefused(
            "the update is of a form that this version does not know"
            if newer
            else "this is no update of a Covey appliance",
            hint="Update to a version between first."
            if newer
            else "Name the manifest that was made with the image.",
        )
    try:
        signature = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    # Base64 has several spellings of the last bytes; one is enough.
    if len(signature) != _SIGNATURE_BYTES or base64.b64encode(signature) != text:
        raise UpdateRefused(
            "the update's signature is cut short or garbled", hint="Fetch the update again."
        )
    if not any(_signed(body, signature, key) for key in keys):
        raise UpdateRefused(
            "the update is not signed by a key that this machine trusts, or was changed since",
            hint="Fetch it again from who made this machine's image.",
        )
    return _decode(body)


def check(
    manifest: Manifest, *, arch: str, flavour: str, running: str, floor: str, slot_bytes: int
) -> None:
    """Raise UpdateRefused unless a machine may install it.

    `running` is the version it runs, `floor` the highest floor of those that proved themselves,
    `slot_bytes` the size of the slot that it would be written to.
    """
    if manifest.arch != arch:
        raise UpdateRefused(
            f"the update is for {manifest.arch}, and this machine is {arch}",
            hint=f"Fetch the one for {arch}.",
        )
    if manifest.flavour != flavour:
        raise UpdateRefused(
            f"the update is for images of the flavour {manifest.flavour}, and this one is "
            f"{flavour}",
            hint=f"Fetch the one for {flavour}.",
        )
    if numbers(manifest.version) < numbers(floor):
        raise UpdateRefused(
            f"version {manifest.version} is below {floor}, the oldest that may still be installed",
            hint="Older ones have known faults; fetch a newer one.",
        )
    if numbers(manifest.version) <= numbers(running):
        raise UpdateRefused(
            f"version {manifest.version} is not newer than {running}, which runs",
            hint="For the version before this one, go back to the other slot.",
        )
    size = manifest.part(ROOT).size
    if size > slot_bytes:
        raise UpdateRefused(
            f"version {manifest.version} has {size} bytes, and this disk's slots {slot_bytes}",
            hint="Flash the disk with that version's image.",
        )


def raised(floor: str, manifest: Manifest) -> str:
    """Return the machine's floor after this version has proved itself; it never falls."""
    return max(floor, manifest.floor, key=numbers)


def numbers(version: str) -> tuple[int, ...]:
    """Return a version for comparing; raises StateError for what is none."""
    try:
        return tuple(int(number) for number in msgspec.convert(version, Version).split("."))
    except msgspec.ValidationError:
        raise StateError(f"{version[:40]!r} is no version") from None


class PartCheck:
    """Checks a part's bytes as they pass by, before and after they were written."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._size = 0
        self._hash = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; raises UpdateRefused as soon as there are too many."""
        self._size += len(chunk)
        if self._size > self._part.size:
            raise self._wrong(f"has more than its {self._part.size} bytes")
        self._hash.update(chunk)

    def finish(self) -> None:
        """Raise UpdateRefused unless these were all bytes, and the right ones."""
        if self._size < self._part.size:
            raise self._wrong(f"ends after {self._size} of {self._part.size} bytes")
        if self._hash.hexdigest() != self._part.sha256:
            raise self._wrong("is not what was signed")

    def _wrong(self, what: str) -> UpdateRefused:
        return UpdateRefused(
            f"the update's part {self._part.name!r} {what}", hint="Fetch the update again."
        )


def _signed(body: bytes, signature: bytes, key: bytes) -> bool:
    if len(key) != _KEY_BYTES:
        raise StateError(f"a key of {len(key)} bytes is no Ed25519 public key")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _PREFIX + body)
    except InvalidSignature:
        return False
    return True


def _decode(body: bytes) -> Manifest:
    """Return the manifest in signed bytes."""
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except UNREADABLE as error:
        raise UpdateRefused(
            f"the update's manifest makes no sense: {error}",
            hint="It is for another version, or was made wrong; ask who made it.",
        ) from None
    if len({part.name for part in manifest.parts}) < len(manifest.parts):
        raise UpdateRefused("the update's manifest names a part twice")
    if numbers(manifest.floor) > numbers(manifest.version):
        raise UpdateRefused("the update's manifest names a floor above its own version")
    return manifest
