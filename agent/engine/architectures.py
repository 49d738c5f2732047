"""Which architectures can be cut, where, and what a part must say otherwise than the whole model.

Data for `cuttable.py` (may this model be cut, and where) and `cut.py` (which writes the parts).
A part is a model of its own to llama.cpp, whose graph of each architecture was read for what
depends on a layer's number, on how many layers there are, and on how the first layer gets its
input. Every line is proved by `tests/unit/engine/test_architectures.py`: a ring of parts gives the
bits of the whole model. docs/how-it-works.md has the table for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.engine.gguf_header import Field, Scalar


class Metadata(Protocol):
    """What is asked of a model here: of a file (`GgufFile`), or of an entry of the catalogue."""

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model."""

    @property
    def layers(self) -> int:
        """How many layers it has."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """Its metadata by key."""

    def get(self, key: str) -> Scalar | None:
        """Return a scalar or text; None where it is absent or an array."""

    def number(self, key: str) -> int | None:
        """Return a whole number; None where it is absent."""

    def numbers(self, field: Field) -> tuple[float, ...]:
        """Return the values of an array of numbers."""

    def vocabulary_size(self) -> int:
        """Return how many tokens it knows."""


# Metadata that leaves layers alike, so that a run of them computes the same whatever its number.
# Anything else is refused until it is proved exact.
_COMMON = frozenset(
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
        "attention.layer_norm_epsilon",
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
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
    }
)
_EXPERTS = _COMMON | {
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "expert_weights_scale",
    "expert_weights_norm",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
}
WINDOW = "attention.sliding_window"
WINDOW_PATTERN = "attention.sliding_window_pattern"
_WINDOWS = frozenset({WINDOW, WINDOW_PATTERN, "rope.freq_base_swa"})

_ANYWHERE = "anywhere"
_WINDOWED = "anywhere, if each part of a model with windows has a layer with one"


def _nothing(_: Metadata) -> str | None:
    return None


def _no_lengths(_: Metadata) -> frozenset[int]:
    return frozenset()


def _no_additions(_: Metadata) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """How models of one architecture are cut; keys of metadata stand without the architecture.

    `where` and `refused` say for people where it can be cut and which models can't be.
    `keys` is the metadata known to leave layers alike, or that the fields below take care of.

    * `period`: cuts are at its multiples, times the number under `period_key` (least common
      multiple), where there is one.
    * `window_round`: layers in one round of llama.cpp's own pattern of sliding windows; a part says
      in an array which of its layers have windows, so that it may begin anywhere in the round.
      Models without the key of a window have none, unless `always_windows`.
    * `first_only`: what acts on embeddings, and would act again on the rows that a part gets.
    * `leading`: how many layers from the model's first; a part says how many it still has.
    * `added(model)`: what llama.cpp takes from the number of layers unless the file says it.
    * `barred_lengths(model)`: numbers of layers in which a part would be another kind of model.
    * `needs_output`: llama.cpp wants output.weight in each file, and has no tied one.
    * `rows_enter`: the tensor of the graph that becomes the rows, where a batch of rows would be
      scaled once more (or is refused) by llama.cpp; empty where it is not.
    * `obstacle(model)`: why this model can't be cut; None where it can.
    """

    keys: frozenset[str] = _COMMON
    where: str = _ANYWHERE
    refused: str = ""
    period: int = 1
    period_key: str = ""
    window_round: int = 0
    always_windows: bool = False
    first_only: frozenset[str] = frozenset()
    leading: frozenset[str] = frozenset()
    added: Callable[[Metadata], Mapping[str, int]] = _no_additions
    barred_lengths: Callable[[Metadata], frozenset[int]] = _no_lengths
    needs_output: bool = False
    rows_enter: str = ""
    obstacle: Callable[[Metadata], str | None] = _nothing


def _own(model: Metadata, key: str) -> int:
    return model.number(f"{model.architecture}.{key}") or 0


def _scaled_by_layers(layers: int) -> Callable[[Metadata], str | None]:
    """Gemma's largest model has another attention scale, by which llama.cpp knows it: its layers.

    Smaller models, and those where both scales are the same number, are not concerned.
    """

    def obstacle(model: Metadata) -> str | None:
        heads = _own(model, "attention.head_count")
        head = heads and _own(model, "embedding_length") // heads
        if model.layers < layers or (_own(model, "attention.key_length") or head) == head:
            return None
        return (
            f"llama.cpp scales the attention of {model.architecture} by the number of layers "
            f"({layers} is the 27B model), which a part has fewer of"
        )

    return obstacle


def _normed_by_layers(model: Metadata) -> str | None:
    if model.layers < 64:
        return None
    return (
        "llama.cpp normalises queries and keys of command-r when there are 64 layers or more, "
        "and a part has fewer"
    )


def _ropeless_by_layers(model: Metadata) -> str | None:
    if model.get("llama4.attention.sliding_window") != 0:
        # llama.cpp dies of a scale that nothing uses in a part without a ropeless layer.
        rest = model.layers % 4
        return f"its last {rest} layers have no layer without rope among them" if rest else None
    return "without a window llama.cpp leaves out the rope of the last layer that a file has"


def _deepseek_gating(model: Metadata) -> Mapping[str, int]:
    """Say what llama.cpp would guess: softmax (1), or sigmoid (2) by layers and vocabulary."""
    found = {}
    if not _own(model, "expert_gating_func"):
        glm = model.layers in (47, 48) and model.vocabulary_size() == 154880
        found["expert_gating_func"] = 2 if glm else 1
    # A "lite" model has no such key, and is known by its layers.
    if not _own(model, "attention.q_lora_rank"):
        found["attention.q_lora_rank"] = 0
    return found


def _deepseek_lite_lengths(model: Metadata) -> frozenset[int]:
    """With so many layers a file is a "lite" model, whose rank of queries llama.cpp ignores."""
    return frozenset({26, 27, 48} if _own(model, "attention.q_lora_rank") else ())


_DEEPSEEK2_KEYS = _EXPERTS | {
    "leading_dense_block_count",
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.temperature_scale",
    "attention.temperature_length",
}
_GEMMA2_KEYS = _COMMON | _WINDOWS | {"attn_logit_softcapping", "final_logit_softcapping"}
_GRANITE_KEYS = _EXPERTS | {
    "attention.scale", "embedding_scale", "logit_scale", "residual_scale",
}  # fmt: skip
_LLAMA4_KEYS = _EXPERTS | _WINDOWS | {"interleave_moe_layer_step"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "command-r": Architecture(
        _COMMON | {"logit_scale"}, refused="64 layers or more (Command R+): other norms by number",
        obstacle=_normed_by_layers,
    ),
    "deepseek2": Architecture(
        _DEEPSEEK2_KEYS,
        where="anywhere, but no part of 26, 27 or 48 layers where queries have a low rank",
        refused="with layers for predicting several tokens",
        leading=frozenset({"leading_dense_block_count"}), added=_deepseek_gating,
        barred_lengths=_deepseek_lite_lengths,
    ),
    "gemma2": Architecture(
        _GEMMA2_KEYS, where=_WINDOWED,
        refused="46 layers or more (27B): attention scaled by number",
        window_round=2, always_windows=True, rows_enter="inp_scaled",
        obstacle=_scaled_by_layers(46),
    ),
    "gemma3": Architecture(
        _COMMON | _WINDOWS | {"final_logit_softcapping"}, where=_WINDOWED,
        refused="62 layers or more (27B): attention scaled by number",
        window_round=6, obstacle=_scaled_by_layers(62),
    ),
    "glm4": Architecture(refused="with vision, or layers for predicting several tokens",
                         rows_enter="embd"),
    "gpt-oss": Architecture(
        _EXPERTS | _WINDOWS, where=_WINDOWED, window_round=2, always_windows=True, needs_output=True
    ),
    "granite": Architecture(
        _GRANITE_KEYS, refused="with vision", first_only=frozenset({"embedding_scale"})
    ),
    "llama": Architecture(_EXPERTS),
    "llama4": Architecture(
        _LLAMA4_KEYS, where="at multiples of 4 layers, and of the step of its experts",
        refused="without windows, or not of a multiple of 4 layers", period=4,
        period_key="interleave_moe_layer_step", window_round=4, always_windows=True,
        obstacle=_ropeless_by_layers,
    ),
    "mistral3": Architecture(_EXPERTS | {"attention.temperature_scale"}),
    "olmo2": Architecture(
        _COMMON | _WINDOWS, where=_WINDOWED, window_round=4, needs_output=True
    ),
    "phi3": Architecture(_COMMON | {WINDOW}),
    "qwen2": Architecture(),
    "qwen2moe": Architecture(_EXPERTS, needs_output=True),
    "qwen3": Architecture(refused="that rank texts"),
    "qwen3moe": Architecture(_EXPERTS),
    "starcoder2": Architecture(),
}  # fmt: skip
