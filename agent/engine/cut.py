"""Cut a model into the parts of a ring: one GGUF file for a run of layers [start, stop).

Used by the agent before it starts an engine, on any file that `gguf_file.py` could open and
`cuttable.py` allows (design §8). Tensor data is copied byte for byte, in pieces, so a part of a
40 GB model costs a few megabytes of memory.

| part   | layers       | token_embd.weight          | tokenizer                    |
|--------|--------------|----------------------------|------------------------------|
| first  | [0, b), b<n  | the model's                | none, the model's vocabulary size |
| middle | [a, b)       | 32 rows of zeros           | none                         |
| last   | [a, n), a>0  | the output matrix (tied)   | the model's                  |

Layers are renumbered from 0. A last part is the one that knows texts; the first only sees ids.
Where llama.cpp insists on output.weight, the last part has it as such, and zeros stand for what
a part does not need. `architectures.py` says what else a part has otherwise than the model.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.engine.architectures import WINDOW_PATTERN, Architecture
from agent.engine.cuttable import (
    EMBEDDING,
    LAST_TENSORS,
    OUTPUT,
    SHARED_TENSORS,
    check_cuttable,
    check_range,
    cut_rule,
)
from agent.engine.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from agent.engine.gguf_file import GgufFile
from agent.engine.gguf_header import DEFAULT_ALIGNMENT_BYTES, Tensor
from agent.errors import EnvironmentFault

_VERSION = 3
_COPY_BYTES = 1 << 20
# What a middle part has as vocabulary: llama.cpp wants one, nothing reads it.
DUMMY_VOCABULARY = 32
# Where a part gets rows, if not as a batch of them: the tensor's name in llama.cpp's graph.
ROWS_ENTER = "covey.cut.rows_enter"
# Types for zeros that nothing reads, the smallest first: a row must be made of whole blocks.
_FILLERS = (
    GGMLQuantizationType.IQ1_S,
    GGMLQuantizationType.MXFP4,
    GGMLQuantizationType.F16,
)


@dataclass(frozen=True)
class CutOrigin:
    """What a part was cut from: layers [start, stop) of `layers`, of the model with that header."""

    start: int
    stop: int
    layers: int
    model_sha256: str


@dataclass(frozen=True)
class PartFile:
    """A part that was written: where, its SHA-256 (hex) and its size in bytes."""

    path: Path
    sha256: str
    size: int


def write_part(model: GgufFile, start: int, stop: int, destination: Path) -> PartFile:
    """Write layers [start, stop) of `model` as a part; `destination` appears whole or not at all.

    Raises ModelError when the model may not be cut (there), EnvironmentFault when the file cannot
    be written, ValueError for a range that is empty, outside the model, or the whole of it.
    """
    known = check_cuttable(model)
    layers = model.layers
    if not 0 <= start < stop <= layers or (start, stop) == (0, layers):
        raise ValueError(f"[{start}, {stop}) is no part of {layers} layers")
    check_range(model, start, stop)
    planned = [*_ends(model, known, start, stop), *_tensors(model, start, stop)]
    fields = list(_fields(model, known, start, stop))
    header = _header(fields, planned)
    try:
        return _write(model, header, planned, destination)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write the part {destination}: {error.strerror}.",
            hint="Free some space or choose another cache folder.",
        ) from None


def needed(model: GgufFile, start: int, stop: int) -> set[str]:
    """Return the model's tensors whose data is in the part of layers [start, stop).

    Only the model's header is read, so that just these may be fetched. Raises as `write_part` does.
    """
    known = check_cuttable(model)
    planned = (*_ends(model, known, start, stop), *_tensors(model, start, stop))
    return {tensor.source.name for tensor in planned if tensor.source is not None}


def origin(part: GgufFile) -> CutOrigin | None:
    """Return what a part was cut from, as it says itself; None for a model that was not cut."""
    numbers = [part.number(f"covey.cut.{key}") for key in ("start", "stop", "layers")]
    source = part.text("covey.cut.model_sha256")
    start, stop, layers = numbers
    if start is None or stop is None or layers is None or source is None:
        return None
    return CutOrigin(start, stop, layers, source)


@dataclass(frozen=True)
class _Planned:
    name: str
    type: GGMLQuantizationType
    dimensions: tuple[int, ...]
    size: int
    source: Tensor | None  # None: zeros


def _planned(name: str, source: Tensor) -> _Planned:
    return _Planned(name, source.type, source.dimensions, source.size, source)


def _zeros(name: str, columns: int, rows: int) -> _Planned:
    """Return a matrix that llama.cpp wants and nothing reads; its bytes are all zero."""
    kind = next(kind for kind in _FILLERS if columns % GGML_QUANT_SIZES[kind][0] == 0)
    block, size = GGML_QUANT_SIZES[kind]
    return _Planned(name, kind, (columns, rows), columns // block * size * rows, None)


def _ends(model: GgufFile, known: Architecture, start: int, stop: int) -> Iterator[_Planned]:
    """Yield the embedding and the output matrix, one of which stands for both where it may."""
    embedding = model.tensor(EMBEDDING)
    if embedding is None:  # check_cuttable refused it
        raise ValueError("a model without embeddings has no parts")
    columns, rows = embedding.dimensions
    if stop == model.layers:
        output = model.tensor(OUTPUT) or embedding
        if known.needs_output:
            yield _zeros(EMBEDDING, columns, rows)
            yield _planned(OUTPUT, output)
        else:
            yield _planned(EMBEDDING, output)
        return
    if start > 0:
        rows = DUMMY_VOCABULARY
        yield _zeros(EMBEDDING, columns, rows)
    else:
        yield _planned(EMBEDDING, embedding)
    if known.needs_output:
        yield _zeros(OUTPUT, columns, rows)


def _tensors(model: GgufFile, start: int, stop: int) -> Iterator[_Planned]:
    for tensor in model.tensors:
        if tensor.name in SHARED_TENSORS or (tensor.name in LAST_TENSORS and stop == model.layers):
            yield _planned(tensor.name, tensor)
        elif tensor.layer is not None and start <= tensor.layer < stop:
            rest = tensor.name.split(".", 2)[2]
            yield _planned(f"blk.{tensor.layer - start}.{rest}", tensor)


def _fields(model: GgufFile, known: Architecture, start: int, stop: int) -> Iterator[bytes]:
    changed = _changed(model, known, start, stop)
    knows_texts = stop == model.layers
    for field in model.fields.values():
        if field.key in changed or field.key.startswith(("covey.cut.", "split.")):
            continue
        if field.key.startswith("tokenizer.") and not knows_texts:
            continue
        yield model.data[field.start : field.end]
    yield from filter(None, changed.values())
    if not knows_texts:
        yield text_field("tokenizer.ggml.model", "none")
    yield uint32_field("covey.cut.start", start)
    yield uint32_field("covey.cut.stop", stop)
    yield uint32_field("covey.cut.layers", model.layers)
    yield text_field("covey.cut.model_sha256", model.header_sha256)
    if start > 0 and known.rows_enter:
        yield text_field(ROWS_ENTER, known.rows_enter)


def _changed(
    model: GgufFile, known: Architecture, start: int, stop: int
) -> dict[str, bytes | None]:
    """Return the metadata that a part has otherwise than the model, by key; None: not at all."""
    architecture = model.architecture
    changed: dict[str, bytes | None] = {"general.alignment": None}

    def say(key: str, value: int) -> None:
        changed[f"{architecture}.{key}"] = uint32_field(f"{architecture}.{key}", value)

    say("block_count", stop - start)
    if stop != model.layers:
        say("vocab_size", model.vocabulary_size() if start == 0 else DUMMY_VOCABULARY)
    for key in known.leading:
        say(key, max(0, (model.number(f"{architecture}.{key}") or 0) - start))
    for key, value in known.added(model).items():
        say(key, value)
    if windows := cut_rule(model).windows:
        key = f"{architecture}.{WINDOW_PATTERN}"
        changed[key] = bools_field(key, windows[start:stop])
    if start > 0:
        changed |= {f"{architecture}.{key}": None for key in known.first_only}
    return changed


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def uint32_field(key: str, value: int) -> bytes:
    """Return a metadata entry that holds a whole number, as GGUF stores it."""
    return _text(key) + struct.pack("<II", GGUFValueType.UINT32, value)


def text_field(key: str, value: str) -> bytes:
    """Return a metadata entry that holds a text, as GGUF stores it."""
    return _text(key) + struct.pack("<I", GGUFValueType.STRING) + _text(value)


def bools_field(key: str, values: Sequence[bool]) -> bytes:
    """Return a metadata entry that holds an array of truth values, as GGUF stores it."""
    kinds = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.BOOL, len(values))
    return _text(key) + kinds + bytes(values)


def _aligned(offset: int) -> int:
    return -(-offset // DEFAULT_ALIGNMENT_BYTES) * DEFAULT_ALIGNMENT_BYTES


def _header(fields: list[bytes], planned: list[_Planned]) -> bytes:
    pieces = [b"GGUF", struct.pack("<IQQ", _VERSION, len(planned), len(fields)), *fields]
    offset = 0
    for tensor in planned:
        rank = len(tensor.dimensions)
        pieces.append(_text(tensor.name))
        pieces.append(struct.pack(f"<I{rank}QIQ", rank, *tensor.dimensions, tensor.type, offset))
        offset += _aligned(tensor.size)
    header = b"".join(pieces)
    return header.ljust(_aligned(len(header)), b"\0")


def _content(model: GgufFile, header: bytes, planned: Iterable[_Planned]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in planned:
        if tensor.source is None:
            for at in range(0, tensor.size, _COPY_BYTES):
                yield memoryview(bytes(min(_COPY_BYTES, tensor.size - at)))
        else:
            end = tensor.source.start + tensor.size
            with memoryview(model.parts[tensor.source.file].data) as data:
                for at in range(tensor.source.start, end, _COPY_BYTES):
                    with data[at : min(at + _COPY_BYTES, end)] as piece:
                        yield piece
        yield memoryview(bytes(_aligned(tensor.size) - tensor.size))


def _write(model: GgufFile, header: bytes, planned: list[_Planned], destination: Path) -> PartFile:
    digest = hashlib.sha256()
    size = 0
    with tempfile.NamedTemporaryFile(
        dir=destination.parent, prefix=f".{destination.name}.", delete=False
    ) as file:
        partial = Path(file.name)
        try:
            for piece in _content(model, header, planned):
                digest.update(piece)
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            partial.rename(destination)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return PartFile(destination, digest.hexdigest(), size)
