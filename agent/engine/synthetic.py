"""Small models of random weights, to try and to measure llama.cpp with, without any file at hand.

For `probe.py` and `speed_probe.py`, in processes of their own: a llama model of a few layers, of
the widths and weight types that are asked for. What it says means nothing.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from agent.engine.llama import Context, Rows

VOCABULARY = 256
# Rows of a matrix before they repeat: to quantise more would take longer than all the rest.
_DIFFERENT = 32


@dataclass(frozen=True)
class Shape:
    """A model with a layer of each of `types` (ggml's names), of so many values a row.

    `inner` is the width of its feed forward, `context` how many tokens it was made for.
    """

    types: Sequence[str]
    width: int
    inner: int
    context: int

    @property
    def layer_weights(self) -> int:
        """How many weights the matrices of a layer have."""
        return 4 * self.width**2 + 3 * self.width * self.inner


def _matrix(random: np.random.Generator, rows: int, columns: int, type_name: str) -> Any:
    """Return random weights as the bytes of their type, quantised by llama.cpp; rows repeat."""
    import gguf
    import llama_cpp.llama_cpp

    some = random.normal(0.0, columns**-0.5, (min(rows, _DIFFERENT), columns)).astype(np.float32)
    if type_name == "F32":
        return np.resize(some, (rows, columns))
    kind = gguf.GGMLQuantizationType[type_name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    found = np.empty((len(some), columns // block * size), np.uint8)
    quantize = llama_cpp.llama_cpp._lib.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *3 * [ctypes.c_int64],
                         ctypes.c_void_p]  # fmt: skip
    quantize(kind, some.ctypes.data, found.ctypes.data, 0, len(some), columns, None)
    return np.resize(found, (rows, found.shape[1]))


def _write(path: Path, shape: Shape) -> None:
    """Write a llama model of one layer for each type of the shape."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(len(shape.types))
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // 4)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(1)

    def add(name: str, rows: int, columns: int, type_name: str) -> None:
        kind = gguf.GGMLQuantizationType[type_name]
        raw = None if type_name == "F32" else kind
        writer.add_tensor(name, _matrix(random, rows, columns, type_name), raw_dtype=raw)

    norm = np.ones(shape.width, np.float32)
    add("token_embd.weight", VOCABULARY, shape.width, "F32")
    add("output.weight", VOCABULARY, shape.width, "Q8_0")
    writer.add_tensor("output_norm.weight", norm)
    for layer, type_name in enumerate(shape.types):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", norm)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", shape.width, shape.width, type_name)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", shape.inner, shape.width, type_name)
        add(f"blk.{layer}.ffn_down.weight", shape.width, shape.inner, type_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def written(shape: Shape) -> Iterator[Path]:
    """Write the model to a file that lasts as long as the context."""
    with tempfile.TemporaryDirectory(prefix="covey-selftest-") as folder:
        path = Path(folder) / "probe.gguf"
        _write(path, shape)
        yield path


def decode(context: Context, position: int, count: int) -> Rows:
    """Decode so many tokens of one sequence from `position` on; all give output."""
    positions = np.arange(position, position + count, dtype=np.int32)
    zeros = np.zeros(count, np.int32)
    return context.decode_tokens(positions % VOCABULARY, zeros, positions, np.ones(count, np.int8))
