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
once, without the node that was lost and over fewer than were wished for if need be. It moves in the
same way when a node of it drains, and for a gain (`gain.py`). The deployment's owner says what to
keep, with a token that this node granted; a ring goes on while no owner says anything. Whether a
token counts is for the caller to check.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from agent import endpoint
from agent.config import Config
from agent.deploy import answering, heads, leaving
from agent.deploy.blobs import BlobServer
from agent.deploy.build import Build
from agent.deploy.carried import Carried
from agent.deploy.engines import Engines
from agent.deploy.gain import Gains
from agent.deploy.heads import Head
from agent.deploy.mesh import Mesh
from agent.deploy.messages import HeadState, RingHere
from agent.deploy.parts import PARTS, Parts
from agent.deploy.planning import Measure, Own, node_of
from agent.deploy.regain import Regain
from agent.deploy.ring import Deployment, ring_id
from agent.deploy.ringkey import key_of
from agent.deploy.stored import Stored
from agent.deploy.wish import Wish
from agent.engine.gpu import SURVEY_TIMEOUT_S
from agent.engine.supervisor import Engine
from agent.errors import ConfigError, CoveyError, EngineError, ModelError, UsageError, to_wire
from agent.identity.keys import NodeId
from agent.ownership.lease import Token
from agent.ownership.owner import Report

_log = logging.getLogger(__name__)

# A broken ring is built again after this, then twice as long … up to the most.
_PAUSE_S, _MAX_PAUSE_S = 1.0, 30.0
# A ring that answered for so long is no longer the one that kept breaking.
_STABLE_S = 60.0
# A gateway learns within about 2 s that a head is no more announced.
UNANNOUNCED_S = 3.0
# A head that runs elsewhere too ends once its last answer is written: the longest take minutes.
LAST_ANSWERS_S = 600.0


class _Moves(Exception):
    """A ring that answers is to be built again, over other nodes than now."""


