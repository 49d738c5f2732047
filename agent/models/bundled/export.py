"""covey-mini's weights to one GGUF file that llama.cpp loads. Used by train.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType

from agent.models.bundled import NAME, net, tokenizer

CONTEXT = 512  # the longest chat that training draws, in tokens
DESCRIPTION = (
    "A tiny chat model that ships with Covey: adds and compares small numbers, tells days and "
    "months, spells and reverses words, and explains Covey's words."
)


def paired(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Reorder the rows of a query or key matrix from rotated halves to rotated pairs.

    net.py turns value i of a head with value i + half; llama.cpp's llama turns 2i with 2i + 1.
    """
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write(path: Path, shape: net.Shape, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write the GGUF: matrices as float16, norms as float32, tokenizer and chat template."""
    writer = GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_license("AGPL-3.0-or-later")
    writer.add_languages(["en"])
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)
    _add_tokenizer(writer)
    for name in ("token_embd", "output_norm", "output"):
        _add(writer, f"{name}.weight", weights[name])
    for layer in range(shape.layers):
        for name, stacked in weights.items():
            if name in ("token_embd", "output_norm", "output"):
                continue
            weight = stacked[layer]
            if name in ("attn_q", "attn_k"):
                weight = paired(weight, shape.heads)
            _add(writer, f"blk.{layer}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, name: str, weight: np.ndarray[Any, Any]) -> None:
    kind = np.float32 if weight.ndim == 1 else np.float16
    writer.add_tensor(name, np.ascontiguousarray(weight, dtype=kind))


def _add_tokenizer(writer: GGUFWriter) -> None:
    texts = tokenizer.tokens()
    types = []
    for i in range(len(texts)):
        if i == tokenizer.UNK:
            types.append(TokenType.UNKNOWN)
        elif i < tokenizer.BYTE_0:
            types.append(TokenType.CONTROL)
        else:
            byte = i < tokenizer.BYTE_0 + 256
            types.append(TokenType.BYTE if byte else TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(texts))
    writer.add_token_scores([0.0 - i for i in range(len(texts))])
    writer.add_token_types(types)
    writer.add_unk_token_id(tokenizer.UNK)
    writer.add_bos_token_id(tokenizer.BOS)
    writer.add_eos_token_id(tokenizer.END)
    writer.add_eot_token_id(tokenizer.END)
    writer.add_pad_token_id(tokenizer.UNK)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.CHAT_TEMPLATE)
