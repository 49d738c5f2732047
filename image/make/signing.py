"""Makes the signed update out of an image that was built, and the keys for it. A shell.

    the signed manifest (`image.node.manifest`), two lines
    what goes into the slot: squashfs with kernel and initramfs

The same image and key give the same bytes. The signed manifest is left on the image's boot
partition as well, where a machine keeps those of its updates: so one that is flashed with the image
can give others the update to what it runs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.errors import EnvironmentFault, UsageError
from image.disk import bootfiles, gpt
from image.disk.write import measure, replacing
from image.make.programs import run
from image.node import machine, release
from image.node.install import read_head
from image.node.manifest import ROOT, Manifest, Part, sign
from image.node.release import Release

# What everything in the image is dated; a build need not know when its version was made.
EPOCH_S = 1_767_225_600
_KEY_WORD = "covey-update-key-1"
_SEED_BYTES = 32
_CHUNK_BYTES = 1 << 20
# Squashfs 4.0: its first word, and where it says how many bytes it has.
_SQUASHFS, _USED_AT, _SUPERBLOCK_BYTES = b"hsqs", 40, 96
# mksquashfs fills up to whole blocks of that size.
_BLOCK_BYTES = 4096


def new_key(file: Path) -> Path:
    """Make a key pair: the key in `file`, for this user alone, and FILE.pub; return the latter.

    Raises UsageError where one of them is there already, and EnvironmentFault.
    """
    public_file = file.with_name(f"{file.name}.pub")
    seed = secrets.token_bytes(_SEED_BYTES)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    texts = (
        (file, f"{_KEY_WORD} {base64.b64encode(seed).decode()}\n", 0o600),
        (public_file, release.encode_public(public), 0o644),
    )
    for path, _, _ in texts:
        if path.exists():
            raise UsageError(
                f"{path} is there already, and machines may trust it",
                hint="Name another file for the new key.",
            )
    try:
        for path, text, mode in texts:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as out:
                out.write(text)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename}: {error.strerror}") from None
    return public_file


def read_key(file: Path) -> bytes:
    """Return the key's seed (32 bytes); raises UsageError for a file that holds none."""
    word, _, coded = _text(file).strip().partition(" ")
    try:
        seed = base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        seed = b""
    if word != _KEY_WORD or len(seed) != _SEED_BYTES:
        raise UsageError(
            f"{file} holds no key that signs updates",
            hint=f"`image/sign --new-key {file.with_suffix('.key')}` makes one.",
        )
    return seed


def read_public(file: Path) -> bytes:
    """Return a public key (32 bytes) of a .pub file; raises UsageError for anything else."""
    try:
        return release.decode_public(_text(file))
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", hint=error.hint) from None


def lay(root: Path, facts: Release) -> None:
    """Put what the image says of itself into its tree."""
    path = root / release.PATH
    path.write_bytes(release.encode(facts))
    path.chmod(0o644)


def make_update(
    image: Path, key: bytes, out: Path | None = None, floor: str = ""
) -> tuple[Path, Manifest]:
    """Write the update to the version in an image, signed by `key`; return its file and manifest.

    `floor` is the oldest version that may be installed after this one has proved itself; "": any.
    Raises UsageError for an image that this cannot be made of, and EnvironmentFault; `out` is then
    as it was.
    """
    try:
        with image.open("rb") as disk:
            start = _slot_start(disk, image)
            size = _squashfs_bytes(disk, start, image)
            said = run(["unsquashfs", "-o", str(start), "-cat", image, str(release.PATH)])
            facts = release.decode(said.encode())
            if not facts.keys:
                raise UsageError(
                    f"{image} trusts no key, so a machine with it could never be updated again",
                    hint="Build it with --update-key FILE.pub.",
                )
            part = Part(ROOT, size, _sha256(disk, start, size))
            manifest = Manifest(facts.version, facts.arch, floor or "0.0.0", (part,), facts.flavour)
            signed = sign(manifest, key)
            out = out or Path(f"covey-{facts.version}-{_kind(facts)}.update")
            _write(out, signed, disk, start, size)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or image}: {error.strerror or error}") from None
    return out, manifest


def _kind(facts: Release) -> str:
    return facts.arch if facts.flavour == "virt" else f"{facts.arch}-{facts.flavour}"


def leave(image: Path, update: Path) -> None:
    """Leave an update's signed manifest on the boot partition of the image that it was made of.

    The image's hash beside it is written anew. Raises EnvironmentFault; where it broke off, that
    hash is another one, and nobody flashes the image.
    """
    try:
        with update.open("rb") as file:
            head = read_head(file.read)
        with image.open("r+b") as disk, tempfile.TemporaryDirectory(prefix="covey-sign-") as name:
            boot = Path(name) / "boot"
            partition = _partition(disk, "boot", image)
            start, size = (n * gpt.SECTOR_BYTES for n in (partition.first, partition.sectors))
            disk.seek(start)
            boot.write_bytes(disk.read(size))
            bootfiles.put(boot, f"covey/{machine.head_name('a')}", head, EPOCH_S)
            disk.seek(start)
            disk.write(boot.read_bytes())
        note_hash(image)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or image}: {error.strerror or error}") from None


def note_hash(image: Path) -> None:
    """Write a file's SHA-256 beside it, as sha256sum does; `image/flash` reads that."""
    said = f"{measure(image).sha256.hex()}  {image.name}\n"
    image.with_name(f"{image.name}.sha256").write_text(said)


def _slot_start(disk: BinaryIO, image: Path) -> int:
    """Return where slot a begins, in bytes."""
    return _partition(disk, "slot-a", image).first * gpt.SECTOR_BYTES


def _partition(disk: BinaryIO, name: str, image: Path) -> gpt.Partition:
    try:
        found = gpt.Table.read(disk.read(gpt.HEAD_BYTES)).partitions
        return next(part for part in found if part.name == name)
    except (UsageError, StopIteration):
        raise UsageError(
            f"{image} is no image of an appliance", hint="Name the file that image/build made."
        ) from None


def _squashfs_bytes(disk: BinaryIO, start: int, image: Path) -> int:
    """Return how many bytes the slot's content has, as mksquashfs wrote them."""
    disk.seek(start)
    superblock = disk.read(_SUPERBLOCK_BYTES)
    if not superblock.startswith(_SQUASHFS):
        raise UsageError(f"{image} has no squashfs in slot a", hint="Build it anew.")
    (used,) = struct.unpack_from("<Q", superblock, _USED_AT)
    return int(-(-used // _BLOCK_BYTES) * _BLOCK_BYTES)


def _sha256(disk: BinaryIO, start: int, size: int) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(disk, start, size):
        digest.update(chunk)
    return digest.hexdigest()


def _write(out: Path, head: bytes, disk: BinaryIO, start: int, size: int) -> None:
    with replacing(out) as file:
        file.write(head)
        for chunk in _chunks(disk, start, size):
            file.write(chunk)


def _chunks(disk: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    disk.seek(start)
    while size:
        chunk = disk.read(min(size, _CHUNK_BYTES))
        if not chunk:
            raise UsageError("the image is cut short", hint="Build it anew.")
        size -= len(chunk)
        yield chunk


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii")
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        raise EnvironmentFault(f"{file}: {error.strerror}") from None
