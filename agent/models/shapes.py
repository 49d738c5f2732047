"""From an architecture's shape to its tensors: parameters, and bytes in a quantisation. A core.

For the catalogue, which knows models that are no file here. Tensors are named as llama.cpp names
them, and each gets the type that llama.cpp's quantiser gives it, so that sizes are right to a part
of a per cent (the tests compare them with files of known size). Not for files: `GgufFile` reads
those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from agent.engine.gguf_constants import GGML_QUANT_SIZES
from agent.engine.gguf_constants import GGMLQuantizationType as Type

Quantisation = Literal["F16", "Q8_0", "Q4_K_M", "MXFP4"]
Architecture = Literal[
    "deepseek2", "gemma3", "gpt-oss", "granite", "llama", "phi3", "qwen3", "qwen3moe"
]
# Bytes of a file's header for each token that the model knows: its text, type, score and merges.
HEADER_BYTES_PER_TOKEN = 50

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Number = Annotated[int, msgspec.Meta(ge=0)]


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model's weights look like; 0 where there is no such thing.

    `head_size` is the length of a key (0: n_embd / heads), `value_size` that of a value where it
    differs. With `kv_rank` keys and values come from one latent row (multi-head latent attention):
    `rope_size` of a key's values are rotated, and queries have the rank `q_rank`. The first
    `dense_layers` of a model with experts have none. `rope_factors`: so many values in the table
    (llama 3) or tables (phi3: long and short) by which rope is scaled. `window`: the length
    (tokens) of sliding windows.
    """

    layers: _Count
    n_embd: _Count
    heads: _Count
    kv_heads: _Count
    feed_forward: _Number
    vocabulary: _Count
    context: _Count
    tied: bool = False
    head_size: _Number = 0
    value_size: _Number = 0
    experts: _Number = 0
    experts_used: _Number = 0
    expert_feed_forward: _Number = 0
    shared_experts: _Number = 0
    dense_layers: _Number = 0
    q_rank: _Number = 0
    kv_rank: _Number = 0
    rope_size: _Number = 0
    rope_factors: _Number = 0
    window: _Number = 0

    @property
    def key(self) -> int:
        """Values in one head's key."""
        return self.head_size or self.n_embd // self.heads

    @property
    def value(self) -> int:
        """Values in one head's value."""
        return self.value_size or self.key

    def kv_bytes_per_token(self) -> int:
        """Return one layer's KV cache for one token (bytes), in f16 as llama.cpp keeps it."""
        if self.kv_rank:
            return 2 * (self.kv_rank + self.rope_size)
        return 2 * self.kv_heads * (self.key + self.value)

    def attended_per_token(self) -> int:
        """Return how much one layer's attention multiplies for each token behind a row."""
        if self.kv_rank:
            return self.heads * (2 * self.kv_rank + self.rope_size)
        return self.heads * (self.key + self.value)


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name without layer and ending, its dimensions (fastest first), its layer."""

    name: str
    dimensions: tuple[int, ...]
    layer: int | None = None

    @property
    def parameters(self) -> int:
        """How many values it has."""
        return math.prod(self.dimensions)


@dataclass(frozen=True)
class Sizes:
    """What a model's parts take, in bytes; `output` is without the embedding of a tied model."""

    layers: tuple[int, ...]
    embedding: int
    output: int
    shared: int

    @property
    def total(self) -> int:
        """All tensors, each once."""
        return sum(self.layers) + self.embedding + self.output + self.shared


def tensors(architecture: Architecture, shape: Shape) -> Iterator[Tensor]:
    """Yield the tensors of a model: those outside of layers, then layer by layer."""
    yield Tensor("token_embd", (shape.n_embd, shape.vocabulary))
    yield Tensor("output_norm", (shape.n_embd,))
    if not shape.tied:
        yield Tensor("output", (shape.n_embd, shape.vocabulary))
    if shape.rope_factors:
        for name in ("rope_factors_long", "rope_factors_short") if architecture == "phi3" else (
            "rope_freqs",
        ):  # fmt: skip
            yield Tensor(name, (shape.rope_factors,))
    for layer in range(shape.layers):
        for name, *dimensions in (
            *_attention(architecture, shape),
            *_feeds(architecture, shape, layer),
        ):
            yield Tensor(name, tuple(dimensions), layer)


_Part = tuple[str, *tuple[int, ...]]


def _attention(architecture: Architecture, shape: Shape) -> Iterator[_Part]:
    embd, key, value = shape.n_embd, shape.key, shape.value
    queries, keys = shape.heads * key, shape.kv_heads * key
    yield "attn_norm", embd
    if shape.kv_rank:
        yield "attn_q_a", embd, shape.q_rank
        yield "attn_q_a_norm", shape.q_rank
        yield "attn_q_b", shape.q_rank, queries
        yield "attn_kv_a_mqa", embd, shape.kv_rank + shape.rope_size
        yield "attn_kv_a_norm", shape.kv_rank
        yield "attn_k_b", key - shape.rope_size, shape.kv_rank, shape.heads
        yield "attn_v_b", shape.kv_rank, value, shape.heads
    elif architecture == "phi3":
        yield "attn_qkv", embd, queries + 2 * keys
    else:
        yield "attn_q", embd, queries
        yield "attn_k", embd, keys
        yield "attn_v", embd, shape.kv_heads * value
    yield "attn_output", shape.heads * value, embd
    if architecture in ("gemma3", "qwen3", "qwen3moe"):
        yield "attn_q_norm", key
        yield "attn_k_norm", key
    if architecture == "gemma3":
        yield "post_attention_norm", embd
        yield "post_ffw_norm", embd
    if architecture == "gpt-oss":
        yield "attn_q.bias", queries
        yield "attn_k.bias", keys
        yield "attn_v.bias", keys
        yield "attn_output.bias", embd
        yield "attn_sinks", shape.heads


