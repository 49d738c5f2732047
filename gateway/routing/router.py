"""The replicas, what their checks and requests say of them, and which of them a request gets.

A core. Used by `watch.py` (which replicas there are, checks) and `proxy.py` and `upstream.py`
(choices, what came of them).

    can serve = usable, its context is long enough and it serves the kind of request, as far as
                known: where none is left by the last two, all that are usable are asked;
                with a picture, or what else is no text: those alone that are said to see
    usable    = its last check did not fail (none yet counts as usable), and it is not cooling
                down (`breaker.py`); one on trial is asked only where there is no other

    awaited = a model that the mesh is to run, that answered of late, and whose heads are all gone,
              out of reach or not ready: the next head is on its way

A fault never counts as a short answer time, so an error never looks like low load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from gateway.routing import choice
from gateway.routing.breaker import COOL_FIRST_S
from gateway.routing.learned import Learned
from gateway.routing.replicas import (
    Attempt,
    Fault,
    Need,
    NoneUsable,
    Picked,
    Replica,
    TextOnly,
    UnknownModel,
)
from gateway.routing.tokens import BytesPerToken
from gateway.usage import Tokens

# A lost head has a successor within seconds, or not soon: a model that is large takes minutes.
LATELY_S = 60.0
MOST_SESSIONS = 10_000


class Router:
    """The replicas and what is known of them. Replicas are told apart by their URL."""

    def __init__(self, strategy: str, random: Random) -> None:
        self.strategy = strategy
        self._random = random
        self._known: dict[str, Learned] = {}
        self._first_seen: dict[str, float] = {}
        self._deployed: frozenset[str] = frozenset()
        self._well_at: dict[str, float] = {}  # by model: when a head of it was last seen well
        self._ratios: dict[str, BytesPerToken] = {}  # by model
        self._sessions: dict[tuple[str, str], str] = {}  # by model and session: the last URL
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
                self._known[url] = Learned(replica)
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

    def knows(self, model: str) -> bool:
        """Say whether any replica has, or had, a model of this name."""
        return model in self._first_seen

    def usable_count(self, model: str, now: float) -> int:
        """Return how many replicas of a model are usable."""
        return sum(model in x.models and x.usable(now) for x in self._known.values())

    def check_passed(
        self, url: str, models: tuple[str, ...] | None, now: float, seconds: float | None = None,
        seeing: frozenset[str] = frozenset(),
    ) -> bool:  # fmt: skip
        """Note a passed check, with the models it found if it asked; True if this is news.

        `seconds` is how long it took, which is little more than the network's round trip; `seeing`
        are those of the models that say that they take more than text.
        """
        learned = self._known.get(url)
        if learned is None:
            return False
        news = learned.check is not True
        # One that was not ready when it refused has a ring again.
        recovered = learned.check is False or learned.breaker.cooling_for is Fault.UNREACHABLE
        learned.check, learned.said = True, ""
        if recovered:
            learned.breaker.reached()
        if seconds is not None:
            learned.checked_in(seconds)
        if models is not None:
            learned.models, learned.seeing = models, seeing
            self._see(models, now)
        self._well(learned, now)
        return news

    def told(self, url: str, there: int, now: float) -> None:
        """Note that the replica says how many requests are there, those of ours among them."""
        if learned := self._known.get(url):
            learned.others.told(there, learned.in_flight, now)

    def check_failed(self, url: str, reason: str) -> bool:
        """Note a failed check; True if this is news."""
        learned = self._known.get(url)
        if learned is None:
            return False
        news = learned.check is not False or learned.said != reason
        learned.check, learned.said = False, reason
        return news

    def pick(
        self, need: Need, now: float, without: frozenset[str] = frozenset()
    ) -> Picked | UnknownModel | NoneUsable | TextOnly:
        """Return the choice for a request, `without` those URLs that it was tried at already.

        `need.strategy` has to be one of `STRATEGIES`, or empty.
        """
        having = [learned for learned in self._known.values() if need.model in learned.models]
        awaited = self._awaited(need.model, having, now)
        if not having and need.model in self._deployed:
            return NoneUsable(COOL_FIRST_S, ("it is deployed, and has no head now",), awaited)
        if not having:
            return UnknownModel(tuple(sorted(self._models())))
        if need.shown is not None:
            having = [x for x in having if x.sees(need.model)]
            if not having:
                return TextOnly(need.shown)
        usable = [x for x in having if x.usable(now) and x.replica.url not in without]
        if not usable:
            cooling = [x.breaker.cool_until - now for x in having if x.check is not False]
            reasons = tuple(f"{x.replica.name}: {x.said or 'tried already'}" for x in having)
            wait_s = max(min(cooling, default=COOL_FIRST_S), COOL_FIRST_S)
            return NoneUsable(wait_s, reasons, awaited, self._doubted(need.model, having, now))
        fitting, would = self._compared(need, usable, having, now)
        last = self._sessions.get((need.model, need.session), "") if need.session else ""
        strategy = need.strategy or self.strategy
        chosen = choice.choose(strategy, fitting, would, last, now, self._random)
        self._turn += 1
        chosen.chosen_last = self._turn
        attempt = would[chosen.replica.url]
        attempt.others_s = choice.others_s(chosen, fitting, would)
        same = "same session" if attempt.url == last else ""
        counts = f"{len(usable)} of {len(having)} usable"
        return choice.picked(chosen, attempt, strategy, same, counts)

    def overdue_in_s(self, attempt: Attempt, now: float) -> float:
        """Return in how many seconds its first byte is overdue, infinite where nobody knows.

        0 or less: it is.
        """
        learned = self._known.get(attempt.url)
        if learned is None:
            return math.inf
        known = learned.prediction.known(attempt.need.streamed)
        # One that is not measured yet is expected to be about as fast as the others.
        if not known and attempt.others_s is None:
            return math.inf
        return learned.due_at(attempt) - now

    def second(
        self, first: Attempt, without: frozenset[str], within_s: float, most: int, now: float
    ) -> Picked | None:
        """Return whom to ask as well, as `first` is overdue: who is predicted to be there in time.

        None of those `without`; less than `most` of our requests are there.
        """
        need = first.need
        having = [x for x in self._known.values() if need.model in x.models]
        usable = [x for x in having if x.usable(now) and x.replica.url not in without]
        if not usable:
            return None
        fitting, would = self._compared(need, usable, having, now)
        chosen = choice.sooner(fitting, would, within_s, most, now)
        if chosen is None:
            return None
        attempt = would[chosen.replica.url]
        attempt.hedge = True
        slow = self._known.get(first.url)
        name = slow.replica.name if slow is not None else "another"
        late = f"{name} had no first byte after {now - first.begun:.2f} s"
        counts = f"{len(usable)} of {len(having)} usable"
        return choice.picked(chosen, attempt, "hedge", late, counts)

    def outrun(self, attempt: Attempt, now: float) -> None:
        """Note that a second replica's first byte came before this one's, which has ended."""
        if learned := self._known.get(attempt.url):
            learned.outrun(attempt, now)

    def choose(
        self, model: str, *, streamed: bool, now: float, without: frozenset[str] = frozenset()
    ) -> Replica | UnknownModel | NoneUsable:
        """Return the replica for a request of which no more is known."""
        picked = self.pick(Need(model, streamed), now, without)
        assert not isinstance(picked, TextOnly)  # noqa: S101  # nothing is shown
        return picked.replica if isinstance(picked, Picked) else picked

    def begin(self, url: str, attempt: Attempt | None = None, now: float = 0.0) -> None:
        """Note that a request goes to the replica, as `pick` said; `end` must follow."""
        learned = self._known.get(url)
        if learned is None:
            return
        learned.begin(attempt, now)
        # Where a hedge was sent to, a conversation goes on only if it was the sooner one.
        if attempt is not None and attempt.need.session and not attempt.hedge:
            self._remember((attempt.need.model, attempt.need.session), url)

    def end(self, url: str, attempt: Attempt | None = None, now: float = 0.0) -> None:
        """Note that a request has left the replica, however it went."""
        if learned := self._known.get(url):
            learned.end(attempt, now)

    def first_byte(
        self, url: str, seconds: float, *, streamed: bool, now: float,
        attempt: Attempt | None = None,
    ) -> None:  # fmt: skip
        """Note that the replica began to answer after `seconds`: it serves requests.

        What that says of its speed is learned by `settle`, when the byte has been passed on.
        """
        learned = self._known.get(url)
        if learned is None:
            return
        if attempt is None:
            attempt = learned.attempt(Need("", streamed), 0.0, now - seconds, None)
        learned.first_byte(attempt, seconds, now)
        if attempt.hedge and attempt.need.session:
            self._remember((attempt.need.model, attempt.need.session), url)
        self._well(learned, now)

    def settle(self) -> None:
        """Learn from what was noted; the next choice does it if nobody did before."""
        for learned in self._known.values():
            learned.settle()

    def answered(self, attempt: Attempt, cost: Tokens | None, events: int, now: float) -> None:
        """Note the end of an answer that came whole, with so many events if it is a stream.

        One that does not say its cost is taken to have a token in each: servers send each as it
        comes.
        """
        learned = self._known.get(attempt.url)
        need = attempt.need
        if learned is None:
            return
        if cost is not None and cost.prompt and need.prompt_bytes:
            ratio = self._ratios.setdefault(need.model, BytesPerToken())
            ratio.learn(need.prompt_bytes, cost.prompt)
        if cost is not None and cost.cached is not None and attempt.cached_tokens:
            believed = attempt.cached_tokens / max(learned.prefixes.trust, 0.01)
            learned.prefixes.proved(cost.cached / believed)
        count = (cost.completion if cost is not None else 0) or events
        if need.streamed and attempt.first_at is not None:
            learned.prediction.tokens(count - 1, now - attempt.first_at, attempt.there, now)

    def fault(
        self, url: str, fault: Fault, reason: str, now: float, retry_after_s: float = 0.0
    ) -> None:
        """Note that a request failed; what follows is in the table of `breaker.py`."""
        if learned := self._known.get(url):
            learned.fault(fault, reason, now, retry_after_s)

    def lacks(self, url: str, kind: str, now: float) -> None:
        """Note that the replica said it does not serve this kind of request (404, 405, 501)."""
        if learned := self._known.get(url):
            learned.lacks(kind, now)

    def models(self, now: float) -> list[dict[str, Any]]:
        """Return what /v1/models says of each.

        Its id, when it was first seen, the largest context, the replicas, how many of them are
        usable, and whether any sees pictures.
        """
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
                    "sees": any(x.sees(model) for x in having),
                }
            )
        return entries

    def view(self, now: float) -> list[dict[str, Any]]:
        """Return one entry for each replica, for `gateway status`; times in seconds."""
        known = sorted(self._known.values(), key=lambda x: (x.replica.name, x.replica.url))
        return [learned.view(now) for learned in known]

    def _compared(
        self, need: Need, usable: Sequence[Learned], having: Sequence[Learned], now: float
    ) -> tuple[Sequence[Learned], dict[str, Attempt]]:
        """Return those of the usable that can serve a request, and how it would be at each."""
        self.settle()
        tokens = self._tokens(need)
        fitting = choice.fitting(need, tokens, usable, now)
        return fitting, choice.attempts(need, tokens, fitting, having, now)

    def _tokens(self, need: Need) -> float:
        """Return how many tokens a request's prompt has, as far as that can be told."""
        ratio = self._ratios.get(need.model)
        return need.prompt_bytes / (ratio or BytesPerToken()).value

    def _remember(self, session: tuple[str, str], url: str) -> None:
        self._sessions.pop(session, None)
        self._sessions[session] = url
        if len(self._sessions) > MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def _models(self) -> set[str]:
        return {model for learned in self._known.values() for model in learned.models}

    def _awaited(self, model: str, having: Iterable[Learned], now: float) -> bool:
        return self._well_lately(model, now) and not any(learned.up for learned in having)

    def _doubted(self, model: str, having: Iterable[Learned], now: float) -> tuple[Replica, ...]:
        if not self._well_lately(model, now):
            return ()
        return tuple(
            learned.replica for learned in having
            if learned.check is not False and learned.breaker.cooling_for is Fault.REFUSED
        )  # fmt: skip

    def _well_lately(self, model: str, now: float) -> bool:
        return now - self._well_at.get(model, -math.inf) < LATELY_S

    def _well(self, learned: Learned, now: float) -> None:
        for model in self._deployed.intersection(learned.models):
            self._well_at[model] = now

    def _see(self, models: Iterable[str], now: float) -> None:
        for model in models:
            self._first_seen.setdefault(model, now)
