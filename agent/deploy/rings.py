"""The deployments whose head is this node, each kept true by a task of its own.

| phase | means | next |
|---|---|---|
| planning, cutting, loading, connecting | an epoch is being built | ready or ending |
| ready | the head answers | ending, when the ring breaks |
| ending | what is left of a broken epoch is taken down | waiting or failed |
| waiting | it broke or was not built (see `error`) | planning, after a pause or with a lost node |
| moving | it is built again while answers wait in its head | ready or waiting |
| failed | a new wish that cannot come true as it is | none, until it is undeployed |
| draining | it shall end here; no new requests are sent to it | gone |

A new epoch is a new build: frames and stages of an older one are dropped. When a ring breaks its
head lives on, and its answers with it: they wait, and go on over the next epoch, which is built at
once, without the node that was lost and over fewer than were wished for if need be. The
deployment's owner
says what to keep, with a token that this node granted; a ring goes on while no owner says anything.
Whether a token counts is for the caller to check.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent import endpoint
from agent.config import Config
from agent.deploy import heads
from agent.deploy.blobs import BlobServer
from agent.deploy.build import Build
from agent.deploy.carried import Carried, Losses
from agent.deploy.engines import Engines
from agent.deploy.heads import Head
from agent.deploy.mesh import Mesh
from agent.deploy.messages import AskFacts, HeadState
from agent.deploy.parts import Parts
from agent.deploy.planning import Measure, Own, node_of
from agent.deploy.wish import Wish
from agent.engine.gpu import SURVEY_TIMEOUT_S
from agent.engine.supervisor import Engine
from agent.errors import ConfigError, CoveyError, EngineError, ModelError, UsageError, to_wire
from agent.identity.keys import NodeId
from agent.ownership.lease import Token
from agent.ownership.owner import Phase, Report

_log = logging.getLogger(__name__)

# A broken ring is built again after this, then twice as long … up to the most.
_PAUSE_S, _MAX_PAUSE_S = 1.0, 30.0
# A ring that answered for so long is no longer the one that kept breaking.
_STABLE_S = 60.0
# A gateway learns within about 2 s that a head is no more announced; the rest is for answers that
# are being written.
DRAIN_S = 10.0
# A node that is there again is asked so often, with such pauses, until it says what it can hold.
_REGAIN_TRIES, _REGAIN_PAUSE_S, _REGAIN_TIMEOUT_S = 6, 2.0, 3.0

_REPORTED = {"ready": Phase.READY, "failed": Phase.FAILED}
_BROKEN = ("ending", "waiting", "draining", "moving")


@dataclass
class _Deployment:
    """A wish and how far it is."""

    wish: Wish
    token: Token
    ring: str
    phase: str = "planning"
    progress: str = "planning"
    error: CoveyError | None = None
    epoch: int = 0
    revision: int = 0
    build: Build | None = None
    task: asyncio.Task[None] | None = None
    drain: asyncio.Task[None] | None = None
    # It was possible once (it ran, or was stored), so whatever is wrong now may pass.
    possible: bool = False
    again: asyncio.Event = field(default_factory=asyncio.Event)
    carried: Carried | None = None
    losses: Losses = field(default_factory=Losses)
    regain: asyncio.Task[None] | None = None

    @property
    def report(self) -> Report:
        """How it is, for its owner."""
        waiting = Phase.WAITING if self.phase in _BROKEN else Phase.BUILDING
        return Report(_REPORTED.get(self.phase, waiting), self.revision)


class _Moves(Exception):
    """A ring that answers is to be built again, since more nodes are there than when it was."""


class Rings:
    """All deployments whose head is here."""

    def __init__(
        self, settings: Config, own: NodeId, name: str, engines: Engines, blobs: BlobServer,
        mesh: Mesh, changed: Callable[[], None], measure: Measure | None = None,
    ) -> None:  # fmt: skip
        """`changed` is called when a deployment here turns to another phase, comes or goes;
        `measure` has this node's links measured.
        """
        self._settings = settings
        self._own = own
        self._name = name
        self._engines = engines
        self._blobs = blobs
        self._parts = Parts(settings.state_dir / "parts")
        self._mesh = mesh
        self._changed = changed
        self._measure = measure
        self._deployments: dict[str, _Deployment] = {}
        self._revision = 0
        self._came: dict[NodeId, float] = {}
        self._announcing = asyncio.Lock()

    async def keep(self, wish: Wish, token: Token, *, proven: bool) -> HeadState:
        """Begin to run a wish, or go on; returns how it is. Raises UsageError.

        The same wish by a new token is the same ring: nothing is built again. A newer wish of the
        same name replaces an older one. `proven` says that it was possible before.
        """
        known = self._deployments.get(wish.name)
        if known is not None and known.wish.rank > wish.rank:
            raise UsageError(f"a newer wish for {wish.name} is kept here already")
        if known is not None and known.phase == "draining":
            raise UsageError(f"{wish.name} is being ended here", hint="Try again in a moment.")
        if known is None or known.wish != wish:
            names = {*self._deployments, wish.name}
            heads.encode([Head(name, 65535, 2**20, "x" * 8) for name in names])
            if known is not None:
                await self._end(known)
            known = self._start(wish, token)
        known.token = token
        known.possible |= proven
        return self.state(wish.name)

    def drop(self, name: str) -> HeadState:
        """Begin to end a deployment that runs elsewhere; answers that are being written go on."""
        known = self._deployments.get(name)
        if known is not None and known.phase != "draining":
            pause_s = DRAIN_S if known.phase == "ready" else 0.0
            known.drain = asyncio.create_task(self._drain(known, pause_s), name=f"drain {name}")
            self._to(known, "draining", "it runs elsewhere; the last answers are written here")
        return self.state(name)

    async def end(self, name: str) -> None:
        """End a deployment on all its nodes, at once; harmless where it does not run."""
        known = self._deployments.get(name)
        if known is not None:
            await self._end(known)

    def names(self) -> dict[str, Wish]:
        """Return what is kept here, and by which wish."""
        return {name: known.wish for name, known in self._deployments.items()}

    def running(self) -> dict[str, Report]:
        """Return how each is, for its owner."""
        return {name: known.report for name, known in self._deployments.items()}

    def state(self, name: str) -> HeadState:
        """Describe a deployment; its phase is "" where it does not run here."""
        known = self._deployments.get(name)
        if known is None:
            return HeadState(name)
        built = known.build
        url = ""
        if known.phase in ("ready", "draining") and built is not None and built.head is not None:
            url = f"http://{endpoint.join(self._engines.own_address, built.head.http_port)}"
        return HeadState(
            name, known.phase, known.progress, known.revision,
            wish=(str(known.wish.author_id), known.wish.generation), token=known.token,
            ring=known.ring, epoch=known.epoch, context=built.context if built else 0,
            stages=built.placed if built else (), reasons=built.reasons if built else (), url=url,
            error=to_wire(known.error) if known.error else None,
        )  # fmt: skip

    def came(self, node: NodeId) -> None:
        """Hear that a node is there (again): what waits and lacks it is built at once."""
        self._came[node] = time.monotonic()
        for deployment in self._deployments.values():
            if deployment.phase == "waiting" and self._lacks(deployment, node):
                deployment.again.set()
            missing = deployment.build.missing if deployment.build is not None else 0
            idle = deployment.regain is None or deployment.regain.done()
            if deployment.phase == "ready" and missing and idle:
                deployment.regain = asyncio.create_task(
                    self._regain(deployment, node), name=f"regain {deployment.wish.name}"
                )

    async def own(self) -> Own:
        """Return this node as plans take it; EngineError while its GPUs are not known yet."""
        facts = await self._engines.hardware.facts(SURVEY_TIMEOUT_S)
        member = self._mesh.find(self._own)
        tags = member.certificate.tags if member is not None else ()
        return Own(node_of(self._own, self._name, facts, tags), facts.links, self._measure)

    def partners(self) -> set[NodeId]:
        """Return the nodes that hold stages of the rings here, this one too."""
        plans = [d.build.plan for d in self._deployments.values() if d.build is not None]
        return {NodeId.parse(stage.node) for plan in plans if plan for stage in plan.stages}

    def engines(self) -> list[dict[str, Any]]:
        """Describe the heads that run here, for `agent status`."""
        return [
            {"ring": d.ring, "what": f"head of {d.wish.name}", "phase": d.phase,
             "head": str(self._own), "message": d.progress,
             "runs_on": d.build.runs_on.get(str(self._own), "") if d.build else ""}
            for d in self._deployments.values()
        ]  # fmt: skip

    async def stop(self) -> None:
        """End all rings."""
        await asyncio.gather(*(self._end(known) for known in list(self._deployments.values())))

    # ------------------------------------------------------------------ inside

    def _start(self, wish: Wish, token: Token) -> _Deployment:
        identity = hashlib.sha256(self._own.ed25519 + wish.name.encode()).hexdigest()[:32]
        deployment = _Deployment(wish, token, ring=identity)
        self._deployments[wish.name] = deployment
        self._to(deployment, "planning", "planning")
        deployment.task = asyncio.create_task(self._keep(deployment), name=wish.name)
        self._changed()
        return deployment

    async def _end(self, deployment: _Deployment) -> None:
        for task in (deployment.drain, deployment.regain, deployment.task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._forget(deployment)

    async def _regain(self, deployment: _Deployment, node: NodeId) -> None:
        """Have a ring that lacks nodes built again once this one says that it can hold a stage."""
        for _ in range(_REGAIN_TRIES):
            try:
                await self._mesh.ask(node, AskFacts(), _REGAIN_TIMEOUT_S)
            except CoveyError as error:
                _log.info("deployment name=%s node=%s is not ready yet: %s", deployment.wish.name,
                          node, error.line())  # fmt: skip
                await asyncio.sleep(_REGAIN_PAUSE_S)
            else:
                deployment.again.set()
                return

    async def _drain(self, deployment: _Deployment, pause_s: float) -> None:
        try:
            await self._announce()
        except CoveyError as error:
            _log.info("deployment name=%s stays announced: %s", deployment.wish.name, error.line())
        await asyncio.sleep(pause_s)
        if deployment.task is not None:
            deployment.task.cancel()
            await asyncio.wait([deployment.task])
        self._forget(deployment)

    def _forget(self, deployment: _Deployment) -> None:
        if self._deployments.get(deployment.wish.name) is deployment:
            del self._deployments[deployment.wish.name]
            _log.info("deployment name=%s is ended here", deployment.wish.name)
            self._changed()

    def _to(self, deployment: _Deployment, phase: str, progress: str) -> None:
        """Move on; one log line for each change of phase."""
        if deployment.phase == "draining":
            phase, progress = deployment.phase, deployment.progress
        moved = deployment.phase != phase
        if moved or deployment.progress != progress:
            # Larger than any before, also for a name that was ended here and came again.
            self._revision += 1
            deployment.revision = self._revision
        deployment.phase, deployment.progress = phase, progress
        if moved:
            _log.info("deployment name=%s epoch=%d %s", deployment.wish.name, deployment.epoch,
                      phase)  # fmt: skip
            self._changed()

    async def _keep(self, deployment: _Deployment) -> None:
        """Keep one deployment true until it is cancelled, or turns out to be impossible."""
        try:
            await self._keep_on(deployment)
        finally:
            if deployment.carried is not None:
                await deployment.carried.engine.stop()

    async def _keep_on(self, deployment: _Deployment) -> None:
        pause_s = _PAUSE_S
        while True:
            # Later than any epoch of this ring before, also across a restart of the agent.
            deployment.epoch = max(deployment.epoch + 1, int(time.time()))
            began = time.monotonic()
            answered = False
            try:
                await self._run_epoch(deployment)
            except _Moves:
                self._to(deployment, "moving", "more nodes are there; its answers go on over them")
                continue
            except CoveyError as error:
                if deployment.phase == "draining":
                    return
                # What had come up has no error of its building any more.
                answered = deployment.error is None and deployment.possible
                deployment.error = error
                hopeless = isinstance(error, UsageError | ModelError | ConfigError)
                if hopeless and not deployment.possible:
                    self._to(deployment, "failed", error.line())
                    return
                if time.monotonic() - began > _STABLE_S or self._returned(deployment, began):
                    pause_s = _PAUSE_S
                _log.warning("deployment name=%s epoch=%d broke: %s", deployment.wish.name,
                             deployment.epoch, error.line())  # fmt: skip
                deployment.again.clear()
                if answered and deployment.carried is not None:
                    self._to(deployment, "moving", f"{error.line()} Its answers wait.")
                    continue
                words = f"{error.line()} It is built again in {pause_s:.0f} s."
                self._to(deployment, "waiting", words)
            if await self._pause(deployment, pause_s):
                pause_s = _PAUSE_S
            else:
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _pause(self, deployment: _Deployment, seconds: float) -> bool:
        """Wait so long; True at once, or almost, when a node that it lacks is there again."""
        waits = [asyncio.create_task(asyncio.sleep(seconds)),
                 asyncio.create_task(deployment.again.wait())]  # fmt: skip
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return deployment.again.is_set()

    def _lacks(self, deployment: _Deployment, node: NodeId) -> bool:
        """Say whether a node was in the broken ring, or may be what no ring could be made for."""
        plan = deployment.build.plan if deployment.build is not None else None
        return plan is None or str(node) in {stage.node for stage in plan.stages}

    def _returned(self, deployment: _Deployment, began: float) -> bool:
        """Say whether a node of the broken ring came back since; then it is not the ring's fault.

        A stage that is gone may be missed only when its node is there again and says so.
        """
        return any(at > began and self._lacks(deployment, node) for node, at in self._came.items())

    async def _run_epoch(self, deployment: _Deployment) -> None:
        """Build an epoch and serve it until it breaks; always raises, or is cancelled."""
        own = await self.own()
        now = time.monotonic()
        carried, deployment.carried = deployment.carried, None
        build = deployment.build = Build(
            deployment.wish, deployment.ring, deployment.epoch, settings=self._settings, own=own,
            engines=self._engines, blobs=self._blobs, parts=self._parts, mesh=self._mesh,
            progress=lambda phase, progress: self._to(deployment, phase, progress),
            token=lambda: deployment.token, carried=carried, fewer=deployment.possible,
            without=deployment.losses.repeated(now, lambda node: self._came.get(node, 0.0)),
        )  # fmt: skip
        try:
            head = await build.up()
            deployment.error = None
            deployment.possible = True
            deployment.again.clear()
            self._to(deployment, "ready", "answers")
            await self._announce()
            raise await self._over(deployment, head)
        except (CoveyError, _Moves):
            if (lost := build.lost) is not None:
                deployment.losses.add(lost, time.monotonic())
            if deployment.phase != "draining":
                deployment.carried = build.carry()
            raise
        finally:
            if deployment.carried is None:
                self._to(deployment, "ending", "ending what is left of it")
            await build.down()
            await self._announce()

    async def _over(self, deployment: _Deployment, head: Engine) -> Exception:
        """Wait until an epoch ends: its head's reason, or that it is to move to more nodes."""
        ended = asyncio.create_task(head.wait_ended())
        again = asyncio.create_task(deployment.again.wait())
        try:
            await asyncio.wait([ended, again], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in (ended, again):
                if not wait.done():
                    wait.cancel()
        if ended.done():
            return ended.result() or EngineError(f"the head of {deployment.wish.name} ended")
        return _Moves()

    async def _announce(self) -> None:
        """Tell what answers now; one at a time, so that an older list never follows a newer one."""
        async with self._announcing:
            await self._mesh.announce_heads(
                [
                    Head(d.wish.name, d.build.head.http_port, d.build.context, d.ring)
                    for d in self._deployments.values()
                    if d.phase == "ready" and d.build is not None and d.build.head is not None
                ]
            )
