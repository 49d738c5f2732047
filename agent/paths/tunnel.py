"""Whether WireGuard goes on with a peer whose agent says nothing any more. A core.

An agent that was killed answers no ping, but its WireGuard may go on, and then the path in use is
as good as before. Three things say so, and only together:

    the path in use is silent, and what was under way when it fell silent has arrived since
    after that, WireGuard received on it                it is not the machine that is gone
    after that, nothing came from the peer's agent      it is not our own way out alone: an agent
     by any way                                          that lives asks us while we ask it

Such a path is kept for as long as WireGuard receives, by its keepalives at least: without an agent
at the other end there is no other path to be found.
"""

from __future__ import annotations

from agent.paths.messages import Place
from agent.paths.path import Path

# WireGuard's keepalives are 15 s apart, of which one may be lost, and looks 5 s.
RECEIVES_S = 36.0
_LONG_AGO = float("-inf")


class Tunnel:
    """What one peer's WireGuard and agent were heard to do; times in seconds."""

    def __init__(self) -> None:
        self._rx = 0
        self._looked_at = self._agent_at = _LONG_AGO
        self._came_after = self._came_by = _LONG_AGO  # the last bytes came between these
        self._came_from: Place | None = None

    def agent_heard(self, now: float) -> None:
        """Take that something came that only the peer's agent sends."""
        self._agent_at = now

    def seen(self, rx: int, endpoint: Place | None, now: float) -> None:
        """Take how many bytes WireGuard has received from the peer in all, the last from where."""
        if rx > self._rx:
            self._came_after, self._came_by, self._came_from = self._looked_at, now, endpoint
        self._rx, self._looked_at = rx, now

    def goes_on(self, path: Path, now: float) -> bool:
        """Say whether it is the peer's agent alone that is silent on a path."""
        if path.silent_since is None or path.place != self._came_from:
            return False
        arrived_at = path.silent_since + path.timeout_s
        if self._agent_at >= arrived_at or self._came_after < arrived_at:
            return False
        return now - self._came_by <= RECEIVES_S
