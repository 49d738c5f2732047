"""A file in pieces that are fetched, judged and written one by one. A core.

With a manifest a piece is a run of whole tensors, or 8 MiB of a large one, and its bytes are
checked by their SHA-256; without one it is just 8 MiB. Used by `fetch.py` and `partfile.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.models.manifest import PIECE_BYTES, Manifest, Span, starts_of

# Zeros up to this are fetched with what is before them; more is left out (a hole in the file).
_PADDING_BYTES = 1 << 16


class Check(NamedTuple):
    """Bytes [start, end) of the file have this SHA-256 (hex)."""

    start: int
    end: int
    sha256: str


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a file.

    `checks` cover it, in order, but for bytes that must be zero; None where nothing is known.
    """

    start: int
    end: int
    checks: tuple[Check, ...] | None = None

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


def blind(size: int, piece_bytes: int = PIECE_BYTES) -> tuple[Piece, ...]:
    """Return the pieces of a file of which only the size (bytes) is known."""
    return tuple(
        Piece(start, min(size, start + piece_bytes)) for start in range(0, size, piece_bytes)
    )


def of_files(sizes: Iterable[int], piece_bytes: int = PIECE_BYTES) -> tuple[Piece, ...]:
    """Return the pieces of files of these sizes (bytes) that lie one after another."""
    pieces: list[Piece] = []
    start = 0
    for size in sizes:
        pieces += [Piece(start + p.start, start + p.end) for p in blind(size, piece_bytes)]
        start += size
    return tuple(pieces)


def of_manifest(manifest: Manifest, names: Collection[str] | None = None) -> tuple[Piece, ...]:
    """Return the pieces of the spans of these names, in the order of the file; None: of all.

    None lies in two files of a split model.
    """
    starts = set(starts_of(manifest.sizes))
    pieces: list[Piece] = []
    group: list[_Unit] = []
    for unit in _units(manifest, names):
        joins = group and group[-1].end == unit.check.start and unit.check.start not in starts
        if group and not (joins and unit.check.end - group[0].check.start <= manifest.piece_bytes):
            pieces.append(_piece(group))
            group = []
        group.append(unit)
    if group:
        pieces.append(_piece(group))
    return tuple(pieces)


def digest(pieces: Iterable[Piece]) -> str:
    """Return what tells one way of cutting a file, and its hashes, from another (hex)."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(f"{piece.start}-{piece.end}:{piece.checks}\n".encode())
    return found.hexdigest()


def wrong(piece: Piece, raw: bytes | bytearray) -> str:
    """Return why these are not the piece's bytes, or "" where they are as far as is known."""
    if len(raw) != piece.size:
        return f"{len(raw)} bytes came for {piece.size}"
    if piece.checks is None:
        return ""
    at = piece.start
    with memoryview(raw) as view:
        for check in piece.checks:
            if any(view[at - piece.start : check.start - piece.start]):
                return f"the padding at byte {at} is wrong"
            part = view[check.start - piece.start : check.end - piece.start]
            if hashlib.sha256(part).hexdigest() != check.sha256:
                return f"bytes {check.start} to {check.end} have another SHA-256"
            at = check.end
        if any(view[at - piece.start :]):
            return f"the padding at byte {at} is wrong"
    return ""


class _Unit(NamedTuple):
    check: Check
    end: int  # with the padding behind it


def _units(manifest: Manifest, names: Collection[str] | None) -> Iterator[_Unit]:
    following = [span.start for span in manifest.spans[1:]] + [manifest.size]
    for span, limit in zip(manifest.spans, following, strict=True):
        if names is not None and span.name not in names:
            continue
        checks = list(_checks(span, manifest.piece_bytes))
        for check in checks[:-1]:
            yield _Unit(check, check.end)
        padded = limit if limit - span.end < _PADDING_BYTES else span.end
        yield _Unit(checks[-1], padded)


def _checks(span: Span, piece_bytes: int) -> Iterator[Check]:
    if not span.pieces:
        yield Check(span.start, span.end, span.sha256)
    for number, sha256 in enumerate(span.pieces):
        start = span.start + number * piece_bytes
        yield Check(start, min(span.end, start + piece_bytes), sha256)


def _piece(group: Sequence[_Unit]) -> Piece:
    return Piece(group[0].check.start, group[-1].end, tuple(unit.check for unit in group))
