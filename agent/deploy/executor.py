"""What an owner does: it tells head nodes what to keep and what to end, and knows how they are.

One task for each deployment that this node owns, so that a slow head holds up nobody else. It acts
only while the lease is valid by this node's clock, and each command carries the lease's token, by
which the head refuses what comes too late. A head that answers is told to end once the one that is
meant answers too. Used by `deployments.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.deploy.keeper import BookKeeper
from agent.deploy.messages import Answer, AskHead, Drop, HeadState, Keep, Request
from agent.deploy.ringkey import split
from agent.deploy.wish import Wish
from agent.errors import CoveyError, NotRunning, PeerError
from agent.identity.keys import NodeId
from agent.ownership.lease import Token
from agent.ownership.owner import Holding, Phase

_log = logging.getLogger(__name__)

_POLL_S = 0.5
_ASK_TIMEOUT_S = 5.0
_RETRY_S = 1.0
_ADOPT_INTERVAL_S = 10.0
# A head that is just losing or gaining its owner refuses once or twice; that is no news for people.
_PATIENCE_S = 5.0
# A head that has nothing of what it was told to keep is told again.
_REPEAT_S = 3.0
# A node that has part in another ring of a deployment is asked again so much later: that may end.
AVOID_S = 30.0
# A wish that nobody could fulfil within this is an old one: what is wrong may pass.
_YOUNG_S = 60.0

Ask = Callable[[NodeId, Request, float], Awaitable[Answer]]


class Leases(Protocol):
    """What the executor needs of ownership."""

    def owned(self) -> dict[str, tuple[Holding, ...]]:
        """Return the leases on which this node may act now."""


@dataclass
class Care:
    """What an owner knows of one deployment; `states` by head."""

    states: dict[NodeId, HeadState] = field(default_factory=dict)
    error: CoveyError | None = None
    failing_since: float = 0.0
    told: dict[NodeId, tuple[Token, Wish | None, bool]] = field(default_factory=dict)
    told_at: float = 0.0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Executor:
    """Keeps the deployments true that this node owns."""

    def __init__(self, leases: Leases, keeper: BookKeeper, ask: Ask) -> None:
        """`ask` reaches this node too."""
        self._leases = leases
        self._keeper = keeper
        self._ask = ask
        self._cares: dict[str, Care] = {}
        self._taken: dict[str, dict[NodeId, float]] = {}  # until when, by ring's key
        self._news = asyncio.Event()

    def avoided(self) -> dict[str, frozenset[NodeId]]:
        """Return the nodes that refused a ring lately as they have part in another, by its key."""
        now = time.monotonic()
        found = {}
        for key, nodes in list(self._taken.items()):
            for node in [node for node, until in nodes.items() if until < now]:
                del nodes[node]
            if nodes:
                found[key] = frozenset(nodes)
            else:
                del self._taken[key]
        return found

    def changed(self) -> None:
        """Say that leases, rings or wishes have changed."""
        self._news.set()
        for care in self._cares.values():
            care.news.set()

    def state(self, name: str, head: NodeId) -> HeadState | None:
        """Return how a deployment was at a head when it was last asked."""
        care = self._cares.get(name)
        return care.states.get(head) if care else None

    def error(self, name: str) -> CoveyError | None:
        """Return why a head does not do what it was told; None while it may be the first times."""
        care = self._cares.get(name)
        if care is None or care.error is None:
            return None
        return care.error if time.monotonic() - care.failing_since > _PATIENCE_S else None

    async def follow(self) -> None:
        """Take care of what is owned; runs until it is cancelled."""
        adopt_at = 0.0
        try:
            while True:
                self._news.clear()
                owned = self._leases.owned()
                self._cares = {n: care for n, care in self._cares.items() if not _ended(n, care)}
                for name in owned.keys() - self._cares.keys():
                    care = self._cares[name] = Care()
                    care.task = asyncio.create_task(self._care(name, care), name=f"care {name}")
                if time.monotonic() >= adopt_at:
                    adopt_at = time.monotonic() + _ADOPT_INTERVAL_S
                    await self._keeper.adopt_orphans(owned)
                await _wait(self._news)
        finally:
            tasks = [care.task for care in self._cares.values() if care.task]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._cares.clear()

    async def _care(self, name: str, care: Care) -> None:
        """Act on one deployment as long as this node owns it."""
        while holdings := self._leases.owned().get(name):
            care.news.clear()
            care.states = {h: s for h, s in care.states.items() if h in {x.head for x in holdings}}
            for holding in holdings:
                try:
                    await self._act(name, care, holding)
                    care.error = None
                except CoveyError as error:
                    if care.error is None:
                        care.failing_since = time.monotonic()
                    _log.info("deployment name=%s head=%s: %s", name, holding.head, error.line())
                    care.error = error
                    if holding.head not in self._taken.get(name, {}):
                        await asyncio.sleep(_RETRY_S)
            await _wait(care.news)

    async def _act(self, name: str, care: Care, holding: Holding) -> None:
        """Command or ask one head if there is reason to. Raises CoveyError."""
        deployment, number = split(name)
        wish = self._keeper.book.find(deployment)
        if wish is not None and number > wish.rings:
            wish = None  # of a wish before this one
        owned = self._leases.owned().get(name, ())
        if not any(h.head == holding.head for h in owned):
            return
        keep = holding.main and wish is not None and not wish.removed
        if not keep and holding.report.phase == Phase.NONE:
            return
        ready = [h for h in owned if h.report.phase == Phase.READY]
        proven = keep and wish is not None and self._proven(wish, holding, ready)
        told = care.told.get(holding.head)
        proven |= keep and told == (holding.token, wish, True)
        command = (holding.token, wish if keep else None, proven)
        none = holding.report.phase == Phase.NONE
        forgotten = keep and none and time.monotonic() - care.told_at > _REPEAT_S
        if told != command or forgotten:
            if keep and none and not holding.sure:
                return  # the head before may only be cut off, with its ring running
            answers = any(h.head == holding.head for h in ready)
            wished = wish is not None and not wish.removed
            if not keep and answers and wished and not any(h.main for h in ready):
                state = await self._state_of(name, care, holding)
                if wish is not None and _runs(state, wish):
                    return  # it goes on until the head that is meant answers
            request: Request
            if keep and wish is not None:
                request = Keep(wish.encode(), holding.token, proven, number)
            else:
                request = Drop(name, holding.token)
            state = await self._tell(holding.head, request)
            if state.phase == "taken":
                self._taken.setdefault(name, {})[holding.head] = time.monotonic() + AVOID_S
                raise NotRunning(state.progress, hint="Another node is looked for.")
            care.states[holding.head] = state
            care.told[holding.head], care.told_at = command, time.monotonic()
            return
        await self._state_of(name, care, holding)

    def _proven(self, wish: Wish, holding: Holding, ready: Sequence[Holding]) -> bool:
        """Say whether a wish is known to be possible: it was before, or it answers elsewhere."""
        old = self._keeper.restored(wish) or time.time() - wish.at > _YOUNG_S
        return old or any(other.head != holding.head for other in ready)

    async def _state_of(self, name: str, care: Care, holding: Holding) -> HeadState:
        """Return how a head is, asked anew if that has changed."""
        known = care.states.get(holding.head)
        if known is None or known.revision != holding.report.revision:
            known = care.states[holding.head] = await self._tell(holding.head, AskHead(name))
        return known

    async def _tell(self, head: NodeId, request: Request) -> HeadState:
        answer = await self._ask(head, request, _ASK_TIMEOUT_S)
        if not isinstance(answer, HeadState):
            raise PeerError(f"node …{head.short} answered {type(answer).__name__}")
        return answer


async def _wait(news: asyncio.Event) -> None:
    """Wait until something is different, and for half a second at most."""
    try:
        async with asyncio.timeout(_POLL_S):
            await news.wait()
    except TimeoutError:
        return


def _runs(state: HeadState, wish: Wish) -> bool:
    """Say whether a head runs this wish, and not an older one of its name."""
    return state.wish == (str(wish.author_id), wish.generation)


def _ended(name: str, care: Care) -> bool:
    if care.task is None or not care.task.done():
        return False
    if not care.task.cancelled() and (error := care.task.exception()) is not None:
        _log.error("the care for deployment name=%s failed", name, exc_info=error)
    return True
