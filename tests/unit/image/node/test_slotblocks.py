"""Two blocks, of which one always counts: codec, order, and every torn write."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from slot_states import STATES

from agent.errors import StateError
from image.node.envblock import BLOCK_BYTES
from image.node.slotblocks import Stored, decode, encode, following, fresh, latest, repair
from image.node.slots import Good, State, Trial

OLD = State("b", Good(), Trial(3))
NEW = State("b", Good(), Trial(2), reset=True)


def test_every_state_is_read_as_it_was_written() -> None:
    for state, serial, reset in product(STATES, range(3), (False, True)):
        assert decode(encode(replace(state, reset=reset), serial)) == (
            replace(state, reset=reset),
            serial,
        )


def test_all_of_it_is_in_the_first_sector() -> None:
    assert len({encode(state, 0)[512:] for state in STATES}) == 1
    assert len({len(encode(state, 0).rstrip(b"#")) for state in STATES}) == 1


def test_the_block_that_follows_counts() -> None:
    for serial in range(3):
        older, newer = encode(OLD, serial), encode(NEW, (serial + 1) % 3)
        assert latest((older, newer)) == Stored(NEW, (serial + 1) % 3, 1)
        assert latest((newer, older)) == Stored(NEW, (serial + 1) % 3, 0)


def test_one_whole_block_is_enough() -> None:
    block = encode(OLD, 2)
    for other in (b"", bytes(BLOCK_BYTES), block[:-1] + b"x", block.replace(b"check", b"chick")):
        assert latest((block, other)) == Stored(OLD, 2, 0)
        assert latest((other, block)) == Stored(OLD, 2, 1)
        with pytest.raises(StateError, match="neither copy"):
            latest((other, b""))


def test_each_change_goes_to_the_block_that_does_not_count() -> None:
    blocks = [encode(STATES[0], 0), b""]
    for state in STATES:
        index, block = following(latest((blocks[0], blocks[1])), state)
        assert latest((blocks[0], blocks[1])).index != index
        blocks[index] = block
        assert latest((blocks[0], blocks[1])).state == state


def test_a_write_that_is_torn_at_any_byte_leaves_the_old_state_or_the_new_one() -> None:
    stored = latest((encode(State(), 0), encode(OLD, 1)))
    index, new = following(stored, NEW)
    old = encode(State(), 0)
    assert index == 0
    for cut in range(BLOCK_BYTES + 1):
        for torn in (new[:cut] + old[cut:], old[:cut] + new[cut:], new[:cut] + bytes(1024 - cut)):
            assert latest((torn, encode(OLD, 1))).state in (OLD, NEW)


def test_a_fresh_disk_has_two_whole_blocks() -> None:
    blocks = fresh(State())
    assert latest(blocks) == Stored(State(), 1, 0)
    assert decode(blocks[1])[0] == State()


def test_a_block_that_is_not_whole_is_written_anew() -> None:
    assert repair(fresh(OLD)) is None
    for damaged in (b"", bytes(BLOCK_BYTES)):
        index, block = repair((damaged, encode(OLD, 1)))
        assert index == 0
        assert latest((block, encode(OLD, 1))) == Stored(OLD, 2, 0)
        assert repair((block, encode(OLD, 1))) is None
        assert repair((encode(OLD, 1), damaged))[0] == 1


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"serial=0", b"serial=3"), (b"first=b", b"first=c"), (b"slot_b=3", b"slot_b=4"),
        (b"slot_a=g", b"slot_a=e"), (b"reset=n", b"reset=y"), (b"check=0bg3n", b"check=0bg2n"),
        (b"check=0bg3n\n", b"############"),
    ],
)  # fmt: skip
def test_a_block_that_does_not_fit_together_is_not_whole(good: bytes, bad: bytes) -> None:
    block = encode(OLD, 0)
    assert good in block
    with pytest.raises(StateError, match="not written to its end"):
        decode(block.replace(good, bad))


def test_a_whole_block_without_a_good_slot_is_refused() -> None:
    block = encode(OLD, 0).replace(b"slot_a=g", b"slot_a=e").replace(b"0bg3n", b"0be3n")
    with pytest.raises(StateError, match="no slot of the disk"):
        decode(block)
