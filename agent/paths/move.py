"""Setting WireGuard's endpoint for a peer so that it stays. A core.

    event                                    what happens
    -----                                    ------------
    the first path is to be used             set it; where the peer begins WireGuard's handshake,
                                              when that has come, or after some time
    another path is to be used               set it; hold what still comes by the old one, unless
                                              that is dead, for HOLD_S
    INSIST_S after that                      set it again
    WireGuard roamed, and should not have    the same as for a move, each AGAIN_S at most

WireGuard takes for the peer's endpoint whatever its last packet came from. Two ends that move while
packets flow would pull each other back (`outputs.HoldEndpoint`).
"""

from __future__ import annotations

from agent.identity.keys import NodeId
from agent.paths.messages import Place
from agent.paths.outputs import HoldEndpoint, ReleaseEndpoint, SetEndpoint
from agent.paths.own import Own
from agent.paths.path import Path

# An RTT of the old path, and what the other side needs to move as well.
HOLD_S = 1.5
# Where the shell cannot hold, the endpoint set again when the old packets have passed may help.
INSIST_S = (0.1, 0.5, 1.0)
AGAIN_S = 2.0
_NEVER = float("inf")
_LONG_AGO = float("-inf")


class Mover:
    """The endpoint of one peer."""

    def __init__(self, peer: NodeId, own: Own) -> None:
        self._peer = peer
        self._own = own
        self._path: Path | None = None
        self._set_at = _LONG_AGO
        self._insisted = len(INSIST_S)
        self._held: Place | None = None
        self._held_until = _NEVER
        self._begin_at = _NEVER

    @property
    def wake_at(self) -> float:
        """When `tick` has something to do."""
        return min(self._insist_at, self._held_until, self._begin_at)

    def move(self, old: Path | None, new: Path, now: float, *, wait_s: float = 0.0) -> None:
        """Use another path; after the first, nothing can pull WireGuard back.

        `wait_s`: WireGuard gets none before, unless it hears the peer.
        """
        first = self._path is None
        self._path = new
        if wait_s or self._begin_at < _NEVER:
            self._begin_at = min(self._begin_at, now + wait_s)
            return
        if first:
            self._begin(now)
        else:
            self._set(old.place if old is not None and not old.failed else None, now)

    def begun(self, now: float) -> None:
        """WireGuard hears the peer: nothing is waited for any more."""
        if self._begin_at < _NEVER:
            self._begin_at = now

    def again(self, roamed_to: Place, now: float) -> None:
        """WireGuard went there, and the path in use is sound: bring it back."""
        if now - self._set_at >= AGAIN_S:
            self._set(roamed_to, now)

    def tick(self, now: float) -> None:
        """Do what is due."""
        if now >= self._begin_at:
            self._begin_at = _NEVER
            self._begin(now)
        if now >= self._held_until:
            self.close()
        if now >= self._insist_at:
            self._insisted += 1
            self._emit()

    def close(self) -> None:
        """Hold nothing any more."""
        if self._held is not None:
            self._own.out(ReleaseEndpoint(self._peer, self._held))
        self._held, self._held_until = None, _NEVER

    def _begin(self, now: float) -> None:
        """Set the first path: there is none to which anything could pull WireGuard back."""
        self._set(None, now)
        self._insisted = len(INSIST_S)

    def _set(self, hold: Place | None, now: float) -> None:
        self.close()
        if hold is not None and self._path is not None:
            self._held, self._held_until = hold, now + HOLD_S
            self._own.out(HoldEndpoint(self._peer, hold, self._path.place))
        self._set_at, self._insisted = now, 0
        self._emit()

    def _emit(self) -> None:
        if self._path is not None:
            self._own.out(SetEndpoint(self._peer, self._path.place, self._path.relay))

    @property
    def _insist_at(self) -> float:
        return self._set_at + INSIST_S[self._insisted] if self._insisted < len(INSIST_S) else _NEVER
