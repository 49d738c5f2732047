"""How often: when a certificate is renewed, when to try again, and what one peer may ask. A core.

Times are unix seconds; chance is an argument.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from agent.membership.certificate import Certificate

# A mesh whose members joined in one minute must not renew in one: they spread over this part of a
# certificate's life (4.5 days of 90), after two thirds of it.
_SPREAD = 0.05


def renew_at(certificate: Certificate) -> float:
    """Return when a node asks for its next certificate: fixed for one certificate, spread for many.

    After a restart it is the same moment, and nobody is left out by chance.
    """
    life_s = certificate.not_after - certificate.not_before
    digest = hashlib.sha256(b"covey-renewal\0" + certificate.node).digest()
    return certificate.renewal_due + int.from_bytes(digest[:4], "big") / 2**32 * _SPREAD * life_s


@dataclass
class Backoff:
    """When to try again: after `first_s`, then twice as long each time, up to `most_s`."""

    first_s: float
    most_s: float
    _wait_s: float = 0.0
    _next: float = 0.0

    def ready(self, now: float) -> bool:
        """Say whether it is time; a clock that went far back counts as time passed."""
        return now >= self._next or self._next > now + 2 * self.most_s

    def failed(self, now: float, chance: float) -> None:
        """Note a failure; `chance` (0 … 1) makes nodes that failed together part."""
        self._wait_s = min(self.most_s, self._wait_s * 2 if self._wait_s else self.first_s)
        self._next = now + self._wait_s * (0.5 + chance)

    def succeeded(self) -> None:
        """Begin anew."""
        self._wait_s = self._next = 0.0


class Allowance:
    """How many requests each peer may make: `burst` at once, `per_s` on average.

    Holds `peers` at most: who is forgotten begins with a full burst.
    """

    def __init__(self, *, burst: int, per_s: float, peers: int) -> None:
        self._burst = burst
        self._per_s = per_s
        self._peers = peers
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, who: Hashable, now: float) -> bool:
        """Say whether `who` may make another request at `now`, and count it if so."""
        left, since = self._left.pop(who, (float(self._burst), now))
        left = min(self._burst, left + max(0.0, now - since) * self._per_s)
        allowed = left >= 1
        self._left[who] = (left - 1 if allowed else left, now)
        if len(self._left) > self._peers:
            self._left.popitem(last=False)
        return allowed

    def __len__(self) -> int:
        return len(self._left)