def _feeds(architecture: Architecture, shape: Shape, layer: int) -> Iterator[_Part]:
    embd, inner, experts = shape.n_embd, shape.expert_feed_forward, shape.experts
    # gpt-oss calls it post_attention_norm.
    yield "ffn_norm", embd
    if not experts or layer < shape.dense_layers:
        if architecture == "phi3":
            yield "ffn_up", embd, 2 * shape.feed_forward
        else:
            yield "ffn_gate", embd, shape.feed_forward
            yield "ffn_up", embd, shape.feed_forward
        yield "ffn_down", shape.feed_forward, embd
        return
    yield "ffn_gate_inp", embd, experts
    yield "ffn_gate_exps", embd, inner, experts
    yield "ffn_up_exps", embd, inner, experts
    yield "ffn_down_exps", inner, embd, experts
    if shape.shared_experts:
        yield "ffn_gate_shexp", embd, inner * shape.shared_experts
        yield "ffn_up_shexp", embd, inner * shape.shared_experts
        yield "ffn_down_shexp", inner * shape.shared_experts, embd
    if architecture == "deepseek2":
        yield "exp_probs_b.bias", experts
    if architecture == "gpt-oss":
        yield "ffn_gate_inp.bias", experts
        yield "ffn_gate_exps.bias", inner, experts
        yield "ffn_up_exps.bias", inner, experts
        yield "ffn_down_exps.bias", embd, experts


def parameters(architecture: Architecture, shape: Shape) -> int:
    """Return how many parameters a model has."""
    return sum(tensor.parameters for tensor in tensors(architecture, shape))


def sizes(architecture: Architecture, shape: Shape, quantisation: Quantisation) -> Sizes:
    """Return what a model's parts take (bytes) once it is quantised."""
    layers = [0] * shape.layers
    embedding = output = shared = 0
    for tensor in tensors(architecture, shape):
        size = _bytes(tensor, architecture, shape, quantisation)
        if tensor.layer is not None:
            layers[tensor.layer] += size
        elif tensor.name == "token_embd":
            embedding += size
        elif tensor.name.startswith("output"):
            output += size
        else:
            shared += size
    return Sizes(tuple(layers), embedding, output, shared)


def file_bytes(architecture: Architecture, shape: Shape, quantisation: Quantisation) -> int:
    """Return about how large the model's file is, or all of them where it is split."""
    header = HEADER_BYTES_PER_TOKEN * shape.vocabulary
    return sizes(architecture, shape, quantisation).total + header


def _bytes(
    tensor: Tensor, architecture: Architecture, shape: Shape, quantisation: Quantisation
) -> int:
    block: int
    size: int
    block, size = GGML_QUANT_SIZES[_type(tensor, architecture, shape, quantisation)]
    return tensor.parameters // block * size


# What llama.cpp takes where a row is no multiple of 256 values, a block of the k-quants.
_UNEVEN = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
_K_BLOCK = 256


def _type(
    tensor: Tensor, architecture: Architecture, shape: Shape, quantisation: Quantisation
) -> Type:
    """Return the type that llama.cpp's quantiser gives a tensor."""
    if len(tensor.dimensions) == 1 or tensor.name.endswith(".bias"):
        return Type.F32
    if tensor.name == "ffn_gate_inp":
        return Type.F32
    if quantisation == "F16":
        return Type.F16
    if quantisation == "Q8_0":
        return Type.Q8_0
    if quantisation == "MXFP4":
        return Type.MXFP4 if tensor.name.endswith("_exps") else Type.Q8_0
    found = _mixed(tensor, architecture, shape)
    return _UNEVEN[found] if tensor.dimensions[0] % _K_BLOCK else found


def _mixed(tensor: Tensor, architecture: Architecture, shape: Shape) -> Type:
    """Return a tensor's type in Q4_K_M, where its row is long enough."""
    if tensor.name == "output" or (tensor.name == "token_embd" and shape.tied):
        return Type.Q6_K
    if tensor.name == "attn_qkv":
        return Type.Q5_K
    if tensor.name in ("attn_v", "ffn_down", "ffn_down_exps", "ffn_down_shexp"):
        layer, eighth = tensor.layer or 0, shape.layers // 8
        outer = layer < eighth or layer >= 7 * shape.layers // 8
        if outer or (layer - eighth) % 3 == 2:
            return Type.Q6_K
        # In a Llama of 70B eight heads share each value: better ones cost little.
        if tensor.name == "attn_v" and architecture == "llama" and shape.layers == 80:
            return Type.Q5_K
    return Type.Q4_K
