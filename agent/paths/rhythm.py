"""When the paths of one peer are pinged next: keepalives, and haste when one is silent. A core.

path                                    next ping
----                                    ---------
in use, answered, packets flow          ACTIVE_S later
in use, answered, idle                  IDLE_S later
in use, asked                           when its answer is late
in use, silent                          each FAST_S, after a while each SLOW_S; while nothing
                                         flows each CALM_PING_S
in use, we send and nothing comes back  at once
expected to open (birthday)             each EXPECT_S
a relay in reserve                      IDLE_S later; until it answers RELAY_S, a few times
a direct one that worked and failed     each RETRY_S, for a minute
any in a burst                          by the burst
any other                               never
"""

from __future__ import annotations

import random

from agent.paths.path import Path

# NATs forget UDP after 30 s at the earliest that is common (RFC 4787 asks for 120 s; Linux has 30 s
# before the first answer), so that one keepalive may be lost.
IDLE_S = 14.0
# While packets flow a path that went silent has to be left before TCP's repetition 1.4 s after the
# first loss: the next ones are 3.0 and 6.2 s after it, however soon there is a path again.
ACTIVE_S = 0.4
ACTIVE_FOR_S = 10.0
# What flows by itself stays below one of these: keepalives, presence, gossip. Two looks may lie
# close together, with a single message between them.
ACTIVE_BYTES_PER_S, ACTIVE_BYTES = 4000.0, 4000
FAST_S, FAST_FOR_S, SLOW_S = 0.08, 4.0, 2.0
CALM_PING_S = 1.0
EXPECT_S = 0.1
RELAY_S, RELAY_PINGS = 0.25, 10
RETRY_S = 1.5
# WireGuard answers what carries data after 10 s at the latest, most protocols in an RTT.
_SILENT_TX_S = 0.7
# Looks at WireGuard's counters are half a second apart; packets that came before one count so long.
_RECEIVING_S = 0.75
_NEVER = float("inf")
_LONG_AGO = float("-inf")


class Rhythm:
    """The timing of one peer's pings, by the traffic to it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._rx = self._tx = 0
        self._active_at = self._looked_at = _LONG_AGO
        self._received_at = _LONG_AGO  # on the path in use
        self._unanswered_tx_since: float | None = None

    def active(self, now: float) -> bool:
        """Say whether packets flow."""
        return now - self._active_at < ACTIVE_FOR_S

    def receiving(self, now: float) -> bool:
        """Say whether WireGuard received on the path in use within the last second or so."""
        return now - self._received_at < _RECEIVING_S

    def traffic(self, rx: int, tx: int, on_path: bool, now: float) -> None:
        """Take WireGuard's counters; `on_path`: its endpoint is the path in use."""
        received, sent = rx > self._rx, tx > self._tx
        carried = rx - self._rx + tx - self._tx
        if carried >= max(ACTIVE_BYTES, ACTIVE_BYTES_PER_S * (now - self._looked_at)):
            self._active_at = now
        self._rx, self._tx, self._looked_at = rx, tx, now
        if received:
            self._unanswered_tx_since = None
            if on_path:
                self._received_at = now
        elif sent and self._unanswered_tx_since is None:
            self._unanswered_tx_since = now

    def hasten(self, used: Path, now: float) -> float:
        """Return when the path in use is to be pinged at the latest, by the traffic."""
        if used.silent_since is not None:
            return _NEVER
        since = self._unanswered_tx_since
        if since is not None and now - since >= _SILENT_TX_S:
            return max(now, used.answered_at + FAST_S)
        return used.answered_at + ACTIVE_S if self.active(now) else _NEVER

    def after_answer(self, path: Path, in_use: bool, now: float) -> float:
        """Return when a path that just answered is pinged next."""
        if in_use and self.active(now):
            return now + ACTIVE_S
        if in_use or path.relay is not None:
            return now + IDLE_S * self._rng.uniform(0.9, 1.1)
        return _NEVER

    def after_ping(self, path: Path, in_use: bool, now: float) -> float:
        """Return when a path that was just pinged is pinged next, unless it answers."""
        if in_use:
            if not path.suspect(now):
                return now + path.timeout_s
            if not self.active(now):
                return now + CALM_PING_S
            fast = path.silent_for(now) < FAST_FOR_S
            return now + (max(FAST_S, path.rtt or 0.0) if fast else SLOW_S)
        if now < path.provisional_until:
            return now + EXPECT_S
        if path.bursting:
            return path.next_at
        if now < path.retry_until:
            return now + RETRY_S
        if path.relay is not None:
            eager = path.unanswered < RELAY_PINGS
            return now + (RELAY_S if eager else IDLE_S * self._rng.uniform(0.9, 1.1))
        return _NEVER