class Rings:
    """All deployments whose head is here."""

    def __init__(
        self, settings: Config, own: NodeId, name: str, engines: Engines, blobs: BlobServer,
        mesh: Mesh, changed: Callable[[], None], measure: Measure | None = None,
        stored: Stored | None = None, doubted: Callable[[], frozenset[NodeId]] = frozenset,
    ) -> None:  # fmt: skip
        """`changed` is called when a deployment here turns to another phase, comes or goes;
        `measure` has this node's links measured; `stored` has models by their ids; `doubted` tells
        which members may have died a moment ago.
        """
        self._settings = settings
        self._own = own
        self._name = name
        self._engines = engines
        self._blobs = blobs
        self._parts = Parts(settings.state_dir / PARTS)
        self._mesh = mesh
        self._changed = changed
        self._measure = measure
        self._stored = stored
        self._doubted = doubted
        self._deployments: dict[str, Deployment] = {}
        self._revision = 0
        self._regain = Regain(mesh)
        self._gains = Gains(settings.placement, mesh, self.own, self._gain)
        self._draining: frozenset[NodeId] = frozenset()
        self._announcing = asyncio.Lock()

    async def keep(
        self, wish: Wish, token: Token, *, proven: bool, number: int = 1
    ) -> HeadState:  # fmt: skip
        """Begin to run ring `number` of a wish, or go on; returns how it is. Raises UsageError.

        The same wish by a new token is the same ring: nothing is built again. A newer wish of the
        same name replaces an older one. `proven` says that it was possible before.
        """
        key = key_of(wish.name, number)
        known = self._deployments.get(key)
        if known is not None and known.wish.rank > wish.rank:
            raise UsageError(f"a newer wish for {wish.name} is kept here already")
        if known is not None and known.phase == "draining":
            if known.wish != wish or not self._resume(known):
                raise UsageError(f"{key} is being ended here", hint="Try again in a moment.")
            await self._announce()
        if known is None or known.wish != wish:
            names = [d.wish.name for other, d in self._deployments.items() if other != key]
            heads.encode([Head(name, 65535, 2**20, "x" * 8) for name in (*names, wish.name)])
            if known is not None:
                await self._end(known)
            known = self._start(wish, token, number)
        known.token = token
        # Several rings were planned before they were wished for; one that finds no room may yet.
        known.possible |= proven or wish.rings > 1
        return self.state(key)

    def drop(self, name: str) -> HeadState:
        """Begin to end a ring that runs elsewhere; answers that are being written go on.

        Here and below `name` is the ring's key.
        """
        known = self._deployments.get(name)
        if known is not None and known.phase != "draining":
            answers = known.phase in ("ready", "moving")
            known.drain = asyncio.create_task(self._drain(known, answers), name=f"drain {name}")
            self._to(known, "draining", "it runs elsewhere; the last answers are written here")
        return self.state(name)

    async def end(self, name: str) -> None:
        """End a deployment on all its nodes, at once; harmless where it does not run."""
        known = self._deployments.get(name)
        if known is not None:
            await self._end(known)

    def names(self) -> dict[str, Wish]:
        """Return the keys of what is kept here, and by which wish."""
        return {name: known.wish for name, known in self._deployments.items()}

    def of(self, name: str) -> list[RingHere]:
        """Return the rings of deployment `name` whose head is here, for the heads of others."""
        return [d.here for d in self._deployments.values() if d.wish.name == name]

    async def make_room(self, name: str, number: int) -> None:
        """End the rings of a deployment that have no plan here, but for this one of them."""
        for deployment in list(self._deployments.values()):
            if deployment.wish.name == name and deployment.number != number:
                if deployment.here.nodes:
                    continue
                _log.info("deployment name=%s makes room for ring %d", deployment.key, number)
                await self._end(deployment)

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
            error=to_wire(known.error) if known.error else None, stays=known.stays,
            gain=known.gain,
        )  # fmt: skip

    def draining_changed(self) -> None:
        """Hear that a node drains, or does not any more: rings leave it, or use it again."""
        before, self._draining = self._draining, self._mesh.draining()
        for node in before - self._draining - {self._own}:
            self.came(node)
        for deployment in self._deployments.values():
            self._leave_draining(deployment)

    def came(self, node: NodeId) -> None:
        """Hear that a node is there (again): what waits and lacks it is built at once."""
        self._regain.came(node)
        self._gains.came()
        for deployment in self._deployments.values():
            if deployment.phase == "waiting" and deployment.lacks(node):
                deployment.again.set()
            self._regain.begin(deployment, node)

    async def own(self, carried: Carried | None = None) -> Own:
        """Return this node as plans take it; EngineError while its GPUs are not known yet.

        What a head that is carried over holds counts as free, and who lost its stage is doubted.
        """
        facts = await self._engines.hardware.facts(SURVEY_TIMEOUT_S)
        doubted = self._doubted()
        if carried is not None:
            doubted |= frozenset({carried.lost} if carried.lost else ())
            free = self._engines.hardware.free_without([carried.engine.pid])
            facts = msgspec.structs.replace(facts, free_bytes=free)
        member = self._mesh.find(self._own)
        tags = member.certificate.tags if member is not None else ()
        node = node_of(self._own, self._name, facts, tags)
        return Own(node, facts.links, self._measure, doubted)

    def partners(self) -> set[NodeId]:
        """Return the nodes that hold stages of the rings here, this one too."""
        plans = [d.build.plan for d in self._deployments.values() if d.build is not None]
        return {NodeId.parse(stage.node) for plan in plans if plan for stage in plan.stages}

    def engines(self) -> list[dict[str, Any]]:
        """Describe the heads that run here, for `agent status`."""
        return [
            {"ring": d.ring, "what": f"head of {d.key}", "phase": d.phase,
             "head": str(self._own), "message": d.progress,
             "runs_on": d.build.runs_on.get(str(self._own), "") if d.build else ""}
            for d in self._deployments.values()
        ]  # fmt: skip

    async def stop(self) -> None:
        """End all rings."""
        await asyncio.gather(*(self._end(known) for known in list(self._deployments.values())))

    # ------------------------------------------------------------------ inside

    def _start(self, wish: Wish, token: Token, number: int) -> Deployment:
        key = key_of(wish.name, number)
        deployment = Deployment(wish, token, ring=ring_id(self._own, key), number=number)
        self._deployments[key] = deployment
        self._to(deployment, "planning", "planning")
        deployment.task = asyncio.create_task(self._keep(deployment), name=key)
        self._changed()
        return deployment

    async def _end(self, deployment: Deployment) -> None:
        for task in (deployment.drain, deployment.regain, deployment.leave, deployment.task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._forget(deployment)

    def _leave_draining(self, deployment: Deployment) -> None:
        idle = deployment.leave is None or deployment.leave.done()
        if idle and self._leaving(deployment) and deployment.build is not None:
            deployment.leave = asyncio.create_task(
                self._leave(deployment, deployment.build), name=f"leave {deployment.key}"
            )

    def _leaving(self, deployment: Deployment) -> tuple[str, ...]:
        """Return the names of the draining nodes that a ring that answers has stages on."""
        draining = {str(node) for node in self._mesh.draining() - {self._own}}
        return deployment.names_in(draining) if deployment.phase == "ready" else ()

    async def _leave(self, deployment: Deployment, build: Build) -> None:
        """Have a ring that answers built again without its draining nodes, once it can be."""
        try:
            url = self.state(deployment.key).url
            why = await leaving.until_it_may(
                build, url, lambda: self._leaving(deployment),
                lambda why: self._stays(deployment, why),
            )  # fmt: skip
            if why:
                deployment.moves = why
                deployment.again.set()
        finally:
            self._stays(deployment, "")

    def _stays(self, deployment: Deployment, why: str) -> None:
        if deployment.stays != why:
            deployment.stays = why
            self._revise(deployment)
            self._changed()

    def _gain(self, deployment: Deployment, words: str) -> None:
        if deployment.gain != words:
            deployment.gain = words
            if words:
                _log.info("deployment name=%s %s", deployment.key, words)
            self._revise(deployment)
            self._changed()

    def _resume(self, deployment: Deployment) -> bool:
        """Have a deployment that was to end go on, if it still answers; say whether it does."""
        if not deployment.answers or deployment.drain is None or deployment.ending:
            return False
        deployment.drain.cancel()
        deployment.drain, deployment.phase, deployment.progress = None, "ready", "answers"
        self._revise(deployment)
        self._changed()
        return True

    async def _drain(self, deployment: Deployment, answers: bool) -> None:
        try:
            await self._announce()
        except CoveyError as error:
            _log.info("deployment name=%s stays announced: %s", deployment.key, error.line())
        if answers:
            await asyncio.sleep(UNANNOUNCED_S)
            url = self.state(deployment.key).url
            if url and not await answering.until_idle(url, LAST_ANSWERS_S):
                _log.warning("deployment name=%s is ended with answers being written",
                             deployment.key)  # fmt: skip
        deployment.ending = True
        if deployment.task is not None:
            deployment.task.cancel()
            await asyncio.wait([deployment.task])
        self._forget(deployment)

    def _forget(self, deployment: Deployment) -> None:
        if self._deployments.get(deployment.key) is deployment:
            del self._deployments[deployment.key]
            _log.info("deployment name=%s is ended here", deployment.key)
            self._changed()

    def _to(self, deployment: Deployment, phase: str, progress: str) -> None:
        """Move on; one log line for each change of phase."""
        if deployment.phase == "draining":
            phase, progress = deployment.phase, deployment.progress
        moved = deployment.phase != phase
        if moved or deployment.progress != progress:
            self._revise(deployment)
        deployment.phase, deployment.progress = phase, progress
        if moved:
            _log.info("deployment name=%s epoch=%d %s", deployment.key, deployment.epoch, phase)
            self._changed()

    def _revise(self, deployment: Deployment) -> None:
        # Larger than any before, also for a name that was ended here and came again.
        self._revision += 1
        deployment.revision = self._revision

    async def _keep(self, deployment: Deployment) -> None:
        """Keep one deployment true until it is cancelled, or turns out to be impossible."""
        try:
            await self._keep_on(deployment)
        finally:
            if deployment.carried is not None:
                await deployment.carried.engine.stop()

    async def _keep_on(self, deployment: Deployment) -> None:
        pause_s = _PAUSE_S
        while True:
            # Later than any epoch of this ring before, also across a restart of the agent.
            deployment.epoch = max(deployment.epoch + 1, int(time.time()))
            began = time.monotonic()
            answered = False
            try:
                await self._run_epoch(deployment)
            except _Moves:
                self._to(deployment, "moving", deployment.moves)
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
                if time.monotonic() - began > _STABLE_S or self._regain.returned(deployment, began):
                    pause_s = _PAUSE_S
                _log.warning("deployment name=%s epoch=%d broke: %s", deployment.key,
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

    async def _pause(self, deployment: Deployment, seconds: float) -> bool:
        """Wait so long; True at once, or almost, when a node that it lacks is there again."""
        waits = [asyncio.create_task(asyncio.sleep(seconds)),
                 asyncio.create_task(deployment.again.wait())]  # fmt: skip
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return deployment.again.is_set()

    async def _run_epoch(self, deployment: Deployment) -> None:
        """Build an epoch and serve it until it breaks; always raises, or is cancelled."""
        began = time.monotonic()
        own = await self.own(deployment.carried)
        carried, deployment.carried = deployment.carried, None
        planned, deployment.planned = deployment.planned, None
        build = deployment.build = Build(
            deployment.wish, deployment.ring, deployment.epoch, settings=self._settings, own=own,
            engines=self._engines, blobs=self._blobs, parts=self._parts, mesh=self._mesh,
            progress=lambda phase, progress: self._to(deployment, phase, progress),
            token=lambda: deployment.token, carried=carried, fewer=deployment.possible,
            without=self._regain.left_out(deployment),
            kept=deployment.held, stored=self._stored, number=deployment.number, plan=planned,
        )  # fmt: skip
        try:
            head = await build.up()
            deployment.error = None
            deployment.possible = True
            deployment.again.clear()
            self._to(deployment, "ready", "answers")
            deployment.answers, deployment.held = True, deployment.nodes
            await self._announce()
            self._leave_draining(deployment)
            for node in self._regain.since(began):  # while it was built without that one
                self._regain.begin(deployment, node)
            raise await self._over(deployment, build, head)
        except (CoveyError, _Moves) as over:
            if (lost := build.lost) is not None and not isinstance(over, _Moves):
                deployment.losses.add(lost, time.monotonic())
            if not isinstance(over, _Moves):
                deployment.planned = None  # it was meant for the ring as it was
            if deployment.phase != "draining":
                deployment.carried = build.carry()
            raise
        finally:
            deployment.answers = False
            if deployment.leave is not None:
                deployment.leave.cancel()
            if deployment.carried is None:
                self._to(deployment, "ending", "ending what is left of it")
            await build.down()
            if deployment.carried is None:
                await self._announce()

    async def _over(self, deployment: Deployment, build: Build, head: Engine) -> Exception:
        """Wait until an epoch ends: its head's reason, or that it is to move to more nodes."""
        ended = asyncio.create_task(head.wait_ended())
        again = asyncio.create_task(deployment.again.wait())
        more = asyncio.create_task(self._regain.look(deployment), name=f"more {deployment.key}")
        gain = asyncio.create_task(
            self._gains.follow(deployment, build, self.state(deployment.key).url),
            name=f"gain {deployment.key}",
        )
        try:
            await asyncio.wait([ended, again], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in (ended, again, more, gain):
                if not wait.done():
                    wait.cancel()
        if ended.done():
            return ended.result() or EngineError(f"the head of {deployment.wish.name} ended")
        return _Moves()

    async def _announce(self) -> None:
        """Tell what answers now; one at a time, so that an older list never follows a newer one."""
        async with self._announcing:
            found = [self._announced(deployment) for deployment in self._deployments.values()]
            await self._mesh.announce_heads([head for head in found if head is not None])

    def _announced(self, deployment: Deployment) -> Head | None:
        """Return a deployment's head as it is told to all; None where there is none.

        One that goes on over another ring is told on: it says itself that new requests come too
        soon, and its model is not one that there is none of.
        """
        build = deployment.build
        if deployment.phase == "ready" and build is not None and build.head is not None:
            name, port = deployment.wish.name, build.head.http_port
            deployment.told = Head(name, port, build.context, deployment.ring)
            return deployment.told
        moves = deployment.carried is not None or (build is not None and build.carries)
        ends = deployment.phase in ("draining", "ending", "failed")
        return deployment.told if moves and not ends else None
