"""Who gets in, and how many."""

from __future__ import annotations

from agent.control import gate
from agent.control.gate import Callers, Gate

MEMBER, STRANGER = b"m" * 32, b"s" * 32


def test_members_and_strangers_are_served_what_is_theirs() -> None:
    door = Gate()
    door.serve("/join", strangers=True)
    door.serve("/deploy", strangers=False)
    assert not door.serves(MEMBER, "/deploy")  # nobody is a member before the first list
    door.set_members([MEMBER])
    assert door.serves(MEMBER, "/deploy")
    assert door.serves(MEMBER, "/join")
    assert door.serves(STRANGER, "/join")
    assert not door.serves(STRANGER, "/deploy")
    assert not door.serves(MEMBER, "/unknown")
    door.set_members([])
    assert not door.serves(MEMBER, "/deploy")


def test_strangers_are_bounded_by_address_and_in_all() -> None:
    door = Gate()
    assert not door.admit("192.0.2.1")  # nothing is open for them
    door.serve("/join", strangers=True)
    taken = [door.admit("192.0.2.1") for _ in range(gate.MAX_STRANGERS_PER_ADDRESS + 1)]
    assert taken.count(True) == gate.MAX_STRANGERS_PER_ADDRESS
    assert taken[-1] is False
    others = [door.admit(f"192.0.2.{n}") for n in range(2, 200)]
    assert taken.count(True) + others.count(True) == gate.MAX_STRANGERS
    door.release("192.0.2.1")
    assert door.admit("192.0.2.250")
    for _ in range(gate.MAX_STRANGERS_PER_ADDRESS):
        door.release("192.0.2.1")
    assert "192.0.2.1" not in door._strangers


def test_too_many_callers_cost_the_address_with_the_most() -> None:
    callers = Callers(4)
    assert [callers.enter(n, "a") for n in (1, 2, 3)] == [None] * 3
    assert callers.enter(4, "b") is None
    assert callers.enter(5, "c") == 1
    assert callers.enter(6, "a") == 2
    callers.leave(3)
    callers.leave(99)
    assert callers.enter(7, "b") is None
