"""What a model file consists of, and the SHA-256 of each of its parts. A core.

A manifest describes a file to the last byte. Its spans are the header (named ""), the tensors by
their names, and what else is in the file (named "@START"); what no span covers is zeros, the
padding between tensors. A span larger than a piece has the SHA-256 of each of its pieces too, so
that a piece can be judged alone, whoever sent it.

A split model has one manifest over all its files, as if they lay one after another: `start` counts
from the first byte of the first. Each file begins with a span, its header ("@START" but for the
first), and none lies in two files. Its SHA-256 is that of the files' SHA-256, so that whoever is
told only those (by the hub) knows it before a byte of the model came.

A model's id is the SHA-256 of its manifest's canonical form: its fields as a JSON array, in the
order below (`files` only where there are any). Names, sources and times are no part of it, so the
same file has the same id everywhere. Made by `survey.py`, kept by `store.py`, sent by `sharing.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

from agent.engine import splits
from agent.errors import PeerError, one_line
from agent.unreadable import UNREADABLE

VERSION: Final = 1
# A piece is fetched and judged as one: large enough that asking for it costs little (at 100 Mbit/s
# it takes 0.7 s), small enough to be fetched again, and to be held in memory some times.
PIECE_BYTES: Final = 8 << 20
# A manifest may have been made with smaller ones: below this, asking costs more than the bytes.
MIN_PIECE_BYTES: Final = 64 << 10
HEADER: Final = ""
# Above what GGUF has (`gguf_header.MAX_TENSORS`, and as many gaps), below what takes seconds.
MAX_SPANS: Final = 140_000
# A manifest of a 400 GB model with 2,000 tensors has 4 MB.
MAX_ENCODED_BYTES: Final = 64 << 20

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_SHA256 = re.compile("[0-9a-f]{64}")


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Bytes [start, start + size) with their SHA-256 (hex); `pieces` has those of its pieces."""

    name: Annotated[str, msgspec.Meta(max_length=1024)]
    start: _Bytes
    size: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    sha256: Sha256
    pieces: tuple[Sha256, ...] = ()

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.start + self.size


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One file of a split model: its size in bytes, its SHA-256 (hex)."""

    size: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of `size` bytes with that SHA-256 (hex), and its spans in the order of the file.

    `files`: those of a split model, in order; none where it is one file.
    """

    size: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    sha256: Sha256
    spans: Annotated[tuple[Span, ...], msgspec.Meta(max_length=MAX_SPANS)]
    version: int = VERSION
    piece_bytes: int = PIECE_BYTES
    files: Annotated[tuple[File, ...], msgspec.Meta(max_length=splits.MAX_FILES)] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size of each file in bytes; one where the model is not split."""
        return tuple(file.size for file in self.files) or (self.size,)

    def headers(self) -> set[str]:
        """Return the names of the files' headers."""
        starts = set(starts_of(self.sizes))
        return {span.name for span in self.spans if span.start in starts}

    def names(self) -> set[str]:
        """Return the spans' names."""
        return {span.name for span in self.spans}


def identity(manifest: Manifest) -> str:
    """Return the model's id: the SHA-256 (hex) of the manifest's canonical form."""
    fields = (manifest.version, manifest.piece_bytes, manifest.size, manifest.sha256,
              manifest.spans, *filter(None, (manifest.files,)))  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def starts_of(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return where each file of these sizes begins, if they lie one after another."""
    return tuple(itertools.accumulate(sizes, initial=0))[:-1]


def whole_sha256(hashes: Sequence[str]) -> str:
    """Return the SHA-256 of a model by those of its files (hex)."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def is_hash(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as it crosses the overlay (JSON)."""
    return msgspec.json.encode(manifest)


def decode(raw: bytes, expected_id: str) -> Manifest:
    """Read the manifest of the model with that id; raises PeerError for anything else."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except UNREADABLE as error:
        raise PeerError(f"a manifest cannot be read: {one_line(str(error))}") from None
    if fault := fault_of(manifest):
        raise PeerError(f"a manifest makes no sense: {fault}")
    if identity(manifest) != expected_id:
        raise PeerError(f"a manifest is not the one of model {expected_id[:12]}…")
    return manifest


def fault_of(manifest: Manifest) -> str:
    """Return what is wrong with a manifest from elsewhere, "" if nothing is."""
    if manifest.version != VERSION:
        return f"it is of version {manifest.version}, this agent knows {VERSION}"
    largest = manifest.piece_bytes
    if not MIN_PIECE_BYTES <= largest <= PIECE_BYTES:
        return f"its pieces have {largest} bytes"
    if not manifest.spans or (manifest.spans[0].name, manifest.spans[0].start) != (HEADER, 0):
        return "it does not begin with the header"
    at = 0
    for span in manifest.spans:
        if not span.name.isprintable():
            return f"a name is not printable: {one_line(span.name)}"
        if span.start < at:
            return f"{one_line(span.name)} lies over what is before it"
        at = span.end
        pieces = -(-span.size // largest) if span.size > largest else 0
        if len(span.pieces) != pieces:
            return f"{one_line(span.name)} has {len(span.pieces)} pieces, not {pieces}"
    if at > manifest.size:
        return "it is longer than the file"
    if len(manifest.names()) != len(manifest.spans):
        return "two of its spans have the same name"
    return _fault_of_files(manifest) if manifest.files else ""


def _fault_of_files(manifest: Manifest) -> str:
    if len(manifest.files) == 1 or sum(manifest.sizes) != manifest.size:
        return "its files do not make it up"
    if whole_sha256([file.sha256 for file in manifest.files]) != manifest.sha256:
        return "its SHA-256 is not that of its files'"
    following = iter(manifest.spans)
    span = next(following, None)
    for start, size in zip(starts_of(manifest.sizes), manifest.sizes, strict=True):
        if span is None or span.start != start:
            return f"no header begins its file at byte {start}"
        while span is not None and span.start < start + size:
            if span.end > start + size:
                return f"{one_line(span.name)} lies in two files"
            span = next(following, None)
    return ""
