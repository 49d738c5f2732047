"""The state is changed in its place, and only by what changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import StateError
from image.node import slotblocks
from image.node.slots import GaveUp, Good, Healthy, ResetDone, State, Trial
from image.node.slotstore import SlotStore


def store(folder: Path, state: State) -> SlotStore:
    for name, block in zip(slotblocks.FILES, slotblocks.fresh(state), strict=True):
        (folder / name).write_bytes(block)
    return SlotStore(folder)


def test_a_change_is_there_after_it_and_keeps_the_files(tmp_path: Path) -> None:
    slots = store(tmp_path, State(reset=True))
    before = [(tmp_path / name).stat().st_ino for name in slotblocks.FILES]
    assert slots.change(ResetDone()) == State()
    assert SlotStore(tmp_path).read().state == State()
    assert [(tmp_path / name).stat().st_ino for name in slotblocks.FILES] == before


def test_what_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    slots = store(tmp_path, State())
    before = [(tmp_path / name).read_bytes() for name in slotblocks.FILES]
    slots.change(ResetDone())
    slots.change(GaveUp("a"))
    assert [(tmp_path / name).read_bytes() for name in slotblocks.FILES] == before


def test_one_block_is_enough_and_repair_makes_two(tmp_path: Path) -> None:
    slots = store(tmp_path, State(a=Trial(2), b=Good()))
    (tmp_path / slotblocks.FILES[1]).unlink()
    assert slots.repair()
    assert not slots.repair()
    slots.change(Healthy("a"))
    assert slots.read().state == State(a=Good(), b=Good())


def test_without_any_block_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="neither copy"):
        SlotStore(tmp_path).read()
