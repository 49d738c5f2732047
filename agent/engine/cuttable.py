"""May a model be cut, and where: by its architecture, its metadata and its tensors.

For `cut.py`, which refuses to write anything else, and for whoever plans a ring. What is known of
each architecture stands in `architectures.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.engine.architectures import (
    ARCHITECTURES,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    Metadata,
)
from agent.engine.gguf_file import GgufFile
from agent.engine.gguf_header import Field
from agent.errors import ModelError

_HINT_WHOLE = "It can run whole on one node."

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
# Tensors outside of layers that every part gets: llama.cpp reads them from each part's file.
SHARED_TENSORS = frozenset(
    {
        "output_norm.weight",
        "output_norm.bias",
        "rope_freqs.weight",
        "rope_factors_long.weight",
        "rope_factors_short.weight",
    }
)
# Those that only a part with the output has.
LAST_TENSORS = frozenset({"output.bias"})


@dataclass(frozen=True)
class CutRule:
    """Where a model may be cut: at multiples of `period` layers, into parts that llama.cpp loads.

    A part must not have one of `barred_lengths`, and needs a layer with a sliding window where the
    model has any (`windows`: which have one; empty where llama.cpp does not tell layers apart).
    """

    period: int = 1
    barred_lengths: frozenset[int] = frozenset()
    windows: tuple[bool, ...] = ()

    def allows(self, start: int, stop: int) -> bool:
        """Whether layers [start, stop) may be a part, their edges apart."""
        windowed = not self.windows or any(self.windows[start:stop])
        return windowed and stop - start not in self.barred_lengths


def cut_rule(model: Metadata) -> CutRule:
    """Return where this model may be cut, if at all: `check_cuttable` says that."""
    known = ARCHITECTURES.get(model.architecture)
    if known is None:
        return CutRule()
    step = known.period_key and model.number(f"{model.architecture}.{known.period_key}")
    period = math.lcm(known.period, step or 1)
    return CutRule(period, known.barred_lengths(model), _windows(model, known))


def _windows(model: Metadata, known: Architecture) -> tuple[bool, ...]:
    """Return which layers have a sliding window: the last of each round (0: none) has none."""
    used = known.always_windows or model.number(f"{model.architecture}.{WINDOW}")
    if not known.window_round or not used:
        return ()
    key = f"{model.architecture}.{WINDOW_PATTERN}"
    if (field := model.fields.get(key)) is not None and field.is_array:
        return tuple(value != 0 for value in model.numbers(field))
    found = model.number(key)
    length = known.window_round if found is None else found
    return tuple(length == 0 or layer % length < length - 1 for layer in range(model.layers))


def check_cuttable(model: GgufFile) -> Architecture:
    """Return how its architecture is cut; ModelError, with the reason, unless that is exact."""
    architecture = model.architecture
    known = ARCHITECTURES.get(architecture)
    if known is None:
        names = ", ".join(sorted(ARCHITECTURES))
        raise _refused(
            model, f"the architecture {architecture} is not proved exact (known: {names})"
        )
    for field in model.fields.values():
        prefix, _, key = field.key.partition(".")
        if prefix == architecture:
            _check_field(model, known, field, key)
    if (why := known.obstacle(model)) is not None:
        raise _refused(model, why)
    _check_tensors(model)
    return known


def check_range(model: GgufFile, start: int, stop: int) -> None:
    """Raise ModelError where the architecture forbids a part of layers [start, stop)."""
    rule = cut_rule(model)
    for edge in (start, stop):
        if edge % rule.period and edge != model.layers:
            raise _refused(
                model,
                f"its layers differ in rounds of {rule.period}, and layer {edge} begins none",
                "Cut it between two rounds.",
            )
    if stop - start in rule.barred_lengths:
        raise _refused(
            model,
            f"llama.cpp takes a {model.architecture} of {stop - start} layers for another model",
            "Cut it into parts of other lengths.",
        )
    if not rule.allows(start, stop):
        raise _refused(
            model,
            f"layers {start} to {stop - 1} have no sliding window, and llama.cpp wants one in each "
            f"{model.architecture}",
            "Cut it into longer parts.",
        )


def _refused(model: GgufFile, why: str, hint: str = _HINT_WHOLE) -> ModelError:
    return ModelError(f"{model.name} cannot be cut: {why}.", hint=hint)


def _check_field(model: GgufFile, known: Architecture, field: Field, key: str) -> None:
    if field.is_array:
        if key != WINDOW_PATTERN or key not in known.keys or field.count != model.layers:
            raise _refused(model, f"{field.key} differs from layer to layer")
    elif key not in known.keys and model.get(field.key) not in (0, 0.0, False, ""):
        raise _refused(model, f"it has {field.key}, with which a cut is not proved exact")


def _check_tensors(model: GgufFile) -> None:
    present: set[int] = set()
    for tensor in model.tensors:
        if tensor.layer is not None:
            present.add(tensor.layer)
        elif tensor.name not in SHARED_TENSORS | LAST_TENSORS | {EMBEDDING, OUTPUT}:
            raise _refused(model, f"it has the tensor {tensor.name}, whose part is not known")
    # No set of all that it says to have: that number is the file's word, and may be any.
    if len(present) != model.layers or not all(0 <= layer < model.layers for layer in present):
        raise _refused(model, f"its tensors do not make up {model.layers} layers")
    if model.tensor(EMBEDDING) is None:
        raise _refused(model, f"it has no {EMBEDDING}")
