"""Damaged, hostile and sound GGUF files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_architectures as architectures
import tiny_models as tiny
from gguf.constants import GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.gguf_file import GgufFile
from agent.errors import ModelError


def test_facts_of_a_model(models: Callable[..., Path]) -> None:
    with GgufFile(models()) as model:
        facts = model.facts()
        weights = sum(tensor.size for tensor in model.tensors)
    assert (facts.architecture, facts.layers, facts.n_embd) == ("llama", 12, 64)
    assert (facts.n_vocab, facts.context, facts.tied) == (tiny.VOCABULARY, 512, False)
    assert facts.chat_template == tiny.TEMPLATE
    matrix = 64 * tiny.VOCABULARY * 4
    assert facts.embedding_bytes == matrix
    assert facts.output_bytes == matrix + 64 * 4
    assert len(set(facts.layer_bytes)) == 1
    assert sum(facts.layer_bytes) + facts.embedding_bytes + facts.output_bytes == weights
    assert facts.kv_bytes_per_token == 2 * tiny.KV_HEADS * (64 // tiny.HEADS) * 2
    assert facts.attended_per_token == 2 * 64


def test_facts_of_a_tied_model_count_the_embedding_as_output(models: Callable[..., Path]) -> None:
    with GgufFile(models(weight_type="Q8_0", tied=True, rope_freqs=True)) as model:
        facts = model.facts()
    assert facts.tied
    assert facts.output_bytes == facts.embedding_bytes + 64 * 4
    assert facts.shared_bytes == 8 * 4  # the rope factors


def test_the_cache_of_latent_attention_has_no_values(tmp_path: Path) -> None:
    recipe = architectures.RECIPES["deepseek2"]
    with GgufFile(architectures.write(tmp_path / "m.gguf", recipe)) as model:
        assert model.facts().kv_bytes_per_token == (16 + 8) * 2


def test_a_file_cut_short_in_its_tensors_says_which_and_where(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    data = models().read_bytes()
    short = tmp_path / "covey-mini.gguf"
    with GgufFile(models()) as model:
        victim = model.tensor("blk.3.ffn_up.weight")
    assert victim is not None
    short.write_bytes(data[: victim.start + 100])
    with pytest.raises(ModelError) as caught:
        GgufFile(short)
    assert caught.value.message == (
        f"covey-mini.gguf is cut short: tensor blk.3.ffn_up.weight ends at byte "
        f"{victim.start + victim.size}, the file has {victim.start + 100}."
    )


def test_a_file_cut_short_anywhere_in_its_header_says_so(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    data = models().read_bytes()
    with GgufFile(models()) as model:
        end = model.data_start
    path = tmp_path / "short.gguf"
    for length in [4, 7, 8, 20, 24, 30, *range(40, end, 331)]:
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"short.gguf is cut short"):
            GgufFile(path)


def _gguf(version: int = 3, tensors: int = 0, fields: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def _name(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not a GGUF file: it has 0 bytes"),
        (b"PK\x03\x04 something else", "is not a GGUF file: it begins with"),
        (_gguf(version=1), "is GGUF 1"),
        (_gguf(version=99), "is GGUF 99"),
        (b"GGUF\0\0\0\x03" + bytes(16), r"is big-endian \(version 3\)"),
        (_gguf(tensors=1 << 60), "claims 1152921504606846976 tensors"),
        (_gguf(fields=1 << 40), "metadata fields"),
        (_gguf(fields=1, rest=struct.pack("<Q", 1 << 50)), "a field's name claims"),
        (_gguf(fields=1, rest=_name(b"a") + struct.pack("<I", 77)), "unknown type 77"),
        (_gguf(fields=1, rest=_name(b"\xff") + struct.pack("<I", 4)), "not UTF-8"),
        (_gguf(fields=1, rest=_name(b"a") + struct.pack("<IIQ", 9, 8, 1 << 62)), "cut short"),
        (_gguf(fields=1, rest=_name(b"a") + struct.pack("<IIQ", 9, 4, 1 << 62)), "cut short"),
        (_gguf(fields=1, rest=_name(b"a") + struct.pack("<IIQ", 9, 9, 1)), "unknown type 9"),
        (_gguf(fields=1, rest=_name(b"a") + struct.pack("<IQ", 8, 1 << 62)), "cut short"),
        (_gguf(tensors=1, rest=_name(b"t") + struct.pack("<I", 9)), "claims 9 dimensions"),
        (_gguf(tensors=1, rest=_name(b"t") + struct.pack("<IQIQ", 1, 4, 999, 0)), "type 999"),
        (_gguf(tensors=1, rest=_name(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0)), "t is empty"),
        (_gguf(tensors=1, rest=_name(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0)), "rows of 33"),
        (
            _gguf(tensors=1, rest=_name(b"t") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)),
            "tensor t ends at byte",
        ),
        (
            _gguf(fields=1, rest=_name(b"general.alignment") + struct.pack("<II", 4, 24)),
            "its alignment is 24 bytes",
        ),
        (_gguf(), "does not say its architecture"),
    ],
)
def test_what_is_no_sound_gguf_is_refused_in_one_line(
    tmp_path: Path, data: bytes, said: str
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=said) as caught, GgufFile(path) as model:
        model.facts()
    assert caught.value.message.startswith("bad.gguf ")
    assert "\n" not in caught.value.line()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the model .*nothing.gguf: No such file"):
        GgufFile(tmp_path / "nothing.gguf")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_garbled_header_never_ends_in_anything_but_a_model_error(
    models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(models(layers=1).read_bytes())
    path = tmp_path_factory.getbasetemp() / "garbled.gguf"
    at = data.draw(st.integers(0, 9000))
    garbage = data.draw(st.binary(min_size=1, max_size=8))
    whole[at : at + len(garbage)] = garbage
    path.write_bytes(whole)
    try:
        with GgufFile(path) as model:
            model.facts()
    except ModelError as error:
        assert "garbled" in error.message


def test_scalars_arrays_and_texts_are_told_apart(models: Callable[..., Path]) -> None:
    with GgufFile(models()) as model:
        assert model.get("llama.rope.dimension_count") == 16
        assert model.get("tokenizer.ggml.tokens") is None
        assert model.fields["tokenizer.ggml.tokens"].count == tiny.VOCABULARY
        assert model.fields["tokenizer.ggml.tokens"].element == GGUFValueType.STRING
        assert model.get("no.such.key") is None
        with pytest.raises(ModelError, match=r"general.name is not a whole number"):
            model.number("general.name")
