"""Which of the two slots boots, and what becomes of an update. A core.

A slot is one of:

    good           it came up and stayed healthy; at least one slot is good at any time
    trial, N left  an update that may boot N more times (3 at first) to prove itself
    empty          nothing whole is in it: an update is being written
    bad, why       an update that is not booted again

    event          by            does
    boot           boot loader   the first slot that is good or has tries left; a try less before it
    Writing        update        the other slot is empty; only while the running one is good
    Written        update        the other slot is on trial and goes first; it was verified
    Healthy        probation     the running slot's trial ends: good
    GaveUp         probation     after the last try: bad. Before, the next boot counts
    Back           operator      the other slot goes first, if it is good
    ResetWanted    operator      the next start empties the data partition
    ResetDone      first start   it has been emptied

A slot that is good boots without a write, so an ordinary start changes nothing on the disk.
`slotblocks.py` stores the state, `image/boot/slots.cfg` is GRUB's side of it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

from agent.errors import StateError, UsageError

Slot = Literal["a", "b"]
Why = Literal["tries", "unreadable", "unhealthy"]
SLOTS: tuple[Slot, Slot] = get_args(Slot)
TRIES = 3

_WORDS: dict[Why, str] = {
    "tries": f"did not come up in {TRIES} tries",
    "unreadable": "could not be read at boot",
    "unhealthy": f"came up, but did not stay healthy in {TRIES} tries",
}


@dataclass(frozen=True)
class Good:
    """The slot came up once and stayed healthy, or is what the disk was flashed with."""


@dataclass(frozen=True)
class Trial:
    """The slot may boot `left` more times (0 to 3) before it has proved itself."""

    left: int = TRIES


@dataclass(frozen=True)
class Empty:
    """Nothing whole is in the slot."""


@dataclass(frozen=True)
class Bad:
    """The slot is not booted again."""

    why: Why


Standing = Good | Trial | Empty | Bad


@dataclass(frozen=True)
class State:
    """Both slots, which one is asked first, and whether the data partition is to be emptied.

    Raises StateError when no slot is good: no event leads there.
    """

    first: Slot = "a"
    a: Standing = Good()
    b: Standing = Empty()
    reset: bool = False

    def __post_init__(self) -> None:
        """Refuse a state from which nothing boots for certain."""
        if Good() not in (self.a, self.b):
            raise StateError(
                "no slot of the disk holds a version that is known to boot",
                hint="Flash the disk again; what is on the data partition stays if you keep it.",
            )

    def of(self, slot: Slot) -> Standing:
        """Return how a slot stands."""
        return self.a if slot == "a" else self.b

    def but(self, slot: Slot, standing: Standing) -> State:
        """Return the state in which one slot stands otherwise."""
        return replace(self, a=standing) if slot == "a" else replace(self, b=standing)


@dataclass(frozen=True)
class Writing:
    """An update is about to be written to the slot that is not `running`."""

    running: Slot


@dataclass(frozen=True)
class Written:
    """That slot was written, read back, and is what the manifest says."""

    running: Slot


@dataclass(frozen=True)
class Healthy:
    """The running slot was healthy for long enough."""

    running: Slot


@dataclass(frozen=True)
class GaveUp:
    """The running slot did not become healthy in time, and the machine restarts."""

    running: Slot


@dataclass(frozen=True)
class Back:
    """A person wants the version in the slot that is not `running`."""

    running: Slot


@dataclass(frozen=True)
class ResetWanted:
    """A person wants the machine as it was when it was flashed, in its present version."""


@dataclass(frozen=True)
class ResetDone:
    """The data partition is empty and whole."""


Event = Writing | Written | Healthy | GaveUp | Back | ResetWanted | ResetDone


def other(slot: Slot) -> Slot:
    """Return the slot that this one is not."""
    return "b" if slot == "a" else "a"


def apply(state: State, event: Event) -> State:
    """Return the state after an event; raises StateError or UsageError where it may not happen."""
    match event:
        case Writing(running):
            if state.of(running) != Good():
                raise StateError(
                    "the running version has not yet proved itself, and the other slot is the only "
                    "one that is known to boot",
                    hint="Wait until it has been healthy for some minutes, then update.",
                )
            return replace(state, first=running).but(other(running), Empty())
        case Written(running):
            if state.of(other(running)) != Empty():
                raise StateError(f"slot {other(running)} was not being written")
            return replace(state, first=other(running)).but(other(running), Trial())
        case Healthy(running):
            if isinstance(state.of(running), Trial):
                return state.but(running, Good())
            return state
        case GaveUp(running):
            return state.but(running, Bad("unhealthy")) if state.of(running) == Trial(0) else state
        case Back(running):
            if state.of(other(running)) != Good():
                raise UsageError(
                    f"slot {other(running)} holds no version that is known to boot",
                    hint="Update to the version that you want.",
                )
            return replace(state, first=other(running))
        case ResetWanted():
            return replace(state, reset=True)
        case ResetDone():
            return replace(state, reset=False)


def boot(state: State, readable: Collection[Slot] = SLOTS) -> tuple[State, Slot | None]:
    """Return what the boot loader stores, if that is another state, and which slot it boots.

    `readable` are the slots whose kernel it can load; a slot is found out when its turn comes. None
    when none that may boot is readable: then it starts whatever can be read, and stores nothing.
    """
    after = state
    for slot in (state.first, other(state.first)):
        match after.of(slot):
            case Trial(0):
                after = after.but(slot, Bad("tries"))
            case Trial(left) if slot in readable:
                return after.but(slot, Trial(left - 1)), slot
            case Good() if slot in readable:
                return after, slot
            # The last good slot stays one: what could not be read now may be readable next time.
            case Trial() | Good() if after.of(other(slot)) == Good():
                after = after.but(slot, Bad("unreadable"))
    return state, None


def why_not(state: State, running: Slot, version: str = "") -> str:
    """Return why the slot that does not run is bad; "" when it is not.

    `version` is the one in it, "" where that is not known.
    """
    standing = state.of(other(running))
    if not isinstance(standing, Bad):
        return ""
    what = f"version {version}" if version else "the version"
    return (
        f"{what} in slot {other(running)} {_WORDS[standing.why]}; "
        f"this is the one before it, in slot {running}"
    )
