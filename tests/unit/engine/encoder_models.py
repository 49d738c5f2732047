"""Random-weight models for embeddings of other architectures than BERT's, by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, INNER, LAYERS, CONTEXT, VOCABULARY = 64, 4, 96, 2, 256, 300
HEAD = WIDTH // HEADS
_T5_PARTS = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_o",
    "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip
_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def write_encoder(path: Path, architecture: str) -> Path:
    """Write nomic-bert, jina-bert-v2, t5encoder (each pools the mean) or qwen3 (the last row)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_vocab_size(VOCABULARY)
    if architecture in ("t5encoder", "qwen3"):
        writer.add_layer_norm_rms_eps(1e-6)
    else:
        writer.add_layer_norm_eps(1e-6)
        writer.add_causal_attention(False)
        writer.add_token_type_count(2)
    if architecture == "t5encoder":  # its files say nothing of pooling
        writer.add_relative_attn_buckets_count(32)
    else:
        last = architecture == "qwen3"
        writer.add_pooling_type(gguf.PoolingType.LAST if last else gguf.PoolingType.MEAN)
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % byte for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    tokens += [b"w%d" % number for number in range(VOCABULARY - len(tokens))]
    types += [1] * (VOCABULARY - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(VOCABULARY)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    shapes = {"t5encoder": _t5, "qwen3": _qwen3}.get(architecture, _bert)
    for name, shape in shapes(architecture):
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            values *= np.float32(shape[-1] ** -0.5)
        else:
            values = 0.1 * values + (name.endswith("norm.weight"))
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _bert(architecture: str) -> _Shapes:
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    yield "token_types.weight", (2, WIDTH)
    yield from _norm("token_embd_norm")
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        if architecture == "nomic-bert":
            yield prefix + "attn_qkv.weight", (3 * WIDTH, WIDTH)
        else:
            for part in ("attn_q", "attn_k", "attn_v"):
                yield f"{prefix}{part}.weight", (WIDTH, WIDTH)
                yield f"{prefix}{part}.bias", (WIDTH,)
        yield prefix + "attn_output.weight", (WIDTH, WIDTH)
        yield from _norm(prefix + "attn_output_norm")
        yield from _feed_forward(prefix)
        yield from _norm(prefix + "layer_output_norm")
        if architecture == "jina-bert-v2":
            yield prefix + "attn_output.bias", (WIDTH,)
            yield prefix + "ffn_down.bias", (WIDTH,)


def _t5(_: str) -> _Shapes:
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    yield "enc.output_norm.weight", (WIDTH,)
    yield "enc.blk.0.attn_rel_b.weight", (32, HEADS)
    for layer in range(LAYERS):
        prefix = f"enc.blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_o"):
            yield f"{prefix}{part}.weight", (WIDTH, WIDTH)
        for part in ("attn_norm", "ffn_norm"):
            yield f"{prefix}{part}.weight", (WIDTH,)
        yield from _feed_forward(prefix)


def _qwen3(_: str) -> _Shapes:
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{prefix}{part}.weight", (WIDTH, WIDTH)
        for part in ("attn_norm", "ffn_norm"):
            yield f"{prefix}{part}.weight", (WIDTH,)
        for part in ("attn_q_norm", "attn_k_norm"):
            yield f"{prefix}{part}.weight", (HEAD,)
        yield from _feed_forward(prefix)


def _norm(name: str) -> _Shapes:
    yield name + ".weight", (WIDTH,)
    yield name + ".bias", (WIDTH,)


def _feed_forward(prefix: str) -> _Shapes:
    yield prefix + "ffn_up.weight", (INNER, WIDTH)
    yield prefix + "ffn_gate.weight", (INNER, WIDTH)
    yield prefix + "ffn_down.weight", (WIDTH, INNER)


def t5_embedding(path: Path, ids: Sequence[int]) -> np.ndarray:
    """Return the mean row, of length 1, that T5's encoder of this file gives by its description."""
    tensors = {tensor.name: tensor.data.astype(float) for tensor in gguf.GGUFReader(path).tensors}
    bias = tensors["enc.blk.0.attn_rel_b.weight"][_buckets(len(ids))].transpose(2, 0, 1)
    x = tensors["token_embd.weight"][list(ids)]
    for layer in range(LAYERS):
        get = {part: tensors[f"enc.blk.{layer}.{part}.weight"] for part in _T5_PARTS}
        normed = _rms(x) * get["attn_norm"]
        q, k, v = (
            (normed @ get[part].T).reshape(len(ids), HEADS, HEAD).transpose(1, 0, 2)
            for part in ("attn_q", "attn_k", "attn_v")
        )
        weights = np.exp(q @ k.transpose(0, 2, 1) + bias)
        weights /= weights.sum(axis=-1, keepdims=True)
        x = x + (weights @ v).transpose(1, 0, 2).reshape(len(ids), WIDTH) @ get["attn_o"].T
        normed = _rms(x) * get["ffn_norm"]
        gate = normed @ get["ffn_gate"].T
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        x = x + (gate * (normed @ get["ffn_up"].T)) @ get["ffn_down"].T
    mean = (_rms(x) * tensors["enc.output_norm.weight"]).mean(axis=0)
    return mean / np.linalg.norm(mean)


def _rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)


def _buckets(count: int) -> np.ndarray:
    """Return T5's bucket of each (query, key): distances, from 8 on by their logarithm."""
    distance = np.arange(count)[None, :] - np.arange(count)[:, None]
    far = 8 + np.log(np.maximum(np.abs(distance), 1) / 8) / np.log(128 / 8) * 8
    bucket = np.where(np.abs(distance) < 8, np.abs(distance), np.minimum(far.astype(int), 15))
    return bucket + 16 * (distance > 0)
