"""The file of an image: checked, and read with another covey.toml in it. A shell."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from agent.errors import EnvironmentFault, UsageError
from image.disk import bootfiles
from image.disk.gpt import SECTOR_BYTES, Partition, Table
from image.disk.layout import NAMES

CHUNK_BYTES = 1 << 20
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
_AGAIN = "Fetch the image again, or build it again."


@dataclass(frozen=True)
class Image:
    """An image that was read once: the disk's size in bytes and SHA-256, and what lies where."""

    path: Path
    size: int
    sha256: bytes
    table: Table
    boot: bytes

    def chunks(self, covey_toml: bytes = b"") -> Iterator[bytes]:
        """Return the disk's bytes in chunks of a MiB, with this covey.toml if there is one.

        Raises EnvironmentFault at once where mtools is missing; while it is read also for a file
        that cannot be read, or is another one than it was.
        """
        return self._chunks(_with(self.boot, covey_toml) if covey_toml else self.boot)

    def _chunks(self, boot: bytes) -> Iterator[bytes]:
        at, digest = 0, hashlib.sha256()
        begins = _boot(self.table).first * SECTOR_BYTES
        with _readable(self.path), _open(self.path) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                # What of this chunk is the boot partition's.
                first, last = max(begins, at), min(begins + len(boot), at + len(chunk))
                if first < last:
                    part = boot[first - begins : last - begins]
                    chunk = chunk[: first - at] + part + chunk[last - at :]
                at += len(chunk)
                yield chunk
        if digest.digest() != self.sha256:
            raise EnvironmentFault(f"{self.path} changed while it was written", hint=_AGAIN)


def _no_image(path: Path) -> UsageError:
    return UsageError(
        f"there is no image {path}", hint="Name one with --image, or build it: image/build."
    )


def wanted_hash(path: Path, given: str) -> str:
    """Return the SHA-256 that an image's file must have: that given, or that of a file beside it.

    Raises UsageError where there is none, or one that is none, or no image.
    """
    if not path.exists():
        raise _no_image(path)
    beside = path.with_name(f"{path.name}.sha256")
    text = given
    if not given:
        try:
            text = next(iter(beside.read_text(errors="replace").split()), "")
        except OSError:
            raise UsageError(
                f"there is no {beside.name} beside the image, so nothing says whether it is whole",
                hint="Fetch that file too, or give --sha256 (or --unchecked).",
            ) from None
    if not _HASH.fullmatch(text):
        raise UsageError(
            f"{'--sha256' if given else beside} is no SHA-256",
            hint="It has 64 digits from 0 to 9 and a to f.",
        )
    return text.lower()


def inspect(path: Path, sha256: str) -> Image:
    """Read an image's file to its end; `sha256` is what it must have, "" for anything.

    Raises UsageError for a file that is no whole image of an appliance, and EnvironmentFault for
    one that cannot be read.
    """
    with _readable(path):
        if sha256:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise UsageError(f"{path} is damaged: its SHA-256 is {found}", hint=_AGAIN)
        digest, size = hashlib.sha256(), 0
        head = bytearray()
        boot = bytearray()
        begins = ends = 0
        table: Table | None = None
        with _open(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                if table is None:
                    head += chunk
                    table = _table(path, bytes(head))
                    partition = _boot(table)
                    begins, ends = (
                        partition.first * SECTOR_BYTES, (partition.last + 1) * SECTOR_BYTES,
                    )  # fmt: skip
                boot += chunk[max(0, begins - size) : max(0, ends - size)]
                size += len(chunk)
    if table is None:
        raise UsageError(f"{path} is empty", hint=_AGAIN)
    if size != table.sectors * SECTOR_BYTES:
        raise UsageError(
            f"{path} is cut short: it has {size} bytes of {table.sectors * SECTOR_BYTES}",
            hint=_AGAIN,
        )
    return Image(path, size, digest.digest(), table, bytes(boot))


def _table(path: Path, head: bytes) -> Table:
    try:
        table = Table.read(head)
        if tuple(partition.name for partition in table.partitions) == NAMES:
            return table
    except UsageError:
        pass
    raise UsageError(f"{path} is no image of Covey's appliance", hint=_AGAIN)


def _boot(table: Table) -> Partition:
    return table.partitions[NAMES.index("boot")]


def _with(boot: bytes, covey_toml: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="covey-flash-") as folder:
        image = Path(folder) / "boot"
        # The folder is this user's alone, as the ticket in it has to be.
        image.write_bytes(boot)
        bootfiles.put(image, "covey.toml", covey_toml)
        return image.read_bytes()


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        magic = file.read(len(_XZ))
    if magic.startswith(_GZIP):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if magic == _XZ:
        return cast(BinaryIO, lzma.open(path, "rb"))
    if magic.startswith(_ZSTD):
        raise UsageError(f"{path} is packed with zstd", hint=f"Unpack it first: zstd -d {path}")
    return path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into what a person is told."""
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile):
        raise UsageError(f"{path} is cut short or damaged", hint=_AGAIN) from None
    except FileNotFoundError:
        raise _no_image(path) from None
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror or error}") from None
