"""Cut a model into the parts of a ring: one GGUF file for a run of layers [start, stop).

Says which models may be cut and why others may not, and writes the parts (design §8). Used by the
agent before it starts an engine, on any file that `gguf_file.py` could open. Tensor data is copied
byte for byte, in pieces, so a part of a 40 GB model costs a few megabytes of memory.

| part   | layers       | token_embd.weight          | tokenizer                    |
|--------|--------------|----------------------------|------------------------------|
| first  | [0, b), b<n  | the model's                | none, the model's vocabulary size |
| middle | [a, b)       | 32 rows of zeros           | none                         |
| last   | [a, n), a>0  | the output matrix (tied)   | the model's                  |

Layers are renumbered from 0. A last part is the one that knows texts; the first only sees ids.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGMLQuantizationType, GGUFValueType

from agent.engine.gguf_file import DEFAULT_ALIGNMENT_BYTES, GgufFile, Tensor
from agent.errors import EnvironmentFault, ModelError

_VERSION = 3
_COPY_BYTES = 1 << 20
# What a middle part has as vocabulary: llama.cpp wants one, nothing reads it.
DUMMY_VOCABULARY = 32
_HINT_WHOLE = "It can run whole on one node."

# Non-layer tensors that every part gets: llama.cpp reads them from each part's file.
_SHARED_TENSORS = frozenset(
    {
        "output_norm.weight",
        "rope_freqs.weight",
        "rope_factors_long.weight",
        "rope_factors_short.weight",
    }
)
# The metadata of a llama-architecture model that is known to leave layers alike, so that a run of
# them computes the same whatever its number. Anything else is refused until it is proved exact.
_LLAMA_KEYS = frozenset(
    {
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "tensor_data_layout",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.causal",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_log_multiplier",
    }
)
_CUTTABLE = {"llama": _LLAMA_KEYS}


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


def check_cuttable(model: GgufFile) -> None:
    """Raise ModelError, with the reason, unless cuts of this model are known to be exact."""
    architecture = model.architecture
    allowed = _CUTTABLE.get(architecture)
    if allowed is None:
        known = ", ".join(sorted(_CUTTABLE))
        raise _refused(
            model, f"the architecture {architecture} is not proved exact (known: {known})"
        )
    if (model.number("split.count") or 1) > 1:
        raise _refused(model, "it is one file of a split model; merge it with llama-gguf-split")
    for field in model.fields.values():
        prefix, _, key = field.key.partition(".")
        if prefix != architecture:
            continue
        if field.is_array:
            raise _refused(model, f"{field.key} differs from layer to layer")
        if key not in allowed and model.get(field.key) not in (0, 0.0, False, ""):
            raise _refused(model, f"it has {field.key}, with which a cut is not proved exact")
    present: set[int] = set()
    for tensor in model.tensors:
        if tensor.layer is not None:
            present.add(tensor.layer)
        elif tensor.name not in _SHARED_TENSORS | {"token_embd.weight", "output.weight"}:
            raise _refused(model, f"it has the tensor {tensor.name}, whose part is not known")
    if present != set(range(model.layers)):
        raise _refused(model, f"its tensors do not make up {model.layers} layers")
    if model.tensor("token_embd.weight") is None:
        raise _refused(model, "it has no token_embd.weight")


def write_part(model: GgufFile, start: int, stop: int, destination: Path) -> PartFile:
    """Write layers [start, stop) of `model` as a part; `destination` appears whole or not at all.

    Raises ModelError when the model may not be cut, EnvironmentFault when the file cannot be
    written, ValueError for a range that is empty, outside the model, or the whole of it.
    """
    check_cuttable(model)
    layers = model.layers
    if not 0 <= start < stop <= layers or (start, stop) == (0, layers):
        raise ValueError(f"[{start}, {stop}) is no part of {layers} layers")
    planned = list(_tensors(model, start, stop))
    fields = list(_fields(model, start, stop))
    header = _header(fields, planned)
    try:
        return _write(model, header, planned, destination)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write the part {destination}: {error.strerror}.",
            hint="Free some space or choose another cache folder.",
        ) from None


def origin(part: GgufFile) -> CutOrigin | None:
    """Return what a part was cut from, as it says itself; None for a model that was not cut."""
    numbers = [part.number(f"covey.cut.{key}") for key in ("start", "stop", "layers")]
    source = part.text("covey.cut.model_sha256")
    start, stop, layers = numbers
    if start is None or stop is None or layers is None or source is None:
        return None
    return CutOrigin(start, stop, layers, source)


def _refused(model: GgufFile, why: str) -> ModelError:
    return ModelError(f"{model.name} cannot be cut: {why}.", hint=_HINT_WHOLE)


@dataclass(frozen=True)
class _Planned:
    name: str
    type: GGMLQuantizationType
    dimensions: tuple[int, ...]
    size: int
    source: Tensor | None  # None: zeros


def _planned(name: str, source: Tensor) -> _Planned:
    return _Planned(name, source.type, source.dimensions, source.size, source)


def _tensors(model: GgufFile, start: int, stop: int) -> Iterator[_Planned]:
    embedding = model.tensor("token_embd.weight")
    if embedding is None:  # check_cuttable refused it
        raise ValueError("a model without embeddings has no parts")
    if stop == model.layers:
        yield _planned("token_embd.weight", model.tensor("output.weight") or embedding)
    elif start == 0:
        yield _planned("token_embd.weight", embedding)
    else:
        n_embd = embedding.dimensions[0]
        yield _Planned(
            "token_embd.weight",
            GGMLQuantizationType.F16,
            (n_embd, DUMMY_VOCABULARY),
            n_embd * DUMMY_VOCABULARY * 2,
            None,
        )
    for tensor in model.tensors:
        if tensor.name in _SHARED_TENSORS:
            yield _planned(tensor.name, tensor)
        elif tensor.layer is not None and start <= tensor.layer < stop:
            rest = tensor.name.split(".", 2)[2]
            yield _planned(f"blk.{tensor.layer - start}.{rest}", tensor)


def _fields(model: GgufFile, start: int, stop: int) -> Iterator[bytes]:
    architecture = model.architecture
    vocabulary_key = f"{architecture}.vocab_size"
    replaced = {f"{architecture}.block_count", "general.alignment"}
    knows_texts = stop == model.layers
    if not knows_texts:
        replaced.add(vocabulary_key)
    for field in model.fields.values():
        if field.key in replaced or field.key.startswith("covey.cut."):
            continue
        if field.key.startswith("tokenizer.") and not knows_texts:
            continue
        yield model.data[field.start : field.end]
    yield uint32_field(f"{architecture}.block_count", stop - start)
    if not knows_texts:
        size = model.vocabulary_size() if start == 0 else DUMMY_VOCABULARY
        yield text_field("tokenizer.ggml.model", "none")
        yield uint32_field(vocabulary_key, size)
    yield uint32_field("covey.cut.start", start)
    yield uint32_field("covey.cut.stop", stop)
    yield uint32_field("covey.cut.layers", model.layers)
    yield text_field("covey.cut.model_sha256", model.header_sha256)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def uint32_field(key: str, value: int) -> bytes:
    """Return a metadata entry that holds a whole number, as GGUF stores it."""
    return _text(key) + struct.pack("<II", GGUFValueType.UINT32, value)


def text_field(key: str, value: str) -> bytes:
    """Return a metadata entry that holds a text, as GGUF stores it."""
    return _text(key) + struct.pack("<I", GGUFValueType.STRING) + _text(value)


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
    with memoryview(model.data) as data:
        for tensor in planned:
            if tensor.source is None:
                yield memoryview(bytes(tensor.size))
            else:
                end = tensor.source.start + tensor.size
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
