"""Splits a GGUF file as llama.cpp's own tool does: all metadata in the first, tensors in a row."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf

ALIGNMENT = 32


def _aligned(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % ALIGNMENT)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _number(key: str, value: int, kind: gguf.GGUFValueType, form: str) -> bytes:
    return _text(key) + struct.pack(f"<I{form}", kind, value)


def _file(
    fields: Sequence[bytes], tensors: Sequence[gguf.ReaderTensor], number: int, count: int, all: int
) -> bytes:
    """Return one file with these metadata entries and tensors, file `number` (from 0)."""
    said = [
        *fields,
        _number("split.no", number, gguf.GGUFValueType.UINT16, "H"),
        _number("split.count", count, gguf.GGUFValueType.UINT16, "H"),
        _number("split.tensors.count", all, gguf.GGUFValueType.INT32, "i"),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(said)) + b"".join(said)
    data = b""
    for tensor in tensors:
        dimensions = [int(value) for value in tensor.shape]
        head += _text(tensor.name) + struct.pack(
            f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, tensor.tensor_type, len(data)
        )
        data += _aligned(tensor.data.tobytes())
    return _aligned(head) + data


def split(model: Path, folder: Path, count: int, *, bare: bool = False) -> list[Path]:
    """Write a model in `count` files called like it; return them in order.

    `bare`: the first has no tensors (--no-tensor-first-split).
    """
    reader = gguf.GGUFReader(model)
    raw = model.read_bytes()
    fields = [
        raw[field.offset : field.offset + sum(part.nbytes for part in field.parts)]
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    ]
    holding = count - 1 if bare else count
    size = -(-len(reader.tensors) // holding)
    runs = [reader.tensors[at : at + size] for at in range(0, holding * size, size)]
    if bare:
        runs.insert(0, [])
    paths = []
    for number, tensors in enumerate(runs):
        path = folder / f"{model.stem}-{number + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(
            _file(fields if not number else [], tensors, number, count, len(reader.tensors))
        )
        paths.append(path)
    return paths
