"""Read a model file from end to end: its hashes, what is damaged in it, and what it says of itself.

Blocks for as long as the disk and SHA-256 take (seconds per GB): called in a thread, with a
callback that gets the bytes read so far and may raise to end it. Used by `pull.py`, `service.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf.constants import LlamaFileType

from agent.engine.gguf_file import GgufFile
from agent.errors import ModelError
from agent.models.manifest import HEADER, PIECE_BYTES, Manifest, Span

Progress = Callable[[int], None]
"""Called with the bytes that were read so far."""

_Bounds = Sequence[tuple[str, int, int]]


@dataclass(frozen=True)
class Description:
    """What a model says of itself: its architecture, its quantisation (Q8_0), its layers."""

    architecture: str
    quantisation: str
    layers: int


def describe(path: Path) -> Description:
    """Return what the model says of itself; raises ModelError for what is no whole model."""
    with GgufFile(path) as model:
        parts = model.number("split.count") or 1
        if parts > 1:
            raise ModelError(
                f"{path.name} is one of the {parts} files of a split model",
                hint="Join them with llama.cpp's llama-gguf-split --merge, and pull the one file.",
            )
        return Description(model.architecture, _quantisation(model), model.layers)


def survey(path: Path, progress: Progress, piece_bytes: int = PIECE_BYTES) -> Manifest:
    """Return the manifest of a GGUF file; raises ModelError for any other."""
    with GgufFile(path) as model:
        bounds = [(HEADER, 0, model.data_start)]
        bounds += [(t.name, t.start, t.size) for t in sorted(model.tensors, key=lambda t: t.start)]
        size = model.size
    at = 0
    for name, start, length in bounds:
        if start < at:
            raise ModelError(
                f"{path.name} is damaged: tensor {name} lies over another", hint="Get it again."
            )
        at = start + length
    # A header without tensors may be padded beyond the end of the file.
    bounds = [(name, start, min(length, size - start)) for name, start, length in bounds]
    return _hashed(path, size, bounds, progress, piece_bytes)


def damaged(path: Path, manifest: Manifest, progress: Progress) -> list[str]:
    """Return the names of what the file has otherwise than its manifest; [] if it is whole.

    Padding that is not zeros, and bytes beyond the end, are "@START"; "*" is the whole file where
    only its hash is another one. Raises ModelError where the file is gone.
    """
    bounds = [(span.name, span.start, span.size) for span in manifest.spans]
    seen = _hashed(path, manifest.size, bounds, progress, manifest.piece_bytes)
    found = {span.name: span for span in seen.spans}
    wrong = [span.name for span in manifest.spans if found.pop(span.name) != span] + list(found)
    if path.stat().st_size > manifest.size:
        wrong.append(f"@{manifest.size}")
    return wrong or ([] if seen.sha256 == manifest.sha256 else ["*"])


def _hashed(
    path: Path, size: int, bounds: _Bounds, progress: Progress, piece_bytes: int
) -> Manifest:  # fmt: skip
    """Hash every span and what lies between; a gap that is not all zeros becomes a span too."""
    reader = _Reader(piece_bytes, progress)
    spans: list[Span] = []
    try:
        with path.open("rb") as file:
            for name, start, length in [*bounds, ("", size, 0)]:
                if start > reader.at:
                    gap, empty = reader.span(file, f"@{reader.at}", start - reader.at)
                    if not empty:
                        spans.append(gap)
                if length:
                    spans.append(reader.span(file, name, length)[0])
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}") from None
    return Manifest(size, reader.whole.hexdigest(), tuple(spans), piece_bytes=piece_bytes)


class _Reader:
    """Hashes a file span by span, from its beginning."""

    def __init__(self, piece_bytes: int, progress: Progress) -> None:
        self.whole = hashlib.sha256()
        self.at = 0
        self._piece_bytes = piece_bytes
        self._progress = progress
        self._zeros = bytes(piece_bytes)

    def span(self, file: BinaryIO, name: str, length: int) -> tuple[Span, bool]:
        """Read what comes next as one span; return it, and whether it is all zeros.

        What a file that is too short lacks is taken for zeros that it should not have.
        """
        own = hashlib.sha256()
        pieces: list[str] = []
        start, empty = self.at, True
        for offset in range(0, length, self._piece_bytes):
            count = min(self._piece_bytes, length - offset)
            raw = file.read(count)
            self.whole.update(raw)
            empty = empty and raw == self._zeros[:count]
            raw += bytes(count - len(raw))
            own.update(raw)
            if length > self._piece_bytes:
                pieces.append(hashlib.sha256(raw).hexdigest())
            self.at += count
            self._progress(self.at)
        return Span(name, start, length, own.hexdigest(), tuple(pieces)), empty


def _quantisation(model: GgufFile) -> str:
    """Return the file's own word for its types (Q4_K_M), else the type that most of it has."""
    number = model.number("general.file_type")
    named = {int(kind): kind.name for kind in LlamaFileType}
    if number is not None and number in named:
        return str(named[number]).removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: dict[str, int] = {}
    for tensor in model.tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.size
    return max(sizes, key=lambda kind: sizes[kind], default="-")
