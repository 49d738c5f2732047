"""The gateway's own router, as its shells use it, in the world of the bench."""

from __future__ import annotations

import math
from random import Random

from gateway.hedging import Hedge, budget
from gateway.routing import Attempt, Fault, Need, Picked, Replica, Router
from gateway.routing.prefixes import FINE_BLOCKS
from gateway.usage import Tokens
from routinglab.requests import Request

# As the gateway has them by default.
HEDGE_PERCENT, PER_REPLICA = 5.0, 256
# How many of the world's blocks one long block of the router's holds.
_COARSE = 8


class Ours:
    """A router with the default strategy; answers say their cost, without what was cached."""

    def __init__(
        self, count: int, random: Random, *, sessions: bool = True, listens: bool = True,
        hedge_percent: float = HEDGE_PERCENT,
    ) -> None:  # fmt: skip
        self._router = Router("latency_aware", random)
        self._sessions = sessions
        self._listens = listens
        replicas = [Replica(str(n), f"http://{n}", "mesh", ("m",)) for n in range(count)]
        self._router.update("mesh", replicas, 0.0)
        self._picked: Picked | None = None
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._budget = budget(hedge_percent)
        self._hedges: dict[int, Hedge] = {}

    def choose(self, request: Request, now: float, without: frozenset[int]) -> int | None:
        blocks = request.blocks
        need = Need(
            "m", streamed=True, kind="completions", prompt_bytes=request.prompt_bytes,
            prefix=blocks[:FINE_BLOCKS] + blocks[FINE_BLOCKS + _COARSE - 1 :: _COARSE],
            session=request.session if self._sessions else "",
        )  # fmt: skip
        tried = frozenset(f"http://{n}" for n in without)
        picked = self._router.pick(need, now, tried)
        if not isinstance(picked, Picked):
            return None
        self._picked = picked
        if not without:
            self._budget.request()
        hedged = id(request) in self._hedges and self._hedges[id(request)].second is not None
        if self._budget.share and picked.attempt.others_s is not None and not hedged:
            self._hedges[id(request)] = Hedge(
                self._router, self._budget, picked.attempt, tried, PER_REPLICA, lambda: True
            )
        return int(picked.replica.name)

    def look(self, request: Request, now: float) -> tuple[int | None, float]:
        hedge = self._hedges.get(id(request))
        found = hedge.look(now) if hedge is not None else math.inf
        if not isinstance(found, Picked):
            return None, found
        self._picked = found
        return int(found.replica.name), math.inf

    def begin(self, replica: int, request: Request, now: float) -> None:
        assert self._picked is not None
        self._attempts[id(request), replica] = self._picked.attempt
        self._router.begin(f"http://{replica}", self._picked.attempt, now)

    def first(self, replica: int, request: Request, seconds: float, now: float) -> None:
        attempt = self._attempts[id(request), replica]
        self._router.first_byte(
            f"http://{replica}", seconds, streamed=True, now=now, attempt=attempt
        )

    def told(self, replica: int, there: int, now: float) -> None:
        if self._listens:
            self._router.told(f"http://{replica}", there, now)

    def outrun(self, replica: int, request: Request, now: float) -> None:
        attempt = self._attempts[id(request), replica]
        self.end(replica, request, False, now)
        self._router.outrun(attempt, now)

    def failed(self, replica: int, request: Request, now: float) -> None:
        self._router.fault(f"http://{replica}", Fault.REFUSED, "503", now)

    def end(self, replica: int, request: Request, whole: bool, now: float) -> None:
        attempt = self._attempts.pop((id(request), replica))
        if whole:
            cost = Tokens(request.tokens, request.answer_tokens)
            self._router.answered(attempt, cost, request.answer_tokens, now)
        self._router.end(f"http://{replica}", attempt, now)
