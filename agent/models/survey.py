"""Read a model from end to end: its hashes, what is damaged in it, and what it says of itself.

Blocks for as long as the disk and SHA-256 take (seconds per GB): called in a thread, with a
callback that gets the bytes read so far and may raise to end it. Used by `pull.py`, `service.py`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.engine import splits
from agent.engine.gguf_constants import LlamaFileType
from agent.engine.gguf_file import GgufFile
from agent.engine.gguf_header import GgufHeader
from agent.errors import ModelError
from agent.models.manifest import HEADER, PIECE_BYTES, File, Manifest, Span, whole_sha256

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
        return Description(model.architecture, _quantisation(model), model.layers)


def survey(path: Path, progress: Progress, piece_bytes: int = PIECE_BYTES) -> Manifest:
    """Return the manifest of a GGUF file, of a split model by its first; else raise ModelError."""
    with GgufFile(path) as model:
        files = [(part.path, part.size) for part in model.parts]
        bounds: list[tuple[str, int, int]] = []
        base = 0
        for part in model.parts:
            bounds += [(name, base + start, size) for name, start, size in _bounds(part, base)]
            base += part.size
    return _hashed(files, bounds, progress, piece_bytes)


def _bounds(part: GgufHeader, base: int) -> _Bounds:
    """Return where header and tensors lie in a file that begins at byte `base` of the model."""
    # A header without tensors may be padded beyond the end of the file.
    bounds = [(f"@{base}" if base else HEADER, 0, min(part.data_start, part.size))]
    # Those of the first file of a split model are in the others too.
    own = [t for t in part.tensors if not t.file]
    bounds += [(t.name, t.start, t.size) for t in sorted(own, key=lambda t: t.start)]
    at = 0
    for name, start, size in bounds:
        if start < at:
            raise ModelError(
                f"{part.name} is damaged: tensor {name} lies over another", hint="Get it again."
            )
        at = start + size
    return bounds


def damaged(path: Path, manifest: Manifest, progress: Progress) -> list[str]:
    """Return the names of what the model has otherwise than its manifest; [] if it is whole.

    `path` is its file, the first one of a split model.

    Padding that is not zeros, and bytes beyond the end, are "@START"; "*" is the whole file where
    only its hash is another one. Raises ModelError where the file is gone.
    """
    bounds = [(span.name, span.start, span.size) for span in manifest.spans]
    paths = splits.siblings(path) if manifest.files else (path,)
    files = list(zip(paths, manifest.sizes, strict=True))
    seen = _hashed(files, bounds, progress, manifest.piece_bytes)
    found = {span.name: span for span in seen.spans}
    wrong = [span.name for span in manifest.spans if found.pop(span.name) != span] + list(found)
    end = 0
    for one, size in files:
        end += size
        try:
            if one.stat().st_size > size:
                wrong.append(f"@{end}")
        except OSError as error:  # removed meanwhile
            raise ModelError(f"cannot read the model {one}: {error.strerror}") from None
    return wrong or ([] if seen.sha256 == manifest.sha256 else ["*"])


def _hashed(
    files: Sequence[tuple[Path, int]], bounds: _Bounds, progress: Progress, piece_bytes: int
) -> Manifest:  # fmt: skip
    """Hash every span and what lies between; a gap that is not all zeros becomes a span too.

    `files`: path and size of each; `bounds` count from the first byte of the first.
    """
    reader = _Reader(piece_bytes, progress)
    spans: list[Span] = []
    found: list[File] = []
    waiting = deque(bounds)
    for path, size in files:
        end = reader.at + size
        here = []
        while waiting and waiting[0][1] < end:
            here.append(waiting.popleft())
        reader.whole = hashlib.sha256()
        try:
            with path.open("rb") as file:
                for name, start, length in [*here, ("", end, 0)]:
                    if start > reader.at:
                        gap, empty = reader.span(file, f"@{reader.at}", start - reader.at)
                        if not empty:
                            spans.append(gap)
                    if length:
                        spans.append(reader.span(file, name, length)[0])
        except OSError as error:
            raise ModelError(f"cannot read the model {path}: {error.strerror}") from None
        found.append(File(size, reader.whole.hexdigest()))
    sha256 = whole_sha256([file.sha256 for file in found])
    kept = tuple(found) if len(found) > 1 else ()
    return Manifest(reader.at, sha256, tuple(spans), piece_bytes=piece_bytes, files=kept)


class _Reader:
    """Hashes files span by span, from their beginning; `whole` is of the one that is read."""

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
