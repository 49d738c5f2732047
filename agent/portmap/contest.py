"""Which of the ways holds the mapping: all are probed side by side, one is held. A core.

Ways stand in order: the gateway of the best route first, at each PCP, NAT-PMP, UPnP. Only one is
asked for a mapping at a time, since a gateway that speaks several keeps one table for all: two
mappings of one port would be one, and taking back one would take both. What is held stays held as
long as it works; then all are probed anew. While nothing works, that is a series of probes every
PROBE_INTERVAL_S and no more.

Used by `service.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from agent.portmap.way import State, Way

# A router that was set to allow mappings is noticed within this; a silent one costs some twenty
# small packets each time.
PROBE_INTERVAL_S = 300.0
_JITTER = 0.1
# How long a worse way that is ready waits for a better one's first answer. Gateways are one hop
# away and answer within milliseconds.
PATIENCE_S = 1.0
# Between two series of probes when what was held is lost, or when the network or a gateway calls;
# doubled each time up to PROBE_INTERVAL_S, so nobody has us probe without end. After a series that
# came in its time it is this again.
_FIRST_GAP_S = 10.0


class Contest:
    """The ways of this machine; `step` when the timer says or something came in."""

    def __init__(self, ways: Sequence[Way], rng: Random) -> None:
        self._ways = list(ways)
        self._rng = rng
        self._next_probe_at = math.inf
        self._probed_at = -math.inf
        self._gap = _FIRST_GAP_S
        self._held: Way | None = None

    @property
    def ways(self) -> list[Way]:
        """The ways, best first."""
        return list(self._ways)

    @property
    def held(self) -> Way | None:
        """The way that has the mapping."""
        return self._held

    def replace(self, ways: Sequence[Way], now: float) -> None:
        """Go on with these, of which some may be ways that we had; probe those that can be."""
        self._ways = list(ways)
        self._probe_at(now)
        self.step(now)

    def look_again(self, now: float) -> None:
        """The network changed, or a gateway announced itself: check what is held, or probe."""
        if self._held is not None and self._held in self._ways:
            self._held.look_again(now)
        else:
            self._probe_at(max(now, self._probed_at + self._gap))

    def timer(self) -> float:
        """Return when to call `step`; infinity for never."""
        waits = [way.probed_at + PATIENCE_S for way in self._ways if way.state is State.PROBING]
        waiting = self._any(State.READY) and not self._busy()
        patience = min(waits, default=math.inf) if waiting else math.inf
        return min([way.timer() for way in self._ways] + [self._next_probe_at, patience])

    def step(self, now: float) -> None:
        """Do what is due."""
        for way in self._ways:
            way.tick(now)
        self._note_held(now)
        if self._busy():
            self._next_probe_at = math.inf
            return
        if now >= self._next_probe_at:
            self._probe(now)
        chosen = self._choice(now)
        if chosen is not None:
            chosen.hold(now)
        elif not self._any(State.PROBING) and math.isinf(self._next_probe_at):
            pause = PROBE_INTERVAL_S * (1 + self._rng.uniform(-_JITTER, _JITTER))
            self._probe_at(now + pause)

    def _choice(self, now: float) -> Way | None:
        """Return the best way that is ready, unless a better one may still answer."""
        for way in self._ways:
            if way.state is State.READY:
                return way
            if way.state is State.PROBING and now < way.probed_at + PATIENCE_S:
                return None
        return None

    def _note_held(self, now: float) -> None:
        before = self._held
        self._held = next((way for way in self._ways if way.state is State.MAPPED), None)
        if before is not None and self._held is None:
            self._probe_at(max(now, self._probed_at + self._gap))

    def _probe_at(self, when: float) -> None:
        self._next_probe_at = min(self._next_probe_at, when)

    def _probe(self, now: float) -> None:
        early = now - self._probed_at < PROBE_INTERVAL_S * (1 - _JITTER)
        self._gap = min(self._gap * 2, PROBE_INTERVAL_S) if early else _FIRST_GAP_S
        self._next_probe_at = math.inf
        self._probed_at = now
        for way in self._ways:
            if now >= way.retry_at:
                way.probe(now)

    def _busy(self) -> bool:
        """Say whether one way has the mapping or asks for it."""
        return self._any(State.MAPPED) or self._any(State.ASKING)

    def _any(self, state: State) -> bool:
        return any(way.state is state for way in self._ways)
