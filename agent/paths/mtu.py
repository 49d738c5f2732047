"""How large a packet may be that the tunnel to one peer carries whole. A core.

    state        event                          what happens
    -----        -----                          ------------
    any          the path changed               1280, and search
    searching    a size arrived                 it holds; halve what is above
    searching    a size failed TRIES times      halve what is below
    holding      VERIFY_S passed; FLOW_VERIFY_S send the held size again
                  while packets flow
    holding      that failed TRIES times while  a black hole: 1280, and search
                  small probes are answered
    holding      SEARCH_S passed                search what is above
    any          even 1280 failed               1280 in fragments: IPv6 over the tunnel needs it

Only probes that arrived whole count: ICMP is filtered too often, and anyone can forge it. A probe
has the size of the WireGuard packet that carries a full tunnel packet. Asked and told by `pair.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from agent.paths.messages import MtuProbe

MTU_MIN = 1280
# A tunnel packet becomes a UDP payload by WireGuard's header (16) and tag (16).
WIREGUARD_BYTES = 32
# 1500 less IP, UDP and WireGuard: 60 over IPv4, 80 over IPv6; less 8 more in PPPoE; 1380 to 1400
# are what mobile networks and tunnels of others leave.
STEPS_IPV4 = (1280, 1320, 1360, 1380, 1400, 1420, 1432, 1440)
STEPS_IPV6 = (1280, 1320, 1360, 1380, 1400, 1412, 1420)
# With a fifth of packets lost each way one in sixty sizes is judged too small, until SEARCH_S.
TRIES = 4
TRY_INTERVAL_S = 0.3
# Where nothing flows a black hole harms nobody, and the first packets have it looked for.
VERIFY_S = 300.0
# What flows meanwhile stands still in a black hole; TCP waits the longer, the longer it had to.
FLOW_VERIFY_S = 5.0
SEARCH_S = 600.0
_NEVER = float("inf")


class MtuSearch:
    """The search on one peer's present path."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._steps: tuple[int, ...] = STEPS_IPV4
        self._held = 0
        self._too_large = len(self._steps)
        self._testing: int | None = None
        self._tries = 0
        self._tokens: dict[int, int] = {}
        self._next_at = _NEVER
        self._search_at = _NEVER
        self._held_at = 0.0
        self.fragmented = False

    @property
    def mtu(self) -> int:
        """The size that holds now."""
        return self._steps[self._held]

    @property
    def wake_at(self) -> float:
        """When `due` has something to do."""
        return self._next_at

    def restart(self, ipv6: bool, now: float) -> None:
        """The path is another: assume the least, and search from `now` on."""
        self._steps = STEPS_IPV6 if ipv6 else STEPS_IPV4
        self._held, self.fragmented = 0, False
        self._search(now)

    def flows(self, now: float) -> None:
        """Packets flow on the path: what is held has to be true."""
        if self._testing is None and self._held and self._next_at != _NEVER:
            self._next_at = min(self._next_at, max(now, self._held_at + FLOW_VERIFY_S))

    def stop(self) -> None:
        """There is no path."""
        self._next_at = self._search_at = _NEVER
        self._tokens.clear()

    def due(self, now: float, *, answering: bool) -> Iterator[MtuProbe]:
        """Yield the probe to send now; `answering`: small probes are answered on this path.

        While they are not, nothing is judged: it is not the size then.
        """
        if now < self._next_at:
            return
        if not answering:
            self._tries, self._next_at = 0, now + 1.0
            return
        if self._testing is None:
            again = now >= self._search_at
            if again:
                self._search(now)
            else:
                self._testing, self._tries = self._held, 0
        if self._testing is not None and self._tries >= TRIES:
            self._failed(self._testing, now)
        if self._testing is None:
            return
        self._tries += 1
        self._next_at = now + TRY_INTERVAL_S
        token = self._rng.getrandbits(62)
        self._tokens[token] = self._testing
        yield MtuProbe(token, self._steps[self._testing] + WIREGUARD_BYTES)

    def arrived(self, token: int, size: int, now: float) -> None:
        """Take an answer: that size came through."""
        step = self._tokens.get(token)
        if step is None or self._steps[step] + WIREGUARD_BYTES != size:
            return
        self._held = max(self._held, step)
        self.fragmented = False
        if self._testing is not None and step >= self._testing:
            self._next_step(now)

    def _search(self, now: float) -> None:
        self._too_large = len(self._steps)
        self._search_at = now + SEARCH_S
        self._next_step(now)

    def _failed(self, failed: int, now: float) -> None:
        if failed == 0:
            self.fragmented = True
            self._hold(now)
            return
        if failed <= self._held:
            self._held = 0
        self._too_large = failed
        self._next_step(now)

    def _next_step(self, now: float) -> None:
        """Test the middle of what is open; the least size first proves nothing and comes last."""
        self._tokens.clear()
        self._tries = 0
        if self._too_large - self._held > 1:
            # The largest is the likeliest by far, so it is tried before halving.
            whole = self._too_large == len(self._steps)
            self._testing = self._too_large - 1 if whole else (self._held + self._too_large) // 2
            self._next_at = now
        elif self._held == 0 and self._testing != 0:
            self._testing, self._next_at = 0, now
        else:
            self._hold(now)

    def _hold(self, now: float) -> None:
        self._testing, self._tries = None, 0
        self._held_at = now
        self._tokens.clear()
        self._next_at = min(now + VERIFY_S, self._search_at)
