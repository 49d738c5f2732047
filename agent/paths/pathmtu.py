"""The MTU of the path that one peer is reached by, and the word of it. A core.

`mtu.py` searches; this sends its probes on the path in use and tells the shell what is new.
"""

from __future__ import annotations

from agent.identity.keys import NodeId
from agent.paths.messages import MtuAnswer
from agent.paths.mtu import MtuSearch
from agent.paths.outputs import MtuFound, SendProbe
from agent.paths.own import Own
from agent.paths.path import Path

# A path is used for a moment before it is searched: it may be left again for a better one.
SEARCH_AFTER_S = 2.0


class PathMtu:
    """The search for one peer."""

    def __init__(self, peer: NodeId, own: Own) -> None:
        self._peer = peer
        self._own = own
        self._search = MtuSearch(own.rng)
        self._told = (0, False)

    @property
    def wake_at(self) -> float:
        """When `tick` has something to do."""
        return self._search.wake_at

    def restart(self, path: Path, now: float) -> None:
        """Another path is in use: the least until more is known."""
        self._search.restart(":" in path.place[0], now + SEARCH_AFTER_S)
        self._tell()

    def flows(self, now: float) -> None:
        """Packets flow to the peer."""
        self._search.flows(now)

    def stop(self) -> None:
        """There is no path."""
        self._search.stop()

    def answered(self, answer: MtuAnswer, now: float) -> None:
        """A probe arrived whole."""
        self._search.arrived(answer.token, answer.size, now)
        self._tell()

    def tick(self, used: Path | None, now: float) -> None:
        """Send what is due."""
        if used is None:
            return
        for probe in self._search.due(now, answering=used.sound(now)):
            self._own.out(SendProbe(self._peer, used.place, probe))
        self._tell()

    def _tell(self) -> None:
        found = (self._search.mtu, self._search.fragmented)
        if found != self._told:
            self._told = found
            self._own.out(MtuFound(self._peer, *found))
