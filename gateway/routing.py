"""Which replica gets a request, and what the gateway has learned about each of them.

A core: no I/O; `now` is in seconds of any clock that does not go back, randomness is an argument.
Used by `watch.py` (which replicas there are, checks) and `proxy.py` (choices, what came of them).

    usable = its last check did not fail (none yet counts as usable), and it is not cooling down
    cooling down: after what `fault` says, 1, 2, 4 … 30 s with each fault in a row
                  a passed check ends it if the replica could not be reached, or was found not to
                  be ready, else only time or a served request does: a replica that fails requests
                  passes checks all the same

    awaited = a model that the mesh is to run, that answered of late, and whose heads are all gone,
              out of reach or not ready: the next head is on its way

A fault never counts as a short answer time, so an error never looks like low load.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

# A replica that nobody has measured is taken for an ordinary one, so that it gets its share.
UNMEASURED_S = 0.1
# The weight of a new answer time: the last five or so decide.
EWMA_WEIGHT = 0.3
# An answer time that is not renewed fades, so that a replica that was slow is tried again.
FADE_S = 60.0
COOL_FIRST_S = 1.0
COOL_MOST_S = 30.0
# Errors that may be the request's own fault cool a replica down only when they come in a row.
ERRORS_IN_A_ROW = 3
# A lost head has a successor within seconds, or not soon: a model that is large takes minutes.
LATELY_S = 60.0


class Fault(enum.Enum):
    """What went wrong with a request at a replica before the client got a byte, or after."""

    UNREACHABLE = "unreachable"  # no connection, or it broke
    REFUSED = "refused"  # 502, 503, 504: it says itself that it cannot serve now
    ERROR = "error"  # another 5xx


@dataclass(frozen=True)
class Replica:
    """Something that answers OpenAI requests; `url` has no /v1, `source` says who named it.

    `models` is empty for an outside server until its first check; `context` is in tokens.
    """

    name: str
    url: str
    source: str
    models: tuple[str, ...] = ()
    context: int | None = None


@dataclass(frozen=True)
class Candidate:
    """What a strategy sees of a usable replica: predicted seconds to the first byte, and load."""

    url: str
    predicted_s: float
    in_flight: int
    chosen_last: int


@dataclass(frozen=True)
class UnknownModel:
    """No replica has the model, and none is to have it; these are known."""

    known: tuple[str, ...]


@dataclass(frozen=True)
class NoneUsable:
    """Replicas of the model exist, but none can be used for another `retry_after_s` seconds.

    `awaited`: see the module; a request may well wait.
    """

    retry_after_s: float
    reasons: tuple[str, ...]
    awaited: bool = False


@dataclass
class _Learned:
    replica: Replica
    models: tuple[str, ...]
    check: bool | None = None
    reason: str = "not checked yet"
    cool_until: float = -math.inf
    cooling_for: Fault | None = None
    faults: int = 0
    in_flight: int = 0
    chosen_last: int = 0
    requests: int = 0
    # By kind of request (streamed or whole): the two are not comparable.
    first_byte_s: dict[bool, tuple[float, float]] = field(default_factory=dict)

    def usable(self, now: float) -> bool:
        return self.check is not False and now >= self.cool_until

    @property
    def up(self) -> bool:
        """Whether it is there and ready as far as known, and at most refuses some requests."""
        return self.check is not False and self.cooling_for is not Fault.UNREACHABLE

    def predicted_s(self, streamed: bool, now: float) -> float:
        seconds, at = self.first_byte_s.get(streamed, (UNMEASURED_S, now))
        # Requests at one replica wait for each other, so each one adds its time.
        return seconds * math.exp(-(now - at) / FADE_S) * (self.in_flight + 1)


def latency_aware(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """Choose the least predicted time of two at random, so that not all run to the best one."""
    two = random.sample(candidates, min(2, len(candidates)))
    return min(two, key=lambda candidate: candidate.predicted_s)


def round_robin(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """Choose the one whose turn is longest ago."""
    return min(candidates, key=lambda candidate: (candidate.chosen_last, candidate.url))


STRATEGIES: dict[str, Callable[[Sequence[Candidate], Random], Candidate]] = {
    "latency_aware": latency_aware,
    "round_robin": round_robin,
}


class Router:
    """The replicas and what is known of them. Replicas are told apart by their URL."""

    def __init__(self, strategy: str, random: Random) -> None:
        self._strategy = STRATEGIES[strategy]
        self._random = random
        self._known: dict[str, _Learned] = {}
        self._first_seen: dict[str, float] = {}
        self._deployed: frozenset[str] = frozenset()
        self._well_at: dict[str, float] = {}  # by model: when a head of it was last seen well
        self._turn = 0

    def update(self, source: str, replicas: Iterable[Replica], now: float) -> list[str]:
        """Take the replicas that `source` knows now; return the changes, in words for the log.

        What was learned of a replica that stays is kept. A URL belongs to its first source.
        """
        fresh = {replica.url: replica for replica in replicas}
        changes = []
        for url, learned in list(self._known.items()):
            if learned.replica.source == source and url not in fresh:
                del self._known[url]
                changes.append(f"gone replica={learned.replica.name} url={url}")
        for url, replica in fresh.items():
            known = self._known.get(url)
            if known is None:
                self._known[url] = _Learned(replica, replica.models)
                changes.append(f"new replica={replica.name} url={url}")
            elif known.replica.source == source:
                known.replica = replica
                known.models = replica.models or known.models
            self._see(replica.models, now)
        return changes

    def deployed(self, models: Iterable[str]) -> None:
        """Take the models that the mesh is to run, whether a head of them answers now or not."""
        self._deployed = frozenset(models)
        self._well_at = {m: at for m, at in self._well_at.items() if m in self._deployed}

    def replicas(self) -> list[Replica]:
        """Return all replicas, usable or not."""
        return [learned.replica for learned in self._known.values()]

    def check_passed(self, url: str, models: tuple[str, ...] | None, now: float) -> bool:
        """Note a passed check, with the models it found if it asked; True if this is news."""
        learned = self._known.get(url)
        if learned is None:
            return False
        news = learned.check is not True
        # One that was not ready when it refused has a ring again.
        recovered = learned.check is False or learned.cooling_for is Fault.UNREACHABLE
        learned.check, learned.reason = True, ""
        if recovered:
            learned.cool_until, learned.cooling_for = -math.inf, None
        if models is not None:
            learned.models = models
            self._see(models, now)
        self._well(learned, now)
        return news

    def check_failed(self, url: str, reason: str) -> bool:
        """Note a failed check; True if this is news."""
        learned = self._known.get(url)
        if learned is None:
            return False
        news = learned.check is not False or learned.reason != reason
        learned.check, learned.reason = False, reason
        return news

    def choose(
        self, model: str, *, streamed: bool, now: float, without: frozenset[str] = frozenset()
    ) -> Replica | UnknownModel | NoneUsable:
        """Return the replica for a request, `without` those URLs that it was tried at already."""
        having = [learned for learned in self._known.values() if model in learned.models]
        awaited = self._awaited(model, having, now)
        if not having and model in self._deployed:
            return NoneUsable(COOL_FIRST_S, ("it is deployed, and has no head now",), awaited)
        if not having:
            return UnknownModel(tuple(sorted(self._models())))
        usable = {
            learned.replica.url: learned
            for learned in having
            if learned.usable(now) and learned.replica.url not in without
        }
        if not usable:
            cooling = [x.cool_until - now for x in having if x.check is not False]
            reasons = tuple(f"{x.replica.name}: {x.reason or 'tried already'}" for x in having)
            wait_s = max(min(cooling, default=COOL_FIRST_S), COOL_FIRST_S)
            return NoneUsable(wait_s, reasons, awaited)
        choice = self._strategy(
            [
                Candidate(url, x.predicted_s(streamed, now), x.in_flight, x.chosen_last)
                for url, x in usable.items()
            ],
            self._random,
        )
        self._turn += 1
        usable[choice.url].chosen_last = self._turn
        return usable[choice.url].replica

    def begin(self, url: str) -> None:
        """Note that a request goes to the replica; `end` must follow."""
        if learned := self._known.get(url):
            learned.in_flight += 1
            learned.requests += 1

    def end(self, url: str) -> None:
        """Note that a request has left the replica, however it went."""
        if learned := self._known.get(url):
            learned.in_flight = max(learned.in_flight - 1, 0)

    def first_byte(self, url: str, seconds: float, *, streamed: bool, now: float) -> None:
        """Note that the replica began to answer after `seconds`: it serves requests."""
        learned = self._known.get(url)
        if learned is None:
            return
        learned.faults, learned.cool_until, learned.cooling_for = 0, -math.inf, None
        self._well(learned, now)
        before = learned.first_byte_s.get(streamed)
        if before is not None:
            seconds = before[0] + EWMA_WEIGHT * (seconds - before[0])
        learned.first_byte_s[streamed] = (seconds, now)

    def fault(
        self, url: str, fault: Fault, reason: str, now: float, retry_after_s: float = 0.0
    ) -> None:
        """Note that a request failed; the replica cools down as the table at the top says."""
        learned = self._known.get(url)
        if learned is None:
            return
        learned.faults += 1
        if fault is Fault.ERROR and learned.faults < ERRORS_IN_A_ROW:
            return
        cool_s = COOL_FIRST_S * 2 ** min(learned.faults - 1, 10)
        learned.cool_until = now + min(max(cool_s, retry_after_s), COOL_MOST_S)
        learned.cooling_for = fault
        learned.reason = reason

    def models(self, now: float) -> list[dict[str, Any]]:
        """Return what /v1/models says: id, first seen, largest context, replicas, usable ones."""
        entries = []
        for model in sorted(self._models()):
            having = [x for x in self._known.values() if model in x.models]
            contexts = [x.replica.context for x in having if x.replica.context]
            entries.append(
                {
                    "id": model,
                    "first_seen": self._first_seen[model],
                    "context": max(contexts, default=None),
                    "replicas": sorted(x.replica.name for x in having),
                    "usable": sum(x.usable(now) for x in having),
                }
            )
        return entries

    def view(self, now: float) -> list[dict[str, Any]]:
        """Return one entry for each replica, for `gateway status`; times in seconds."""
        return [
            {
                "name": x.replica.name,
                "url": x.replica.url,
                "source": x.replica.source,
                "models": list(x.models),
                "usable": x.usable(now),
                "reason": "" if x.usable(now) and x.check else x.reason,
                "cooling_s": max(round(x.cool_until - now, 3), 0.0),
                "in_flight": x.in_flight,
                "requests": x.requests,
                "first_byte_s": {
                    "stream" if streamed else "whole": round(seconds, 6)
                    for streamed, (seconds, _) in sorted(x.first_byte_s.items())
                },
            }
            for x in sorted(self._known.values(), key=lambda x: (x.replica.name, x.replica.url))
        ]

    def _models(self) -> set[str]:
        return {model for learned in self._known.values() for model in learned.models}

    def _awaited(self, model: str, having: Iterable[_Learned], now: float) -> bool:
        at = self._well_at.get(model, -math.inf)
        return now - at < LATELY_S and not any(learned.up for learned in having)

    def _well(self, learned: _Learned, now: float) -> None:
        for model in self._deployed.intersection(learned.models):
            self._well_at[model] = now

    def _see(self, models: Iterable[str], now: float) -> None:
        for model in models:
            self._first_seen.setdefault(model, now)
