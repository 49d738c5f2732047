"""What a part holds, which models are refused, and that a failed cut leaves nothing behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models as tiny

from agent.engine import cut
from agent.engine.gguf_file import GgufFile
from agent.errors import EnvironmentFault, ModelError


def _tensors(path: Path) -> dict[str, tuple[int, bytes]]:
    """Return type and bytes of every tensor, as llama.cpp's own reader sees them."""
    return {
        tensor.name: (int(tensor.tensor_type), np.ascontiguousarray(tensor.data).tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("properties", [{}, {"weight_type": "Q8_0", "tied": True,
                                              "rope_freqs": True}])  # fmt: skip
def test_parts_together_hold_every_layer_once_and_unchanged(
    models: Callable[..., Path], tmp_path: Path, properties: dict[str, object]
) -> None:
    path = models(**properties)
    source = _tensors(path)
    seen: set[str] = set()
    with GgufFile(path) as model:
        for start, stop in ((0, 3), (3, 7), (7, 12)):
            part = cut.write_part(model, start, stop, tmp_path / "part.gguf")
            data = part.path.read_bytes()
            assert part.size == len(data)
            assert part.sha256 == hashlib.sha256(data).hexdigest()
            found = _tensors(part.path)
            for name, content in found.items():
                if name.startswith("blk."):
                    _, number, rest = name.split(".", 2)
                    original = f"blk.{int(number) + start}.{rest}"
                    seen.add(original)
                    assert content == source[original]
                elif name != "token_embd.weight":
                    assert content == source[name]
            assert "output.weight" not in found
            assert ("rope_freqs.weight" in found) == ("rope_freqs.weight" in source)
            embedding = found["token_embd.weight"][1]
            if start == 0:
                assert embedding == source["token_embd.weight"][1]
            elif stop == 12:
                assert embedding == source.get("output.weight", source["token_embd.weight"])[1]
            else:
                assert embedding == bytes(32 * 64 // 32 * 17)  # the smallest type for 64 columns
    assert seen == {name for name in source if name.startswith("blk.")}


def test_a_part_says_what_it_is(models: Callable[..., Path], tmp_path: Path) -> None:
    with GgufFile(models()) as model:
        middle = cut.write_part(model, 3, 7, tmp_path / "middle.gguf").path
        last = cut.write_part(model, 7, 12, tmp_path / "last.gguf").path
        identity = model.header_sha256
        assert cut.origin(model) is None
    with GgufFile(middle) as part:
        assert cut.origin(part) == cut.CutOrigin(3, 7, 12, identity)
        assert part.layers == 4
        assert part.text("tokenizer.ggml.model") == "none"
        assert "tokenizer.ggml.tokens" not in part.fields
        assert part.number("llama.vocab_size") == cut.DUMMY_VOCABULARY
    with GgufFile(last) as part:
        assert part.fields["tokenizer.ggml.tokens"].count == tiny.VOCABULARY
        assert part.text("tokenizer.chat_template") == tiny.TEMPLATE
        assert part.number("llama.block_count") == 5


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"architecture": "falcon"}, "architecture falcon is not proved exact"),
        ({"extra": lambda w: w.add_uint32("llama.attention.sliding_window", 64)},
         "llama.attention.sliding_window, with which a cut is not proved exact"),
        ({"extra": lambda w: w.add_uint32("llama.nextn_predict_layers", 1)},
         "llama.nextn_predict_layers"),
        ({"extra": lambda w: w.add_array("llama.attention.per_layer", [1] * 12)},
         "differs from layer to layer"),
        ({"extra": lambda w: w.add_tensor("cls.weight", np.ones((2, 64), np.float32))},
         "has the tensor cls.weight"),
    ],
)  # fmt: skip
def test_models_whose_cut_is_not_known_to_be_exact_are_refused(
    tmp_path: Path, properties: dict[str, object], said: str
) -> None:
    path = tiny.write_model(tmp_path / "other.gguf", **properties)  # type: ignore[arg-type]
    with GgufFile(path) as model, pytest.raises(ModelError, match=said) as caught:
        cut.write_part(model, 0, 4, tmp_path / "part.gguf")
    assert caught.value.message.startswith("other.gguf cannot be cut: ")
    assert "whole" in caught.value.hint
    assert not (tmp_path / "part.gguf").exists()


def test_a_setting_that_is_off_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tiny.write_model(
        tmp_path / "m.gguf", extra=lambda w: w.add_uint32("llama.nextn_predict_layers", 0)
    )
    with GgufFile(path) as model:
        cut.check_cuttable(model)


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (3, 3), (5, 4), (-1, 3), (8, 13)])
def test_a_range_that_is_no_part_is_a_mistake_of_the_caller(
    models: Callable[..., Path], tmp_path: Path, start: int, stop: int
) -> None:
    with GgufFile(models()) as model, pytest.raises(ValueError, match="no part of 12 layers"):
        cut.write_part(model, start, stop, tmp_path / "part.gguf")


def test_a_failed_write_leaves_no_file(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "part.gguf"
    with GgufFile(models()) as model:
        with pytest.raises(EnvironmentFault, match=r"cannot write the part .*No such file"):
            cut.write_part(model, 0, 3, tmp_path / "missing" / "part.gguf")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cut.os, "fsync", full)
        with pytest.raises(EnvironmentFault, match="No space left"):
            cut.write_part(model, 0, 3, destination)
    assert list(tmp_path.iterdir()) == []
