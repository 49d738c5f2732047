"""Updates, bad updates and resets, with the power cut at any step: it always comes up again.

The disk is two blocks that a write may tear, two slots, and a data partition. What is in a slot may
be whole, half written, panic, or run and never be healthy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.errors import StateError
from image.node.slotblocks import decode, following, fresh, latest, repair
from image.node.slots import (
    SLOTS,
    Back,
    Event,
    GaveUp,
    Good,
    Healthy,
    ResetDone,
    ResetWanted,
    Slot,
    State,
    Writing,
    Written,
    apply,
    boot,
    other,
)

SECTOR = 512
Content = Literal["healthy", "sick", "panics", "half", "nothing"]
Tear = Callable[[bytes, bytes], bytes]


def noise(old: bytes, new: bytes) -> bytes:
    return (hashlib.sha512(old + new).digest() * 8)[:SECTOR]


@st.composite
def sector_tears(draw: st.DrawFn) -> Tear:
    """What a sector may be after the power was cut in a write of it."""
    cut = draw(st.integers(0, SECTOR))
    return draw(
        st.sampled_from(
            [
                lambda old, new: old,
                lambda old, new: new,
                lambda old, new: new[:cut] + old[cut:],
                lambda old, new: old[:cut] + new[cut:],
                lambda old, new: new[:cut] + bytes(SECTOR - cut),
                lambda old, new: new[:cut] + b"\xff" * (SECTOR - cut),
                noise,
            ]
        )
    )


@st.composite
def tears(draw: st.DrawFn) -> Tear:
    if draw(st.integers(0, 9)) == 0:
        return lambda old, new: b""  # neither sector can be read any more
    first, second = draw(sector_tears()), draw(sector_tears())

    def torn(old: bytes, new: bytes) -> bytes:
        old = old or bytes(2 * SECTOR)
        return first(old[:SECTOR], new[:SECTOR]) + second(old[SECTOR:], new[SECTOR:])

    return torn


# After how many steps the power is cut (0: in the first), and how that tears a write.
CUTS = st.none() | st.tuples(st.integers(0, 6), tears())
Cut = tuple[int, Tear] | None


class PowerCut(Exception):
    pass


class Appliance(RuleBasedStateMachine):
    """A machine that somebody updates while somebody else plays with the plug."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = list(fresh(State()))
        self.content: dict[Slot, Content] = {"a": "healthy", "b": "nothing"}
        self.data = "used"
        self.reset_wanted = False
        self.running: Slot = "a"
        self.cut: Cut = None

    def state(self) -> State:
        return latest((self.blocks[0], self.blocks[1])).state

    def step(self) -> bool:
        """Count one step; say whether the power goes in it."""
        if self.cut is None:
            return False
        left, tear = self.cut
        self.cut = (left - 1, tear)
        return left == 0

    def store(self, state: State) -> None:
        if state == self.state():
            return
        self.write(*following(latest((self.blocks[0], self.blocks[1])), state))

    def write(self, index: int, block: bytes) -> None:
        if self.step():
            assert self.cut
            self.blocks[index] = self.cut[1](self.blocks[index], block)
            raise PowerCut
        self.blocks[index] = block

    def happens(self, event: Event) -> None:
        self.store(apply(self.state(), event))

    def until_power_cut(self, steps: Iterator[None], cut: Cut) -> None:
        """Do some steps, then start the machine, again and again until it stays up."""
        self.cut = cut
        try:
            for _ in steps:
                if self.step():
                    raise PowerCut
        except PowerCut:
            self.cut = None
        self.start_until_it_stays_up()

    def start_until_it_stays_up(self) -> None:
        for _ in range(8):
            try:
                if self.start():
                    return
            except PowerCut:
                self.cut = None
        raise AssertionError(f"it never comes up: {self.state()}, {self.content}")

    def start(self) -> bool:
        """Boot once; say whether it came up and stayed healthy."""
        before = self.state()
        readable = {slot for slot in SLOTS if self.content[slot] != "nothing"}
        after, slot = boot(before, readable)
        assert slot is not None, (before, self.content)
        self.store(after)
        self.running = slot
        assert self.content[slot] != "half", "a half-written slot was booted"
        if self.content[slot] == "panics":
            return False
        mended = repair((self.blocks[0], self.blocks[1]))
        if mended:
            self.write(*mended)
        if after.reset:
            self.data = "half emptied"
            if self.step():
                raise PowerCut
            self.data = "empty"
            self.happens(ResetDone())
        if self.content[slot] == "sick":
            self.happens(GaveUp(slot))
            return False
        self.happens(Healthy(slot))
        if self.reset_wanted:
            assert self.data == "empty"
            self.reset_wanted = False
        assert self.data != "half emptied"
        self.data = "used"
        return True

    @rule(content=st.sampled_from(["healthy", "sick", "panics", "nothing"]), cut=CUTS)
    def update(self, content: Content, cut: Cut) -> None:
        def steps() -> Iterator[None]:
            target = other(self.running)
            self.happens(Writing(self.running))
            yield
            self.content[target] = "half"
            yield
            self.content[target] = content
            yield
            self.happens(Written(self.running))

        self.until_power_cut(steps(), cut)
        if cut is None:
            assert (self.content[self.running] == "healthy") and (
                content != "healthy" or self.state().first == self.running
            )

    @rule(cut=CUTS)
    def restart(self, cut: Cut) -> None:
        """The power may also go while it starts: in the boot loader's write, or the agent's."""
        self.cut = cut
        self.start_until_it_stays_up()

    @rule(cut=CUTS)
    def reset(self, cut: Cut) -> None:
        def steps() -> Iterator[None]:
            self.happens(ResetWanted())
            self.reset_wanted = True
            yield

        self.until_power_cut(steps(), cut)

    @rule(cut=CUTS)
    def back(self, cut: Cut) -> None:
        def steps() -> Iterator[None]:
            self.happens(Back(self.running))
            yield

        if self.state().of(other(self.running)) == Good():
            self.until_power_cut(steps(), cut)

    @invariant()
    def what_is_good_is_healthy(self) -> None:
        for slot in SLOTS:
            if self.state().of(slot) == Good():
                assert self.content[slot] == "healthy"

    @invariant()
    def at_least_one_block_is_whole(self) -> None:
        whole = 0
        for block in self.blocks:
            try:
                decode(block)
            except StateError:
                continue
            whole += 1
        assert whole

    @invariant()
    def it_runs_healthy(self) -> None:
        assert self.content[self.running] == "healthy"


Appliance.TestCase.settings = settings(max_examples=150, stateful_step_count=12, deadline=None)
TestAppliance = Appliance.TestCase
