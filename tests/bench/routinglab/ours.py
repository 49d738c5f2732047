"""The gateway's own router, as `proxy.py` and `upstream.py` use it, in the world of the bench."""

from __future__ import annotations

from random import Random

from gateway.routing import Attempt, Fault, Need, Picked, Replica, Router
from gateway.routing.prefixes import FINE_BLOCKS
from gateway.usage import Tokens
from routinglab.requests import Request

# How many of the world's blocks one long block of the router's holds.
_COARSE = 8


class Ours:
    """A router with the default strategy; answers say their cost, without what was cached."""

    def __init__(self, count: int, random: Random, *, sessions: bool = True) -> None:
        self._router = Router("latency_aware", random)
        self._sessions = sessions
        replicas = [Replica(str(n), f"http://{n}", "mesh", ("m",)) for n in range(count)]
        self._router.update("mesh", replicas, 0.0)
        self._picked: Picked | None = None
        self._attempts: dict[int, Attempt] = {}

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
        return int(picked.replica.name)

    def begin(self, replica: int, request: Request, now: float) -> None:
        assert self._picked is not None
        self._attempts[id(request)] = self._picked.attempt
        self._router.begin(f"http://{replica}", self._picked.attempt, now)

    def first(self, replica: int, request: Request, seconds: float, now: float) -> None:
        attempt = self._attempts[id(request)]
        self._router.first_byte(
            f"http://{replica}", seconds, streamed=True, now=now, attempt=attempt
        )

    def failed(self, replica: int, request: Request, now: float) -> None:
        self._router.fault(f"http://{replica}", Fault.REFUSED, "503", now)

    def end(self, replica: int, request: Request, whole: bool, now: float) -> None:
        attempt = self._attempts.pop(id(request))
        if whole:
            cost = Tokens(request.tokens, request.answer_tokens)
            self._router.answered(attempt, cost, request.answer_tokens, now)
        self._router.end(f"http://{replica}", attempt, now)
