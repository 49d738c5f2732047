"""Sizes from shapes: against files of known size, and against a file that is here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.gguf_file import GgufFile
from agent.models import bundled, catalogue, shapes
from agent.models.catalogue import Entry, File
from agent.models.shapes import Shape

KNOWN = [
    pytest.param(entry, file, id=f"{entry.name} {file.quantisation}")
    for entry in catalogue.entries()
    for file in entry.files
    if file.bytes and entry.name != bundled.NAME  # whose header is longer than its vocabulary's
]


@pytest.mark.parametrize(("entry", "file"), KNOWN)
def test_a_file_of_known_size_is_computed_to_half_a_per_cent(entry: Entry, file: File) -> None:
    computed = shapes.file_bytes(entry.architecture, entry.shape, file.quantisation)
    assert computed == pytest.approx(file.bytes, rel=0.005)


def test_the_tensors_of_the_bundled_model_are_those_of_its_file() -> None:
    entry = catalogue.find(bundled.NAME)
    with GgufFile(bundled.path()) as file:
        right = {tensor.name: tensor.dimensions for tensor in file.tensors}
    found = {
        f"blk.{t.layer}.{t.name}.weight" if t.layer is not None else f"{t.name}.weight":
        t.dimensions for t in shapes.tensors(entry.architecture, entry.shape)
    }  # fmt: skip
    assert found == right


LLAMA = Shape(
    layers=8, n_embd=512, heads=8, kv_heads=2, feed_forward=1024, vocabulary=1000, context=2048
)


def test_the_kv_cache_is_that_of_the_heads_or_of_the_latent_row() -> None:
    assert LLAMA.kv_bytes_per_token() == 2 * 2 * (64 + 64)
    assert LLAMA.attended_per_token() == LLAMA.heads * (64 + 64)
    deepseek = catalogue.find("deepseek-v3.1").shape
    assert deepseek.kv_bytes_per_token() == 2 * (512 + 64)
    assert deepseek.attended_per_token() == deepseek.heads * (512 + 64 + 512)


def test_experts_begin_after_the_dense_layers() -> None:
    entry = catalogue.find("deepseek-v3.1")
    names = {
        layer: {t.name for t in shapes.tensors("deepseek2", entry.shape) if t.layer == layer}
        for layer in (2, 3)
    }
    assert "ffn_down" in names[2]
    assert "ffn_down_exps" not in names[2]
    assert {"ffn_down_exps", "ffn_down_shexp", "exp_probs_b.bias"} <= names[3]


def test_rows_that_no_block_of_a_k_quant_fits_get_an_older_type() -> None:
    even = shapes.sizes("llama", LLAMA, "Q4_K_M").layers
    uneven = shapes.sizes("llama", Shape(
        layers=8, n_embd=480, heads=8, kv_heads=2, feed_forward=1024, vocabulary=1000, context=2048
    ), "Q4_K_M").layers  # fmt: skip
    assert uneven[0] > even[0], "fewer values, but in 5.5 and 8.5 bits"


@given(
    layers=st.integers(1, 80), embd=st.integers(1, 16), heads=st.sampled_from((1, 2, 4, 8)),
    vocabulary=st.integers(100, 300_000), tied=st.booleans(),
)  # fmt: skip
def test_sizes_grow_with_the_quantisation_and_parts_make_up_the_whole(
    layers: int, embd: int, heads: int, vocabulary: int, tied: bool
) -> None:
    shape = Shape(
        layers=layers, n_embd=256 * embd, heads=heads, kv_heads=1, feed_forward=512 * embd,
        vocabulary=vocabulary, context=4096, tied=tied,
    )  # fmt: skip
    four, eight, whole = (shapes.sizes("llama", shape, q) for q in ("Q4_K_M", "Q8_0", "F16"))
    assert len(four.layers) == layers
    assert four.total < eight.total < whole.total
    parameters = shapes.parameters("llama", shape)
    assert 2 * parameters <= whole.total <= 4 * parameters
    assert four.total >= parameters // 2
    assert (eight.output < eight.embedding) == tied
