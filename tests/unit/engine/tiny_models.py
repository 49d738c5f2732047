"""Random-weight llama models: small enough to make in a blink, or of any other shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

LAYERS = 12
N_EMBD = 64
HEADS = 4
KV_HEADS = 2
FEED_FORWARD = 96
VOCABULARY = 400
CONTEXT = 512
FAINT = 0.02
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    layers: int = LAYERS
    n_embd: int = N_EMBD
    heads: int = HEADS
    kv_heads: int = KV_HEADS
    feed_forward: int = FEED_FORWARD
    vocabulary: int = VOCABULARY
    context: int = CONTEXT


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Add an SPM vocabulary with byte fallback, and a chat template."""
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % byte for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    words = ["\u2581" + word for word in ("the", "a", "ring", "of", "stages")]
    words += [chr(letter) for letter in range(ord("a"), ord("z") + 1)] + ["\u2581"]
    tokens += [word.encode() for word in words]
    tokens += [b"w%d" % number for number in range(size - len(tokens))]
    types += [1] * (size - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)


def write_model(
    path: Path,
    *,
    weight_type: str = "F32",
    tied: bool = False,
    seed: int = 0,
    architecture: str = "llama",
    layers: int = LAYERS,
    shape: Shape | None = None,
    rope_freqs: bool = False,
    faint_from: int | None = None,
    forgetful: bool = False,
    extra: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    """Write a model with random weights of one type, and an SPM vocabulary with byte fallback.

    `shape` stands for all sizes, `layers` for that one. Layers from `faint_from` on add little, so
    that a model of those before, with the same seed, mostly says the same. With `forgetful` they
    add nothing, and what comes next depends on the last token alone, through a sum with one number
    in it: bits are the same whatever else is in the batch and in the caches.
    """
    shape = shape or Shape(layers)
    random = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[weight_type]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.heads)
    writer.add_vocab_size(shape.vocabulary)
    add_vocabulary(writer, shape.vocabulary)
    extra(writer)

    def matrix(name: str, rows: int, columns: int, scale: float) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)
        if forgetful and name == "token_embd.weight":
            values = np.eye(columns, dtype=np.float32)[np.arange(rows) % columns]
        elif forgetful and name.endswith(("attn_output.weight", "ffn_down.weight")):
            values[:] = 0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    narrow = shape.n_embd**-0.5
    matrix("token_embd.weight", shape.vocabulary, shape.n_embd, 1.0)
    writer.add_tensor("output_norm.weight", np.ones(shape.n_embd, np.float32))
    if not tied:
        matrix("output.weight", shape.vocabulary, shape.n_embd, narrow)
    if rope_freqs:
        factors = np.linspace(1.0, 4.0, shape.n_embd // shape.heads // 2, dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            values = 1 + 0.1 * random.standard_normal(shape.n_embd, dtype=np.float32)
            writer.add_tensor(f"{prefix}{norm}.weight", values)
        head = shape.n_embd // shape.heads
        matrix(prefix + "attn_q.weight", shape.heads * head, shape.n_embd, narrow)
        matrix(prefix + "attn_k.weight", shape.kv_heads * head, shape.n_embd, narrow)
        matrix(prefix + "attn_v.weight", shape.kv_heads * head, shape.n_embd, narrow)
        loud = 1.0 if faint_from is None or layer < faint_from else FAINT
        matrix(prefix + "attn_output.weight", shape.n_embd, shape.heads * head, loud * narrow)
        matrix(prefix + "ffn_gate.weight", shape.feed_forward, shape.n_embd, narrow)
        matrix(prefix + "ffn_up.weight", shape.feed_forward, shape.n_embd, narrow)
        matrix(
            prefix + "ffn_down.weight", shape.n_embd, shape.feed_forward,
            loud * shape.feed_forward**-0.5,
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
