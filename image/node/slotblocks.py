"""The slots' state in two of GRUB's blocks, so that a power cut leaves one of them whole. A core.

Each write goes to the block that does not count, so what counted before still does if the write
never ends. GRUB's script language cannot calculate; what it can do is compare words and look up
the next of three. So:

    serial   0, 1, 2, 0, …: of two whole blocks the one whose serial follows the other's counts
    first    a or b
    slot_a   g good · 3 2 1 0 on trial, tries left · e empty · bad: t tries, u unreadable,
    slot_b     h not healthy
    reset    y or n
    check    all of these in one word: it stands last, so half a write leaves it another one

All of it is in the block's first 512 bytes; the second half never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import StateError
from image.node import envblock
from image.node.slots import SLOTS, Bad, Empty, Good, Standing, State, Trial

FILES = ("slots0.env", "slots1.env")
_SERIALS = "012"
_LETTERS: dict[Standing, str] = {
    Good(): "g",
    Empty(): "e",
    Bad("tries"): "t",
    Bad("unreadable"): "u",
    Bad("unhealthy"): "h",
    **{Trial(left): str(left) for left in range(4)},
}
_STANDINGS = {letter: standing for standing, letter in _LETTERS.items()}
NAMES = ("serial", "first", "slot_a", "slot_b", "reset", "check")


@dataclass(frozen=True)
class Stored:
    """What counts: the state, its serial, and which block (0 or 1) it is in."""

    state: State
    serial: int
    index: int


def encode(state: State, serial: int) -> bytes:
    """Return the block (1,024 bytes) with a state; `serial` is 0, 1 or 2."""
    words = (
        _SERIALS[serial],
        state.first,
        _LETTERS[state.a],
        _LETTERS[state.b],
        "y" if state.reset else "n",
    )
    return envblock.encode(dict(zip(NAMES, (*words, "".join(words)), strict=True)))


def decode(block: bytes) -> tuple[State, int]:
    """Return a block's state and serial; raises StateError unless the block is whole."""
    values = envblock.decode(block)
    words = [values.get(name, "") for name in NAMES]
    serial, first, a, b, reset, check = words
    known = (
        serial in ("0", "1", "2") and a in _STANDINGS and b in _STANDINGS and reset in ("y", "n")
    )
    slot = next((slot for slot in SLOTS if slot == first), None)
    if not known or slot is None or check != "".join(words[:-1]):
        raise StateError("the block of the slots' state was not written to its end")
    return State(slot, _STANDINGS[a], _STANDINGS[b], reset == "y"), int(serial)


def latest(blocks: tuple[bytes, bytes]) -> Stored:
    """Return what counts of both blocks; raises StateError when neither is whole.

    A block that cannot be read is b"".
    """
    found: list[Stored] = []
    for index, block in enumerate(blocks):
        try:
            found.append(Stored(*decode(block), index))
        except StateError:
            continue
    if not found:
        raise StateError("neither copy of the slots' state is whole", hint="Flash the disk again.")
    if len(found) == 2 and found[1].serial == _following(found[0].serial):
        return found[1]
    return found[0]


def fresh(state: State) -> tuple[bytes, bytes]:
    """Return both blocks for a disk that was never written to; the first one counts."""
    return encode(state, 1), encode(state, 0)


def repair(blocks: tuple[bytes, bytes]) -> tuple[int, bytes] | None:
    """Return the write after which both blocks are whole again; None where they are.

    GRUB writes only into a block whose beginning it knows. Raises StateError when neither is whole.
    """
    stored = latest(blocks)
    try:
        decode(blocks[1 - stored.index])
    except StateError:
        return following(stored, stored.state)
    return None


def following(stored: Stored, state: State) -> tuple[int, bytes]:
    """Return the write that makes `state` count: which block, and its bytes."""
    return 1 - stored.index, encode(state, _following(stored.serial))


def _following(serial: int) -> int:
    return (serial + 1) % len(_SERIALS)
