"""Finding a way between an easy and a hard NAT by the birthday paradox. A core.

The hard NAT gives each destination another port that nobody can foretell. So its side opens SOCKETS
sockets towards the easy side's one place, which makes as many ports of its NAT open to that place,
and the easy side tries random ports until it hits one: with 200 a second half of the attempts hit
within a second, 97 of 100 within 4.5 s.

    hard side                                  easy side
    ---------                                  ---------
    plain probing did not do it
    StartBirthday, signal "attempt n"     →    Salvo: random ports, no port twice
    a socket hears a ping: provisional    →    that port is the place: ping it until WireGuard's
     pong, AddSnat for that socket's port       own port answers, and only then use it
    HOLD_S over: StopBirthday                  SALVO_S over: given up
    again after a pause that doubles

`pair.py` decides when; here are the numbers, the ports, and the pauses.
"""

from __future__ import annotations

import random

SOCKETS = 256
PROBES_PER_S = 200.0
# 1 - (1 - 256/64512)^1600 = 99.8 %.
SALVO_S = 8.0
# The signal's way, and the answer's, are within the difference.
HOLD_S = 10.0
# An attempt is 1,600 packets, so a NAT that is not as we think is not hammered.
PAUSE_FIRST_S, PAUSE_MAX_S = 5.0, 600.0
_PORTS = range(1024, 65536)
_BATCH_MAX = 20
_NEVER = float("inf")


class Salvo:
    """The easy side's random ports for one attempt."""

    def __init__(self, host: str, rng: random.Random, now: float) -> None:
        self.host = host
        self._rng = rng
        self._tried: set[int] = set()
        self._from = now
        self._sent = 0

    @property
    def wake_at(self) -> float:
        """When the next port is due."""
        return self._from + self._sent / PROBES_PER_S

    def over(self, now: float) -> bool:
        """Say whether the attempt has failed."""
        return now - self._from > SALVO_S

    def due(self, now: float) -> list[int]:
        """Return the ports to ping now; after a pause of the caller _BATCH_MAX, and no burst."""
        owed = int((now - self._from) * PROBES_PER_S) + 1 - self._sent
        if owed > _BATCH_MAX:
            self._sent += owed - _BATCH_MAX
            owed = _BATCH_MAX
        self._sent += max(0, owed)
        return [self._fresh() for _ in range(owed)]

    def _fresh(self) -> int:
        # At most 1,601 of 64,512 are taken, so that a second draw is rare.
        while (port := self._rng.choice(_PORTS)) in self._tried:
            pass
        self._tried.add(port)
        return port


class Pauses:
    """When the hard side may try again: after 5 s, then twice as long each time."""

    def __init__(self) -> None:
        self.attempt = 0
        self._pause_s = PAUSE_FIRST_S
        self._next_at = 0.0

    @property
    def next_at(self) -> float:
        """Before this no attempt is made."""
        return self._next_at

    def begin(self, now: float) -> int:
        """Count an attempt and return its number."""
        self.attempt += 1
        self._next_at = now + HOLD_S + self._pause_s
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        return self.attempt

    def reset(self) -> None:
        """The network is another, or an attempt succeeded: the next may come at once."""
        self._pause_s = PAUSE_FIRST_S
        self._next_at = 0.0


class Turns:
    """How many attempts one node has under way: each costs sockets, or 200 probes a second."""

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._taken: set[object] = set()

    def take(self, who: object) -> bool:
        """Say whether `who` may begin, or goes on."""
        if who not in self._taken and len(self._taken) >= self._most:
            return False
        self._taken.add(who)
        return True

    def give_back(self, who: object) -> None:
        """`who` is done."""
        self._taken.discard(who)
