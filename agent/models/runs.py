"""The sources of a transfer, their requests, and how fast they are. A core.

Used by `transfer.py`, whose rules change them. Times are seconds of any clock that only grows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# A rate is that of a second at least, since bytes come in bursts; what people see is that of five.
RATE_WINDOW_S = 1.0
SPEED_WINDOW_S = 5.0


@dataclass(eq=False)
class Source:
    """One that is asked for pieces; `rate` in bytes/s, None until it is known.

    `left` says why it is asked no more; "" while it is.
    """

    name: str
    tier: int = 0
    rate: float | None = None
    bytes: int = 0
    failures: int = 0
    wrong: int = 0
    rests_until: float = 0.0
    failed_at: float = float("-inf")
    sequential: bool = False
    running: int = 0
    left: str = ""
    _window: tuple[float, int] = (0.0, 0)

    def begin(self, now: float) -> None:
        """Note that one more request runs."""
        if not self.running:
            self._window = (now, 0)
        self.running += 1

    def received(self, count: int, now: float) -> None:
        """Count bytes that came, and take them into the rate."""
        self.bytes += count
        began, got = self._window
        got += count
        if now - began >= RATE_WINDOW_S:
            fresh = got / (now - began)
            self.rate = fresh if self.rate is None else 0.5 * self.rate + 0.5 * fresh
            began, got = now, 0
        self._window = (began, got)


@dataclass(eq=False)
class Run:
    """Pieces [next, stop) that one request fetches from a source; `current` is under way."""

    source: Source
    next: int
    stop: int
    began: float
    current: int | None = None
    piece_began: float = 0.0
    got: int = 0  # bytes of the current piece
    over: bool = False


@dataclass
class Speed:
    """How fast all of a transfer goes, over the last seconds."""

    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, count: int, now: float) -> None:
        """Count bytes that came."""
        self.samples.append((now, count))
        self._trim(now)

    def _trim(self, now: float) -> None:
        while self.samples and self.samples[0][0] < now - SPEED_WINDOW_S:
            self.samples.popleft()

    def rate(self, now: float) -> float:
        """Return the bytes/s up to now; 0 where nothing came."""
        self._trim(now)
        if not self.samples:
            return 0.0
        span = max(now - self.samples[0][0], RATE_WINDOW_S)
        return sum(count for _, count in self.samples) / span
