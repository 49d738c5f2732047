"""When to dial again, and which of several connections to one peer stays. A core.

`keeper.py` uses it. Two nodes that dial each other at once have two connections; both must prefer
the same one, and only one of them may close the other, or they would close both for ever. So: of
connections that began within TIE_S of the newest, those that the node with the smaller id dialled
count; the newest of these stays. The node with the smaller id closes what does not stay, once it is
idle. A later connection wins over an earlier one: that is how a better address takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random

from agent import endpoint
from agent.errors import UsageError

FIRST_DELAY_S = 0.5
# A node that is away for long is tried once a minute: it also dials from its own side.
MAX_DELAY_S = 60.0
JITTER = 0.5
# A connection that ends sooner than this counts as a failure, or a node that accepts and closes
# would be dialled without a pause.
STABLE_S = 20.0
# The clocks of two nodes see "at once" differently; an address that becomes usable takes longer.
TIE_S = 5.0


class Backoff:
    """The pauses between tries to reach one peer."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._failures = 0

    def failed(self) -> float:
        """Return how long to wait, in seconds, after another failure."""
        delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        return delay_s * self._chance.uniform(1 - JITTER, 1 + JITTER)

    def ended(self, age_s: float) -> float:
        """Return how long to wait after a connection that lived for `age_s` seconds."""
        if age_s < STABLE_S:
            return self.failed()
        self._failures = 0
        return FIRST_DELAY_S * self._chance.uniform(0.0, 1.0)

    def reset(self) -> None:
        """Something has changed: the next pause is short again."""
        self._failures = 0


@dataclass(frozen=True)
class Candidate:
    """One of several connections to a peer; `opened_at` in seconds of any one clock."""

    opened_at: float
    by_smaller: bool


def stays(candidates: Sequence[Candidate]) -> int:
    """Return the index of the connection that stays; ValueError if there is none."""
    newest = max(each.opened_at for each in candidates)
    tied = [i for i, each in enumerate(candidates) if newest - each.opened_at <= TIE_S]
    preferred = [i for i in tied if candidates[i].by_smaller] or tied
    return max(preferred, key=lambda i: candidates[i].opened_at)


def rank(address: str, wanted: Sequence[str]) -> int:
    """Return how good an address is: its place among those wanted, best first; their count if none.

    An inbound connection comes from a port of its own, so only the hosts count.
    """
    host = _host(address)
    for index, each in enumerate(wanted):
        if each == address or (host and _host(each) == host):
            return index
    return len(wanted)


def _host(address: str) -> str:
    try:
        host = endpoint.split(address)[0]
    except UsageError:
        return ""
    try:
        ip = ip_address(host)
    except ValueError:
        return host
    return str(getattr(ip, "ipv4_mapped", None) or ip)
