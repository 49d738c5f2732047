"""How long a prefix is kept: until it has cost what it could save."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from agent.engine.kept import Kept, KeptSequences, patience
from agent.engine.llama import Weights


def kept(number: int) -> Kept:
    return Kept(number, np.arange(20, dtype=np.int32))


def test_the_one_that_was_not_used_for_longest_goes_first_and_in_its_time() -> None:
    found = KeptSequences(200)  # a half of which counts before anything is known
    one, other = kept(1), kept(2)
    found.add(one)
    found.computed(60)
    found.add(other)
    found.computed(39)
    assert found.overdue() is None
    found.computed(1)
    assert found.overdue() is one
    found.remove(one)
    assert found.overdue() is None
    found.computed(47)
    assert found.overdue() is None
    found.computed(1)
    assert found.overdue() is other


def test_where_hardly_any_is_used_the_others_go_sooner_in_proportion() -> None:
    found = KeptSequences(1000)
    for number in range(100):
        found.add(kept(number))
        found.remove(next(iter(found)))
    found.add(kept(100))
    found.computed(62)
    assert found.overdue() is None
    found.computed(1)
    assert found.overdue() is not None
    for number in range(100):
        found.add(kept(number))
        found.use(last := list(found)[-1])
        found.remove(last)
    found.computed(930)  # 993 since the one from before came
    assert found.overdue() is None
    found.computed(10)
    assert found.overdue() is next(iter(found))


def test_a_use_makes_one_the_newest() -> None:
    found = KeptSequences(100)
    one, other = kept(1), kept(2)
    found.add(one)
    found.add(other)
    found.computed(60)
    found.use(one)
    found.computed(60)
    assert list(found) == [other, one]
    assert found.overdue() is other


def test_without_a_bound_all_stay() -> None:
    found = KeptSequences()
    found.add(kept(1))
    found.computed(10**9)
    assert found.overdue() is None


@pytest.mark.parametrize(
    ("layer_weights", "n_embd", "flash_attention", "rows"),
    [
        (13.6e6, 1024, False, 1660),
        (202e6, 4096, False, 6164),
        (202e6, 4096, True, 35225),
        (0.0, 64, True, 1),
    ],
)
def test_larger_layers_make_a_token_dearer_to_compute_anew(
    layer_weights: float, n_embd: int, flash_attention: bool, rows: int
) -> None:
    found = patience(layer_weights, n_embd, flash_attention=flash_attention)
    assert found == pytest.approx(rows, rel=0.01)


def test_the_weights_of_a_layer_are_those_of_the_file(models: Callable[..., Path]) -> None:
    path = models()
    layers = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.")]
    count = sum(math.prod(int(size) for size in tensor.shape) for tensor in layers)
    weights = Weights(path)
    try:
        # The output's matrix and the last norm are counted too.
        own = weights.n_vocab * weights.n_embd + weights.n_embd
        assert count <= weights.layer_weights * weights.layers <= count + own
    finally:
        weights.close()
