"""Split models: their files' names, what is wrong with them, and the same answers as unsplit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import engine_rings as rings
import llama_cpp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_models import split

from agent.engine import cut, splits
from agent.engine.gguf_file import GgufFile
from agent.errors import ModelError

pytestmark = pytest.mark.slow

PROMPT = rings.prompt(40)
COUNT = 12
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/"))


@given(
    NAMES.filter(bool), st.integers(2, splits.MAX_FILES), st.sampled_from(["", ".gguf", ".part"])
)
def test_the_files_of_a_model_are_known_by_each_ones_name(
    prefix: str, count: int, suffix: str
) -> None:
    names = splits.SplitName(prefix, 1, count, suffix).names()
    for number in {1, 2, count}:
        found = splits.parse(names[number - 1])
        assert found == splits.SplitName(prefix, number, count, suffix)
        assert found.names() == names
    path = Path("/models") / f"m{suffix or '.gguf'}"
    files = splits.files(path, count)
    assert all(splits.whole(file) == path for file in files)
    assert splits.siblings(files[-1]) == files


@pytest.mark.parametrize(
    "name",
    ["m.gguf", "m-00001-of-00001.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "",
     "m-1-of-2.gguf", "-00001-of-00002.gguf", "m-00001-of-99999.gguf", "m-00001-of-00002.gguf.x"],
)  # fmt: skip
def test_other_names_are_those_of_whole_models(name: str) -> None:
    assert splits.parse(name) is None
    path = Path("/models/x").with_name(name or "x")
    assert splits.siblings(path) == (path,)
    assert splits.files(path, 1) == (path,)
    assert splits.whole(path) == path


def test_llama_cpp_calls_them_the_same(tmp_path: Path) -> None:
    import ctypes

    room = ctypes.create_string_buffer(4096)
    prefix = str(tmp_path / "a-model.v2")
    llama_cpp.llama_split_path(room, len(room), prefix.encode(), 1, 3)
    assert os.fsdecode(room.value) == str(splits.files(Path(f"{prefix}.gguf"), 3)[1])


@pytest.mark.parametrize(("count", "bare"), [(2, False), (3, False), (3, True)])
def test_a_split_model_says_of_itself_what_the_whole_one_says(
    models: Callable[..., Path], tmp_path: Path, count: int, bare: bool
) -> None:
    path = models()
    files = split(path, tmp_path, count, bare=bare)
    with GgufFile(path) as whole, GgufFile(files[0]) as model:
        assert replace(model.facts(), name="") == replace(whole.facts(), name="")
        assert [part.path for part in model.parts] == files
        assert [(t.name, t.type, t.dimensions, t.size) for t in model.tensors] == [
            (t.name, t.type, t.dimensions, t.size) for t in whole.tensors
        ]
        assert model.header_sha256 != whole.header_sha256


@pytest.mark.parametrize(("count", "bare"), [(2, False), (3, True)])
@pytest.mark.parametrize("boundaries", [(), (5, 9)])
def test_its_answer_is_that_of_the_whole_one_bit_for_bit(
    models: Callable[..., Path], tmp_path: Path, count: int, bare: bool, boundaries: tuple[int, ...]
) -> None:
    path = models()
    expected, expected_logits = rings.reference(path, PROMPT, COUNT)
    first, *_ = split(path, tmp_path, count, bare=bare)
    assert rings.reference(first, PROMPT, COUNT)[0] == expected  # llama.cpp's own reading of it
    with rings.pipeline(first, tmp_path, boundaries) as pipeline:
        tap = rings.Tap(pipeline)
        assert rings.generated(tap, first, PROMPT, COUNT)[0] == expected
        assert all(map(np.array_equal, tap.logits, expected_logits))


def test_its_parts_have_the_tensors_of_the_whole_ones_parts(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    path = models()
    first, *_ = split(path, tmp_path, 3)
    with GgufFile(path) as whole, GgufFile(first) as model:
        for span in ((0, 5), (5, 9), (9, 12)):
            one = cut.write_part(whole, *span, tmp_path / "one")
            other = cut.write_part(model, *span, tmp_path / "other")
            known = one.path.read_bytes().replace(
                whole.header_sha256.encode(), model.header_sha256.encode()
            )
            assert other.path.read_bytes() == known
            assert cut.needed(model, *span) == cut.needed(whole, *span)


def test_what_is_wrong_with_its_files_is_said_in_a_line(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    first, second, third = split(models(), tmp_path, 3)
    kept = {path: path.read_bytes() for path in (first, second, third)}

    def refused(path: Path, words: str) -> None:
        with pytest.raises(ModelError, match=words) as caught:
            GgufFile(path)
        assert "\n" not in caught.value.line()
        assert caught.value.hint
        for one, raw in kept.items():
            one.write_bytes(raw)

    refused(second, f"{second.name} is not the first of the 3 files of a split model")
    second.unlink()
    refused(first, f"{first.name} is one of 3 files, and {second.name} is not beside it")
    third.write_bytes(kept[second])
    refused(first, f"{third.name} does not belong to {first.name}: it does not say .* file 3")
    second.write_bytes(models().read_bytes())
    refused(first, f"{second.name} does not belong to {first.name}")
    third.write_bytes(kept[third][:-200])
    refused(first, f"{third.name} is cut short")
    other = tmp_path / "other"
    other.mkdir()
    third.write_bytes(split(models(layers=6), other, 3)[2].read_bytes())
    refused(first, f"{third.name} does not belong to {first.name}: a tensor of it is in a file")
    third.write_bytes(split(models(layers=13), other, 3)[2].read_bytes())
    refused(first, f"the 3 files of {first.name} have 114 tensors, and it announces 111")
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(kept[first])
    refused(alone, "alone.gguf is one of the 3 files of a split model, and not called so")
