"""The answering side: tells askers what they ask, on two ports, from the port that was asked.

A shell. A member that is reachable from outside runs it, so that others learn under which place
they are seen; from two ports, since a NAT that gives them two places is a hard one. What a
question is, and what is said to it, the function `answer` decides (agent/paths). What that rejects
gets no answer, and what comes too often is not even opened.
"""

from __future__ import annotations

import enum
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address

from agent.discovery.allowance import Allowance
from agent.probing.port import Place, Port, Sent

# An office of a hundred behind one address asks twice on each port as it starts.
SOURCE_PER_S, SOURCE_BURST = 50.0, 400.0
# Opening and sealing takes about 50 µs: at most 5 % of a core, whoever asks.
ALL_PER_S, ALL_BURST = 1000.0, 2000.0
# An entry takes 0.3 KB. Who is forgotten starts with a full bucket; the one for all holds still.
SOURCES_MAX = 4096
# IPv6 gives each customer a /64 at least.
_IPV6_CUSTOMER = 64


class Asked(enum.Enum):
    """On which port a question came."""

    WIREGUARD = "WireGuard's own port"
    SECOND = "the port beside it"


Answer = Callable[[Place, bytes, Asked], bytes | None]
"""Returns what to send to a place that sent this payload to that port; None is silence."""


class Rendezvous:
    """Answers on `wireguard`, a port that whoever owns it feeds to `heard`, and on `second`.

    `second` is opened and closed here. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        wireguard: Port,
        second: Port,
        answer: Answer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ports = {Asked.WIREGUARD: wireguard, Asked.SECOND: second}
        self._answer = answer
        self._clock = clock
        self._all = Allowance(ALL_PER_S, ALL_BURST)
        self._sources: OrderedDict[str, Allowance] = OrderedDict()
        self.answered = 0
        self.rejected = 0
        self.too_many = 0
        self.unsent = 0

    def start(self) -> None:
        """Open the second port; an EnvironmentFault if that cannot be."""
        self._ports[Asked.SECOND].open(
            lambda place, payload, local: self._take(place, payload, local, Asked.SECOND)
        )

    def heard(self, place: Place, payload: bytes, local: str) -> None:
        """Answer what came to WireGuard's port, or keep silent: an `OnDatagram`."""
        self._take(place, payload, local, Asked.WIREGUARD)

    def stop(self) -> None:
        """Close the second port; may be called twice."""
        self._ports[Asked.SECOND].close()
        self._sources.clear()

    def _take(self, place: Place, payload: bytes, local: str, asked: Asked) -> None:
        now = self._clock()
        # A source first: one that asks too much must not use up what there is for all.
        if not (self._source(place[0]).take(now) and self._all.take(now)):
            self.too_many += 1
            return
        said = self._answer(place, payload, asked)
        if said is None:
            self.rejected += 1
            return
        if self._ports[asked].send(place, said, local=local) is Sent.SENT:
            self.answered += 1
        else:
            self.unsent += 1

    def _source(self, host: str) -> Allowance:
        key = _customer(host)
        found = self._sources.get(key)
        if found is None:
            found = self._sources[key] = Allowance(SOURCE_PER_S, SOURCE_BURST)
            if len(self._sources) > SOURCES_MAX:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(key)
        return found


def _customer(host: str) -> str:
    """Return what one customer's addresses have in common."""
    if ":" not in host:
        return host
    return f"{int(IPv6Address(host)) >> (128 - _IPV6_CUSTOMER):x}::"
