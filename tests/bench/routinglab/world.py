"""One way to choose in one situation: events in order of virtual time, and what clients saw."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from routinglab.cases import Case
from routinglab.peers import Chooser, Probe
from routinglab.replica import NEVER, Server, Work
from routinglab.requests import Request, requests

# A client waits so long for its first token; who had none counts with this time.
PATIENCE_S = 30.0
MAX_ATTEMPTS = 3
# A gateway asks each head for its health so often.
CHECK_S = 1.0
# What a person takes for prompt and fluent.
GOOD_FIRST_S, GOOD_TOKEN_S = 1.5, 0.12


@dataclass(frozen=True)
class Seen:
    """What the clients of one run saw: seconds to each first token, and good answers a second."""

    first_s: Sequence[float]
    good_per_s: float

    def quantile(self, share: float) -> float:
        """Return a quantile of the time to the first token."""
        ordered = sorted(self.first_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class World:
    """The clock and the servers; `make(count, random, probe)` makes one gateway's chooser."""

    def __init__(
        self, case: Case, seed: int, make: Callable[[int, Random, Probe], Chooser]
    ) -> None:
        self.now = 0.0
        self._case = case
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._servers = [
            Server(law, Random(f"{seed} server {n}"), self.call) for n, law in enumerate(case.laws)
        ]
        self._choosers = [
            make(len(case.laws), Random(f"{seed} gateway {n}"), self._probe)
            for n in range(case.gateways)
        ]
        self._random = Random(f"{seed} clients")
        self._first_s: list[float] = []
        self._good = 0
        self.hedges = self.won = 0

    def call(self, at: float, what: Callable[[], None]) -> None:
        """Have something done at that time."""
        self._count += 1
        heapq.heappush(self._events, (at, self._count, what))

    def run(self) -> Seen:
        """Go through the whole situation."""
        case = self._case
        asked = list(requests(case.traffic, case.seconds, self._random))
        for request in asked:
            gateway = self._choosers[self._random.randrange(case.gateways)]
            self.call(request.at, lambda r=request, g=gateway: self._ask(g, r, frozenset()))
        for trouble in case.troubles:
            server = self._servers[trouble.replica]
            self.call(trouble.begins, lambda t=trouble, s=server: t.begin(s, self.now))
            self.call(trouble.ends, lambda t=trouble, s=server: t.end(s, self.now))
        for n in range(int(case.seconds / CHECK_S)):
            self.call(n * CHECK_S, self._check)
        while self._events:
            self.now, _, what = heapq.heappop(self._events)
            what()
        assert len(self._first_s) == len(asked), "each request has one end"
        return Seen(self._first_s, self._good / case.seconds)

    def _probe(
        self, replica: int, answered: Callable[[int, float], None], at_once: bool = False
    ) -> None:
        server = self._servers[replica]
        if server.refusing or server.speed == 0:
            return
        half = server.law.rtt_s / 2
        if at_once:
            answered(server.in_flight, server.estimate_s())
            return

        def there() -> None:
            load, seconds = server.in_flight, server.estimate_s()
            self.call(self.now + half, lambda: answered(load, seconds))

        self.call(self.now + half, there)

    def _check(self) -> None:
        """Have each gateway told how many requests are at each replica."""
        for replica, server in enumerate(self._servers):
            for gateway in self._choosers:
                self.tell(gateway, replica, server)

    def tell(self, gateway: Chooser, replica: int, server: Server) -> None:
        """Have a gateway told how many requests are at a replica now, when that is there."""
        there = server.in_flight
        at = self.now + server.law.rtt_s / 2
        self.call(at, lambda: gateway.told(replica, there, self.now))

    def _ask(self, gateway: Chooser, request: Request, tried: frozenset[int]) -> None:
        replica = None
        if len(tried) < MAX_ATTEMPTS and self.now - request.at < PATIENCE_S:
            replica = gateway.choose(request, self.now, tried)
        if replica is None:
            self._first_s.append(PATIENCE_S)
            return
        gateway.begin(replica, request, self.now)
        first = _Asked(self, gateway, request, replica, self._servers[replica], tried)
        first.go()
        self._look(first)

    def _look(self, first: _Asked) -> None:
        """Ask for a second replica while the first has no first token."""
        if not first.waiting:
            return
        gateway, request = first.gateway, first.request
        replica, again_s = gateway.look(request, self.now)
        if replica is not None:
            gateway.begin(replica, request, self.now)
            server = self._servers[replica]
            second = _Asked(self, gateway, request, replica, server, first.tried, hedges=first)
            first.rival = second
            self.hedges += 1
            second.go()
        elif again_s < NEVER:
            self.call(self.now + again_s, lambda: self._look(first))

    def told(self, request: Request) -> float:
        """Note a first token; return when it came."""
        self._first_s.append(self.now - request.at)
        return self.now

    def whole(self, request: Request, first_at: float) -> None:
        """Note a whole answer."""
        token_s = (self.now - first_at) / request.answer_tokens
        self._good += first_at - request.at <= GOOD_FIRST_S and token_s <= GOOD_TOKEN_S

    def gave_up(self) -> None:
        """Note a client that waited in vain."""
        self._first_s.append(PATIENCE_S)

    def again(self, gateway: Chooser, request: Request, tried: frozenset[int]) -> None:
        """Try elsewhere."""
        self._ask(gateway, request, tried)


