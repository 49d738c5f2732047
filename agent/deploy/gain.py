"""Rings that answer move to where they would be faster, when that is worth the move.

For `rings.py`. While a ring is whole and nothing is wrong, its head plans again now and then, and
when a node comes; `agent.placement.gain` compares, `agent.placement.moving` judges. What the new
ring needs is fetched first, by the nodes that will have it. Then it moves in a moment in which
nobody is answered, or, where there is none for a while, with its answers: they wait for the seconds
in which stages load, and go on. A ring that is to move and cannot (a node drains, lacks, was lost
of late) stays, and is looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agent.config import Placement
from agent.deploy import ahead, answering
from agent.deploy.build import Build
from agent.deploy.carried import Carried
from agent.deploy.mesh import Mesh
from agent.deploy.planning import Own, Planning
from agent.deploy.ring import Deployment
from agent.errors import CoveyError
from agent.placement import gain
from agent.placement.gain import Gain
from agent.placement.inputs import Aims, Links, Model, Node
from agent.placement.moving import Verdict
from agent.placement.results import Plan, Stage

_log = logging.getLogger(__name__)

# A ring that has just come up is as it was planned; what follows a fault is over by then, too.
_SETTLED_S = 60.0
_LOOK_S = 60.0
# A better ring that was seen is looked at again sooner.
_AGAIN_S = 15.0
# So long before a move a moment is waited for in which nobody is answered.
_IDLE_WITHIN_S = 20.0
# A move is for hours. What takes longer to come is tried again later, and goes on from there.
_FETCH_WITHIN_S = 3_600.0
# A ring that lost a stage within this has other troubles.
_TROUBLE_S = 300.0

OwnAs = Callable[[Carried], Awaitable[Own]]
"""Returns this node as plans take it, as if a head were not there."""


@dataclass
class _Weighed:
    """Stands in a planning for the choice of a plan: keeps how that compares with `stages`.

    With many nodes a plan takes a second, so it is made anew only when something has changed.
    `begun`: the plan whose weights are being fetched.
    """

    stages: Sequence[Stage]
    horizon_tokens: float
    begun: Plan | None = None
    found: Gain | None = None
    _known: object = None

    def __call__(self, model: Model, nodes: Sequence[Node], aims: Aims, links: Links) -> Plan:
        aims = replace(aims, horizon_tokens=self.horizon_tokens)
        known = aims, gain.outline(nodes, links), self.begun
        if self.found is None or known != self._known:
            self.found = None
            self.found = gain.compared(model, nodes, aims, links, self.stages, self.begun)
            self._known = known
        return self.found.plan


class Gains:
    """Looks after the rings here that answer. `says(deployment, words)` hears what is known."""

    def __init__(
        self, settings: Placement, mesh: Mesh, own: OwnAs, says: Callable[[Deployment, str], None],
    ) -> None:  # fmt: skip
        self._mesh = mesh
        self._own = own
        self._says = says
        self._move: Literal["auto", "never"] = settings.move
        self._horizon_tokens = float(settings.horizon_tokens)
        self._news = asyncio.Event()

    def came(self) -> None:
        """Hear that a node came, or may be used again."""
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, deployment: Deployment, build: Build, url: str) -> None:
        """Watch one epoch; returns once it is to move, as `deployment.planned` says."""
        if deployment.wish.engine != "ring":
            return
        weighed = _Weighed(build.plan.stages if build.plan else (), self._horizon_tokens)
        await _pause(asyncio.Event(), _SETTLED_S)
        while True:
            news = self._news
            try:
                verdict, found = await self._look(deployment, build, weighed)
            except Exception:  # it is looked again; the ring itself has nothing
                _log.exception("deployment name=%s could not be compared", deployment.wish.name)
                deployment.moving.forget()
                verdict, found = Verdict(False, ""), None
            if verdict.moves and found is not None and self._move == "auto":
                weighed.begun = found.plan
                if await self._moved(deployment, build, url, weighed, found):
                    return
                weighed.begun = None
            elif verdict.moves:
                self._says(deployment, f"{verdict.words}; it stays, as placement.move says")
            else:
                self._says(deployment, verdict.words or deployment.moved)
            await _pause(news, _AGAIN_S if deployment.moving.waits else _LOOK_S)

    async def _look(
        self, deployment: Deployment, build: Build, weighed: _Weighed
    ) -> tuple[Verdict, Gain | None]:
        """Plan again with what is known now, and say what comes of it."""
        found = None
        if why := self._unsettled(deployment):
            _log.info("deployment name=%s is not compared: %s", deployment.wish.name, why)
        else:
            found = await self._gain(deployment, build, weighed)
        if found is None:
            deployment.moving.forget()
            return Verdict(False, ""), None
        verdict = deployment.moving.judge(
            found, time.monotonic(), horizon_tokens=self._horizon_tokens
        )
        return verdict, found

    async def _gain(self, deployment: Deployment, build: Build, weighed: _Weighed) -> Gain | None:
        wanted, head = build.asked_for, build.head
        if wanted is None or head is None or wanted.needs.uncut or not weighed.stages:
            return None
        if deployment.wish.rings > 1:
            return None  # one of them alone cannot tell what the others would leave it
        try:
            planning = Planning(
                deployment.wish, await self._own(Carried(head, frozenset())), self._mesh,
                lambda *_: None, ring=deployment.ring, weigh=weighed,
            )  # fmt: skip
            await planning.plan(wanted.needs, wanted.context)
        except CoveyError as error:
            _log.info("deployment name=%s is not compared: %s", deployment.wish.name, error.line())
            return None
        return weighed.found

    def _unsettled(self, deployment: Deployment) -> str:
        """Say why a ring may not move for a gain now; "" where it may."""
        build = deployment.build
        if deployment.phase != "ready" or build is None or deployment.again.is_set():
            return "it is being built"
        if build.missing:
            return "it runs without nodes that were asked for"
        if not build.carriable:
            return "llama.cpp's RPC cannot go on over other nodes"
        if self._mesh.draining() & deployment.nodes:
            return "a node of it drains"
        if deployment.losses.since(time.monotonic() - _TROUBLE_S):
            return f"it lost a stage within {_TROUBLE_S / 60:.0f} minutes"
        return ""

    async def _moved(
        self, deployment: Deployment, build: Build, url: str, weighed: _Weighed, found: Gain
    ) -> bool:
        """Get what the new ring needs, and have the ring move; say whether it does."""
        words = f"a better ring is known: {found.words}"
        self._says(deployment, f"{words}; its weights are being fetched")
        try:
            weights = await build.cut_ahead(found.plan)
            await ahead.fetch_all(
                self._mesh, deployment.ring, lambda: deployment.token, weights, _FETCH_WITHIN_S
            )
        except CoveyError as error:
            self._says(deployment, f"{words}; it stays: {error.line()}")
            deployment.moving.forget()
            return False
        self._says(deployment, f"{words}; moves when idle")
        await answering.until_idle(url, _IDLE_WITHIN_S)
        # Meanwhile a node may have gone, or what was measured may be another.
        verdict, still = await self._look(deployment, build, weighed)
        if not verdict.moves or still is None or still.plan.stages != found.plan.stages:
            self._says(deployment, verdict.words)
            return False
        left, to = _ids(weighed.stages), _ids(found.plan.stages)
        deployment.moving.moved(left, to, time.monotonic())
        _log.info("deployment name=%s moves for a gain: %s", deployment.wish.name, found.words)
        deployment.moved = f"it moved for {found.words}, as was predicted"
        self._says(deployment, deployment.moved)
        deployment.planned = found.plan
        deployment.moves = f"{found.words} over other nodes; its answers go on there"
        deployment.again.set()
        return True


def _ids(stages: Sequence[Stage]) -> frozenset[str]:
    return frozenset(stage.node for stage in stages)


async def _pause(news: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await news.wait()
