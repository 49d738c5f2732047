"""Each entry of the catalogue is plausible, and is what its makers publish."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engine.architectures import ARCHITECTURES
from agent.engine.cuttable import CutRule, check_cuttable, cut_rule
from agent.engine.gguf_file import GgufFile
from agent.errors import UsageError
from agent.models import bundled, catalogue, shapes
from agent.models.catalogue import Described, Entry
from agent.models.wanted import parse

ENTRIES = [pytest.param(entry, id=entry.name) for entry in catalogue.entries()]
# What another system lists: a name here, and its quantisations.
EXPECTED = {
    "deepseek-v3.1": {"Q4_K_M", "Q8_0"}, "kimi-k2-thinking": set(), "kimi-k2-instruct": set(),
    "llama-3.3-70b": {"Q4_K_M", "Q8_0", "F16"}, "llama-3.1-8b": set(), "llama-3.1-70b": set(),
    "llama-3.2-1b": {"Q4_K_M", "Q8_0"}, "llama-3.2-3b": {"Q4_K_M", "Q8_0"},
    "qwen3-235b": {"Q4_K_M", "Q8_0"}, "qwen3-coder-480b": {"Q4_K_M", "Q8_0"},
    "qwen3-30b": {"Q4_K_M", "Q8_0"}, "qwen3-0.6b": {"Q4_K_M", "Q8_0"},
    "phi-3-mini-128k": set(), "granite-3.3-2b": set(), "covey-mini": {"F16"},
}  # fmt: skip


def test_all_that_others_list_is_there() -> None:
    found = {entry.name: {f.quantisation for f in entry.files} for entry in catalogue.entries()}
    assert len(found) == len(catalogue.entries()), "two of one name"
    assert {name for name, wanted in EXPECTED.items() if not wanted <= found.get(name, set())} == (
        set()
    )
    assert EXPECTED.keys() <= found.keys()


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_plausible(entry: Entry) -> None:
    shape = entry.shape
    computed = shapes.parameters(entry.architecture, shape)
    assert computed == pytest.approx(entry.parameters, rel=0.02)
    assert 1 <= shape.layers <= 200
    assert 512 <= shape.context <= 2**20
    assert shape.heads % shape.kv_heads == 0
    assert bool(shape.experts) == bool(shape.expert_feed_forward) == bool(shape.experts_used)
    assert len({file.quantisation for file in entry.files}) == len(entry.files)
    for file in entry.files:
        size = catalogue.file_bytes(entry, file)
        assert 4 < 8 * size / computed < 20, "bits a weight"
        if entry.name != bundled.NAME:
            hub = r"hf:[\w.-]+/[\w.-]+(/[\w.-]+){1,2}\.gguf"
            assert re.fullmatch(hub, file.source)
        assert (file.parts > 1) == ("-00001-of-" in file.source)


@pytest.mark.parametrize("entry", ENTRIES)
def test_where_it_may_be_cut_goes_by_what_is_proved(entry: Entry) -> None:
    cuts = catalogue.cuts(entry)
    known = ARCHITECTURES[entry.architecture]
    keys = {key.partition(".")[2] for key in Described(entry).values}
    assert keys <= known.keys | known.leading | {"attention.sliding_window"}
    if entry.name == "gemma-3-27b":
        assert "scales the attention of gemma3" in str(cuts)
    else:
        assert isinstance(cuts, CutRule)
        assert cuts.allows(0, 6), "with a layer that has a window, where there are any"


def test_parts_of_barred_lengths_and_windows_are_known() -> None:
    deepseek = catalogue.cuts(catalogue.find("deepseek-v3.1"))
    assert isinstance(deepseek, CutRule)
    assert deepseek.barred_lengths == {26, 27, 48}
    gemma = catalogue.cuts(catalogue.find("gemma-3-4b"))
    assert isinstance(gemma, CutRule)
    assert gemma.windows[:7] == (True, True, True, True, True, False, True)
    assert not gemma.allows(5, 6)


def test_the_bundled_models_entry_says_what_its_file_says() -> None:
    entry = catalogue.find(bundled.NAME)
    with GgufFile(bundled.path()) as file:
        right = file.facts()
        check_cuttable(file)
        assert catalogue.cuts(entry) == cut_rule(file)
        values = {key: file.number(key) for key in Described(entry).values if key in file.fields}
    assert values.items() <= Described(entry).values.items()
    assert entry.files[0].bytes == bundled.path().stat().st_size
    found = catalogue.facts(entry, entry.files[0])
    assert replace(found, chat_template=right.chat_template) == right


def test_a_name_is_found_in_any_case_and_one_that_is_none_says_what_is_alike() -> None:
    assert catalogue.find("Qwen3-4B").title == "Qwen3 4B"
    with pytest.raises(UsageError, match="no model 'llama-3") as caught:
        catalogue.find("llama-3.2")
    assert caught.value.hint == "There are llama-3.2-3b, llama-3.2-1b."
    with pytest.raises(UsageError, match="no model ''"):
        catalogue.find("")


def test_the_data_is_packaged() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"agent.models" = ["*.toml"]' in project


def test_a_name_stands_for_a_file_of_the_hub() -> None:
    source, name = catalogue.source_of("Qwen3-4B")
    assert source.startswith("hf:")
    assert name.startswith("qwen3-4b-q")
    other, named = catalogue.source_of("llama-3.2-1b:q8_0")
    assert other != catalogue.source_of("llama-3.2-1b")[0]
    assert named == "llama-3.2-1b-q8_0"
    for text in ("covey-mini", "/models/qwen3-4b", "hf:a/b/c.gguf", "deadbeef", ""):
        assert catalogue.source_of(text) == (text, "")
    with pytest.raises(UsageError, match="no 'q1' of qwen3-4b"):
        catalogue.source_of("qwen3-4b:q1")
    split = next(e for e in catalogue.entries() if e.files[0].parts > 1)
    source, name = catalogue.source_of(split.name)
    assert source == split.files[0].source
    wanted = parse(source, name, "", "https://hub.example", ())
    assert len(wanted.locations()) == split.files[0].parts
    assert wanted.name == name