class _Asked:
    """One attempt: the way there, the work, the way back; `hedges` is the one that it is beside."""

    def __init__(
        self, world: World, gateway: Chooser, request: Request, replica: int, server: Server,
        tried: frozenset[int], hedges: _Asked | None = None,
    ) -> None:  # fmt: skip
        self._world, self.gateway, self.request = world, gateway, request
        self._replica, self._server = replica, server
        self.tried = tried | {replica} | (hedges.tried if hedges else frozenset())
        self._hedges = hedges is not None
        self.rival = hedges
        self._begun = world.now
        self._half = server.law.rtt_s / 2
        self._first_at: float | None = None
        self._left = False
        self._work: Work | None = None

    @property
    def waiting(self) -> bool:
        """Whether it is on its way and has no first token."""
        return not self._left and self._first_at is None

    def go(self) -> None:
        world = self._world
        world.call(world.now + self._half, self._arrive)
        world.call(self.request.at + PATIENCE_S, self._patience)

    def _arrive(self) -> None:
        world = self._world
        if self._left:
            return
        if self._server.refusing:
            world.call(world.now + self._half, self._refused)
            return
        self._work = self._server.ask(
            self.request, world.now, self._begin,
            lambda: world.call(world.now + self._half, self._done),
        )  # fmt: skip

    def _begin(self) -> None:
        self._world.tell(self.gateway, self._replica, self._server)
        self._world.call(self._world.now + self._half, self._first)

    def _refused(self) -> None:
        now = self._world.now
        if self._left:
            return
        self._left = True
        self.gateway.failed(self._replica, self.request, now)
        self.gateway.end(self._replica, self.request, False, now)
        if self.rival is None:
            self._world.again(self.gateway, self.request, self.tried)
        elif not self.rival.waiting:  # it was refused, too
            self._world.again(self.gateway, self.request, self.tried | self.rival.tried)

    def _first(self) -> None:
        if self._left:
            return
        now = self._world.now
        self._first_at = self._world.told(self.request)
        if self.rival is not None and self.rival.waiting:
            self.rival.lose(slower=self._hedges)
            self._world.won += self._hedges
        self.gateway.first(self._replica, self.request, now - self._begun, now)

    def lose(self, *, slower: bool) -> None:
        """Leave, as the other has the first token; `slower`: although it was sent later."""
        self._left = True
        now = self._world.now
        if slower:
            self.gateway.outrun(self._replica, self.request, now)
        else:
            self.gateway.end(self._replica, self.request, False, now)
        self._world.call(now + self._half, self._leave)

    def _leave(self) -> None:
        if self._work is not None:
            self._server.leave(self._work, self._world.now)

    def _done(self) -> None:
        if self._left:
            return
        self._left = True
        assert self._first_at is not None
        self._world.whole(self.request, self._first_at)
        self.gateway.end(self._replica, self.request, True, self._world.now)

    def _patience(self) -> None:
        if not self.waiting:
            return
        self._left = True
        if self.rival is None or not self.rival.waiting:
            self._world.gave_up()
        self.gateway.end(self._replica, self.request, False, self._world.now)
        self._leave()
