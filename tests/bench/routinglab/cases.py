"""The situations of the bench: replicas, traffic, and what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from routinglab.replica import Law, Server
from routinglab.requests import Traffic


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with a replica for a while: it refuses, or its speed is another."""

    replica: int
    begins: float
    ends: float
    speed: float = 1.0
    refusing: bool = False

    def begin(self, server: Server, now: float) -> None:
        server.refusing = self.refusing
        server.set_speed(self.speed, now)

    def end(self, server: Server, now: float) -> None:
        server.refusing = False
        server.set_speed(1.0, now)


@dataclass(frozen=True)
class Case:
    """A situation of so many seconds."""

    name: str
    laws: Sequence[Law]
    traffic: Traffic
    troubles: Sequence[Trouble] = ()
    seconds: float = 120.0
    gateways: int = 1


_ONE = Law()
_ALIKE = [_ONE] * 4
_SPEEDS = [_ONE, _ONE.slower(1.3), _ONE.slower(2), _ONE.slower(4), _ONE.slower(8)]
_TALKS = Traffic(8.0, 500.0, 80.0, going_on=0.6, beginnings=12, beginning_tokens=1500)

CASES = (
    Case("alike", _ALIKE, Traffic(7.0)),
    Case("speeds", _SPEEDS, Traffic(4.5)),
    Case("prefixes", _ALIKE, _TALKS),
    Case("bursts", _SPEEDS, Traffic(3.0, burst=4.0)),
    Case("refusing", _ALIKE, Traffic(5.5), [Trouble(1, 30.0, 80.0, refusing=True)]),
    Case("slow", _ALIKE, Traffic(5.5), [Trouble(1, 30.0, 80.0, speed=0.1)]),
    Case("stalled", _ALIKE, Traffic(5.5), [Trouble(1, 30.0, 50.0, speed=0.0)]),
    Case(
        "all at once", _SPEEDS,
        Traffic(3.5, 400.0, 80.0, going_on=0.5, beginnings=8, burst=3.0),
        [Trouble(1, 25.0, 45.0, speed=0.1), Trouble(2, 60.0, 80.0, refusing=True)],
    ),
    Case("three gateways", _SPEEDS, Traffic(4.5), gateways=3),
)  # fmt: skip
# For --case only. More than all of them can do, and no admission queue as a gateway has: no choice
# makes that good, but nothing that is sent twice may make it worse.
EXTRA = (Case("too much", _SPEEDS, Traffic(9.0), seconds=60.0),)
