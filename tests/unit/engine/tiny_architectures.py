"""Random-weight models of each architecture that can be cut, f32, as a table.

A recipe says what llama.cpp loads: metadata, and tensors by name with their dimensions in ggml's
order (fastest first). Windows and original contexts are smaller than the tests' prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import tiny_models as tiny

E, HEADS, KV_HEADS, HEAD, FEED, EXPERTS, EXPERT_FEED = 64, 4, 2, 16, 96, 4, 32
VOCABULARY = tiny.VOCABULARY
WINDOW = 16
Q, KV = HEADS * HEAD, KV_HEADS * HEAD

Dimensions = tuple[int, ...]
Tensors = Mapping[str, Dimensions]
Value = int | float | str | list[int]


def attention(head: int = HEAD) -> dict[str, Dimensions]:
    """Return queries, keys, values and output, for heads of this width."""
    q, kv = HEADS * head, KV_HEADS * head
    return {"attn_q": (E, q), "attn_k": (E, kv), "attn_v": (E, kv), "attn_output": (q, E)}


def biases(of: Tensors) -> dict[str, Dimensions]:
    """Return a bias for the output of each of these."""
    return {f"{name}.bias": dimensions[1:] for name, dimensions in of.items()}


NORMS: Tensors = {"attn_norm": (E,), "ffn_norm": (E,)}
POST_NORMS: Tensors = {"post_attention_norm": (E,), "post_ffw_norm": (E,)}
DENSE: Tensors = {"ffn_gate": (E, FEED), "ffn_up": (E, FEED), "ffn_down": (FEED, E)}
FUSED: Tensors = {"ffn_up": (E, 2 * FEED), "ffn_down": (FEED, E)}
MIXTURE: Tensors = {
    "ffn_gate_inp": (E, EXPERTS), "ffn_gate_exps": (E, EXPERT_FEED, EXPERTS),
    "ffn_up_exps": (E, EXPERT_FEED, EXPERTS), "ffn_down_exps": (EXPERT_FEED, E, EXPERTS),
}  # fmt: skip
SHARED: Tensors = {
    "ffn_gate_shexp": (E, EXPERT_FEED), "ffn_up_shexp": (E, EXPERT_FEED),
    "ffn_down_shexp": (EXPERT_FEED, E),
}  # fmt: skip
QKV = {name: dimensions for name, dimensions in attention().items() if name != "attn_output"}
FUSED_QKV: Tensors = {"attn_qkv": (E, Q + 2 * KV), "attn_output": (Q, E)}

EXPERT_KEYS: Mapping[str, Value] = {"expert_count": EXPERTS, "expert_used_count": 2}
EXPERT_FEED_KEYS = EXPERT_KEYS | {"expert_feed_forward_length": EXPERT_FEED}
LLAMA = NORMS | attention() | DENSE
WIDE: Mapping[str, Value] = {
    "attention.key_length": 24, "attention.value_length": 24, "rope.dimension_count": 24,
}  # fmt: skip
WINDOWED: Mapping[str, Value] = {"attention.sliding_window": WINDOW}
YARN: Mapping[str, Value] = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 128,
}  # fmt: skip
LONG_ROPE = ("rope_factors_long", "rope_factors_short")
GEMMA2: Mapping[str, Value] = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}


@dataclass(frozen=True)
class Recipe:
    """One model: the tensors of every layer, of those with and without experts, and outside."""

    architecture: str
    tensors: Tensors
    keys: Mapping[str, Value] = field(default_factory=dict)
    layers: int = 6
    n_embd: int = E
    dense: Tensors = field(default_factory=dict)  # in layers without experts
    mixture: Tensors = field(default_factory=dict)
    outside: Tensors = field(default_factory=dict)
    tied: bool = False

    def of_layer(self, layer: int) -> Tensors:
        """Return what this layer consists of."""
        step = self.keys.get("interleave_moe_layer_step", 1)
        leading = self.keys.get("leading_dense_block_count", 0)
        assert isinstance(step, int) and isinstance(leading, int)
        experts = layer >= leading and (layer + 1) % step == 0
        return {**self.tensors, **(self.mixture if experts else self.dense)}


def deepseek(
    queries: Tensors, keys: Mapping[str, Value], absorbed: Tensors, layers: int = 6
) -> Recipe:
    """Return a DeepSeek of one of the kinds that llama.cpp tells apart."""
    return Recipe(
        "deepseek2",
        {
            **NORMS, **queries, **absorbed, "attn_kv_a_mqa": (E, 16 + 8), "attn_kv_a_norm": (16,),
            "attn_output": (HEADS * 16, E),
        },
        {
            **EXPERT_FEED_KEYS, "expert_shared_count": 1, "expert_weights_scale": 1.5,
            "leading_dense_block_count": 2, "attention.kv_lora_rank": 16,
            "rope.dimension_count": 8, **YARN, "rope.scaling.yarn_log_multiplier": 0.07, **keys,
        },
        layers, dense=DENSE, mixture=MIXTURE | SHARED,
    )  # fmt: skip


def olmo(n_embd: int, **keys: Value) -> Recipe:
    """Return an OLMo of this width (256: the zeros in its parts are of the smallest type)."""
    head = n_embd // HEADS
    tensors = {
        "attn_q": (n_embd, n_embd), "attn_k": (n_embd, KV_HEADS * head),
        "attn_v": (n_embd, KV_HEADS * head), "attn_output": (n_embd, n_embd),
        "attn_q_norm": (n_embd,), "attn_k_norm": (KV_HEADS * head,),
        "post_attention_norm": (n_embd,), "post_ffw_norm": (n_embd,),
        "ffn_gate": (n_embd, FEED), "ffn_up": (n_embd, FEED), "ffn_down": (FEED, n_embd),
    }  # fmt: skip
    return Recipe("olmo2", tensors, {"rope.dimension_count": head, **keys}, n_embd=n_embd)


LOW_RANK: Tensors = {"attn_q_a": (E, 24), "attn_q_a_norm": (24,), "attn_q_b": (24, HEADS * 24)}
ABSORBED: Tensors = {"attn_k_b": (16, 16, HEADS), "attn_v_b": (16, 16, HEADS)}
ABSORBED_KEYS: Mapping[str, Value] = {
    "attention.head_count_kv": 1, "attention.key_length": 24, "attention.value_length": 16,
    "attention.key_length_mla": 24, "attention.value_length_mla": 16,
}  # fmt: skip
UNABSORBED_KEYS: Mapping[str, Value] = {
    "attention.head_count_kv": HEADS, "attention.key_length": 24, "attention.value_length": 16,
}  # fmt: skip

SWA_ARRAY: list[int] = [0, 1, 1, 0, 1, 0]

RECIPES: Mapping[str, Recipe] = {
    "command-r": Recipe(
        "command-r", {"attn_norm": (E,), **attention(), **DENSE}, {"logit_scale": 0.0625},
        tied=True,
    ),
    "deepseek2": deepseek(
        LOW_RANK,
        {**ABSORBED_KEYS, "attention.q_lora_rank": 24, "expert_gating_func": 2,
         "expert_weights_norm": True},
        ABSORBED,
    ),
    "deepseek2 lite": deepseek({"attn_q": (E, HEADS * 24)}, ABSORBED_KEYS, ABSORBED, layers=27),
    "deepseek2 unabsorbed": deepseek(
        LOW_RANK, {**UNABSORBED_KEYS, "attention.q_lora_rank": 24},
        {"attn_kv_b": (16, HEADS * (16 + 16))},
    ),
    "gemma2": Recipe(
        "gemma2", {**NORMS, **POST_NORMS, **attention(24), **DENSE}, {**WIDE, **WINDOWED, **GEMMA2},
        tied=True,
    ),
    "gemma2 27B, both scales alike": Recipe(
        "gemma2", {**NORMS, **POST_NORMS, **attention(), **DENSE}, {**WINDOWED, **GEMMA2},
        layers=46, tied=True,
    ),
    "gemma3": Recipe(
        "gemma3",
        {**NORMS, **POST_NORMS, **attention(24), **DENSE, "attn_q_norm": (24,),
         "attn_k_norm": (24,)},
        {**WIDE, **WINDOWED, "rope.freq_base": 1e6, "rope.scaling.type": "linear",
         "rope.scaling.factor": 8.0},
        layers=8, tied=True,
    ),
    "gemma3 with its own pattern": Recipe(
        "gemma3",
        {**NORMS, **POST_NORMS, **attention(), **DENSE, "attn_q_norm": (HEAD,),
         "attn_k_norm": (HEAD,)},
        {**WINDOWED, "attention.sliding_window_pattern": SWA_ARRAY, "rope.freq_base": 1e6},
    ),
    "gemma3 without windows": Recipe(
        "gemma3",
        {**NORMS, **POST_NORMS, **attention(), **DENSE, "attn_q_norm": (HEAD,),
         "attn_k_norm": (HEAD,)},
        {"final_logit_softcapping": 3.0},
    ),
    "glm4": Recipe(
        "glm4", {**NORMS, **POST_NORMS, **attention(), **biases(QKV), **FUSED},
        {"rope.dimension_count": 8},
    ),
    "gpt-oss": Recipe(
        "gpt-oss",
        {
            "attn_norm": (E,), "post_attention_norm": (E,), **attention(), **biases(attention()),
            "attn_sinks": (HEADS,), **MIXTURE, **biases(MIXTURE),
        },
        {**WINDOWED, **EXPERT_FEED_KEYS, **YARN},
    ),
    "granite": Recipe(
        "granite", LLAMA,
        {"embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.0625,
         "logit_scale": 8.0},
        tied=True,
    ),
    "llama": Recipe("llama", LLAMA, outside={"rope_freqs": (HEAD // 2,)}),
    "llama with experts (mixtral)": Recipe(
        "llama", NORMS | attention() | MIXTURE,
        {**EXPERT_KEYS, "feed_forward_length": EXPERT_FEED},
    ),
    "llama4": Recipe(
        "llama4", NORMS | attention() | MIXTURE | SHARED,
        {**EXPERT_FEED_KEYS, "interleave_moe_layer_step": 1}, layers=12,
    ),
    "llama4 with experts in each second layer": Recipe(
        "llama4", NORMS | attention(),
        {**EXPERT_FEED_KEYS, "interleave_moe_layer_step": 2}, layers=8,
        dense=DENSE, mixture=MIXTURE | SHARED, outside={"rope_freqs": (HEAD // 2,)},
    ),
    "mistral3": Recipe(
        "mistral3", LLAMA,
        {**YARN, "attention.temperature_scale": 0.1, "rope.scaling.yarn_log_multiplier": 1.0,
         "rope.scaling.original_context_length": 32},
    ),
    "olmo2": olmo(256),
    "olmo2 with windows (olmo3)": olmo(E, **WINDOWED, **YARN),
    "phi3": Recipe("phi3", {**NORMS, **FUSED_QKV, **FUSED}, WINDOWED),
    "phi3, long rope": Recipe(
        "phi3", {**NORMS, **FUSED_QKV, **FUSED},
        {"rope.scaling.attn_factor": 1.19, "rope.scaling.original_context_length": 128},
        outside=dict.fromkeys(LONG_ROPE, (HEAD // 2,)),
    ),
    "phi3, short rope": Recipe(
        "phi3", {**NORMS, **FUSED_QKV, **FUSED},
        {"rope.scaling.attn_factor": 1.19, "rope.scaling.original_context_length": 1024},
        outside=dict.fromkeys(LONG_ROPE, (HEAD // 2,)),
    ),
    "qwen2": Recipe(
        "qwen2", LLAMA | biases(QKV), outside={"output.bias": (VOCABULARY,)}, tied=True
    ),
    "qwen2moe": Recipe(
        "qwen2moe",
        {**NORMS, **attention(), **biases(QKV), **MIXTURE, **SHARED, "ffn_gate_inp_shexp": (E,)},
        {**EXPERT_FEED_KEYS, "expert_shared_feed_forward_length": EXPERT_FEED},
    ),
    "qwen3": Recipe(
        "qwen3",
        {**NORMS, **attention(24), **DENSE, "attn_q_norm": (24,), "attn_k_norm": (24,)},
        {**WIDE, **YARN}, tied=True,
    ),
    "qwen3moe": Recipe(
        "qwen3moe",
        {**NORMS, **attention(), **MIXTURE, "attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)},
        EXPERT_FEED_KEYS,
    ),
    "starcoder2": Recipe(
        "starcoder2",
        {
            **NORMS, "attn_norm.bias": (E,), "ffn_norm.bias": (E,), **attention(),
            **biases(attention()), "ffn_up": (E, FEED), "ffn_down": (FEED, E),
            "ffn_up.bias": (FEED,), "ffn_down.bias": (E,),
        },
        outside={"output_norm.bias": (E,)},
    ),
}  # fmt: skip


def write(path: Path, recipe: Recipe, seed: int = 0) -> Path:
    """Write the model of a recipe, with an SPM vocabulary."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, recipe.architecture)
    writer.add_name("tiny")
    keys: dict[str, Value] = {
        "context_length": 512, "embedding_length": recipe.n_embd, "feed_forward_length": FEED,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": HEAD, "vocab_size": VOCABULARY, **recipe.keys,
        "block_count": recipe.layers,
    }  # fmt: skip
    for key, value in keys.items():
        name = f"{recipe.architecture}.{key}"
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, [bool(one) for one in value])
    tiny.add_vocabulary(writer, VOCABULARY)

    def add(name: str, dimensions: Dimensions) -> None:
        values = random.standard_normal(dimensions[::-1], dtype=np.float32)
        last = name.removesuffix(".bias").rpartition(".")[2]
        if last.startswith("rope_"):
            values = np.linspace(1.0, 4.0, dimensions[0], dtype=np.float32)
            values *= 1 + ("long" in last)
        elif last.endswith("norm") and not name.endswith(".bias"):
            values = 1 + np.float32(0.1) * values
        elif len(dimensions) > 1 and (recipe.tied or last != "token_embd"):
            values *= np.float32(dimensions[0] ** -0.5)
        writer.add_tensor(name if name.endswith(".bias") else f"{name}.weight", values)

    add("token_embd", (recipe.n_embd, VOCABULARY))
    add("output_norm", (recipe.n_embd,))
    if not recipe.tied:
        add("output", (recipe.n_embd, VOCABULARY))
    for name, dimensions in recipe.outside.items():
        add(name, dimensions)
    for layer in range(recipe.layers):
        for name, dimensions in recipe.of_layer(layer).items():
            add(f"blk.{layer}.{name}", dimensions)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
