"""The deployments whose head is this node, each kept true by a task of its own.

| phase | means | next |
|---|---|---|
| planning, cutting, loading, connecting | an epoch is being built | ready or ending |
| ready | the head answers | ending, when the ring breaks |
| ending | what is left of a broken epoch is taken down | waiting or failed |
| waiting | it broke or could not be built; why is in `error` | planning, after a pause |
| failed | a new wish that cannot come true as it is | none; the operator undeploys it |

A new epoch is a new build: frames and stages of an older one are dropped. The wishes are stored
and come back with the agent.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent import endpoint
from agent.api import DeployRequest
from agent.config import Config
from agent.deploy import build, heads, machine
from agent.deploy.blobs import BlobServer
from agent.deploy.build import Build
from agent.deploy.engines import Engines
from agent.deploy.heads import Head
from agent.deploy.wishes import WishList
from agent.errors import ConfigError, CoveyError, EngineError, ModelError, UsageError, to_wire
from agent.identity.keys import NodeId
from agent.models import bundled
from agent.placement.plan import Candidate

_log = logging.getLogger(__name__)

# A broken ring is built again after 1 s, then 2, 4 … up to this.
_MAX_PAUSE_S = 30.0
# A ring that answered for so long is no longer the one that kept breaking.
_STABLE_S = 60.0


class Mesh(build.Mesh, Protocol):
    """What deployments need of the daemon."""

    def known_workers(self) -> int:
        """Return how many other members are workers, connected or not."""

    async def announce_heads(self, heads: Sequence[Head]) -> None:
        """Tell the mesh which heads answer here; an empty list takes everything back."""


@dataclass
class _Deployment:
    """A wish and how far it is."""

    wish: DeployRequest
    ring: str
    phase: str = "planning"
    progress: str = "planning"
    error: CoveyError | None = None
    epoch: int = 0
    build: Build | None = None
    task: asyncio.Task[None] | None = None
    # It was possible once (it ran, or was stored), so whatever is wrong now may pass.
    possible: bool = False

    def to(self, phase: str, progress: str) -> None:
        """Move on; one log line for each change of phase."""
        if self.phase != phase:
            _log.info("deployment name=%s epoch=%d %s", self.wish.name, self.epoch, phase)
        self.phase, self.progress = phase, progress


class Rings:
    """All deployments whose head is here."""

    def __init__(
        self, settings: Config, own: NodeId, name: str, engines: Engines, blobs: BlobServer,
        mesh: Mesh,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._own = own
        self._name = name
        self._engines = engines
        self._blobs = blobs
        self._mesh = mesh
        self._wishes = WishList(settings.state_dir / "deployments.json")
        self._deployments: dict[str, _Deployment] = {}
        self._announcing = asyncio.Lock()

    def restore(self) -> None:
        """Start again what was deployed when the agent last ran. Raises StateError."""
        for wish in self._wishes.read():
            self._start(wish).possible = True

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        """Check the model, store the wish, begin to build, and describe it. Raises CoveyError."""
        path = build.model_path(request.model)
        facts = await asyncio.to_thread(build.model_facts, path)
        name = request.name or facts.name
        if name in self._deployments:
            raise UsageError(
                f"{name} is already deployed here", hint=f"`agent undeploy {name}` ends it."
            )
        most = 1 + self._mesh.known_workers()
        if request.nodes is not None and request.nodes > most:
            raise UsageError(
                f"a ring of {request.nodes} nodes was asked for, and this mesh has {most} that "
                "could be in it",
                hint="`agent invite` lets more machines join.",
            )
        if request.context > facts.context:
            raise UsageError(
                f"a context of {request.context} tokens was asked for, and {facts.name} was "
                f"trained for {facts.context}"
            )
        names = [*self._deployments, name]
        heads.encode([Head(other, 65535, facts.context, "x" * 8) for other in names])
        # The path as it is now, so that the wish does not depend on where a command was typed.
        model = bundled.NAME if request.model == bundled.NAME else str(path)
        deployment = self._start(
            DeployRequest(model=model, name=name, nodes=request.nodes, context=request.context)
        )
        self._store()
        return self._describe(deployment)

    async def undeploy(self, name: str) -> dict[str, Any]:
        """End a deployment on all its nodes and forget the wish."""
        deployment = self._deployments.pop(name, None)
        if deployment is None:
            raise UsageError(f"{name} is not deployed here", hint="`agent ps` shows what is.")
        self._store()
        await self._cancel(deployment)
        return {"name": name, "phase": "ended"}

    def describe(self) -> list[dict[str, Any]]:
        """Describe every deployment for the local API."""
        return [self._describe(d) for _, d in sorted(self._deployments.items())]

    def engines(self) -> list[dict[str, Any]]:
        """Describe the heads that run here, for `agent status`."""
        return [
            {"ring": d.ring, "what": f"head of {d.wish.name}", "phase": d.phase,
             "head": str(self._own), "message": d.progress}
            for d in self._deployments.values()
        ]  # fmt: skip

    async def stop(self) -> None:
        """End all rings; the wishes stay stored."""
        deployments = list(self._deployments.values())
        self._deployments.clear()
        await asyncio.gather(*(self._cancel(deployment) for deployment in deployments))

    def _start(self, wish: DeployRequest) -> _Deployment:
        identity = hashlib.sha256(self._own.ed25519 + wish.name.encode()).hexdigest()[:32]
        deployment = _Deployment(wish, ring=identity)
        self._deployments[wish.name] = deployment
        deployment.task = asyncio.create_task(self._keep(deployment), name=wish.name)
        return deployment

    async def _cancel(self, deployment: _Deployment) -> None:
        if deployment.task is not None:
            deployment.task.cancel()
            await asyncio.wait([deployment.task])

    async def _keep(self, deployment: _Deployment) -> None:
        """Keep one deployment true until it is cancelled, or turns out to be impossible."""
        pause_s = 1.0
        while True:
            # Later than any epoch of this ring before, also across a restart of the agent.
            deployment.epoch = max(deployment.epoch + 1, int(time.time()))
            began = time.monotonic()
            try:
                await self._run_epoch(deployment)
            except CoveyError as error:
                deployment.error = error
                hopeless = isinstance(error, UsageError | ModelError | ConfigError)
                if hopeless and not deployment.possible:
                    deployment.to("failed", error.line())
                    return
                if time.monotonic() - began > _STABLE_S:
                    pause_s = 1.0
                _log.warning("deployment name=%s epoch=%d broke: %s", deployment.wish.name,
                             deployment.epoch, error.line())  # fmt: skip
                deployment.to("waiting", f"{error.line()} It is built again in {pause_s:.0f} s.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _run_epoch(self, deployment: _Deployment) -> None:
        """Build an epoch and serve it until it breaks; always raises, or is cancelled."""
        own = Candidate(str(self._own), self._name, machine.free_bytes())
        deployment.build = Build(
            deployment.wish, deployment.ring, deployment.epoch, settings=self._settings, own=own,
            engines=self._engines, blobs=self._blobs, mesh=self._mesh, progress=deployment.to,
        )  # fmt: skip
        try:
            head = await deployment.build.up()
            deployment.error = None
            deployment.possible = True
            deployment.to("ready", "answers")
            await self._announce()
            raise await head.wait_ended() or EngineError(
                f"the head of {deployment.wish.name} ended"
            )
        finally:
            deployment.to("ending", "ending what is left of it")
            await deployment.build.down()
            await self._announce()

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

    def _describe(self, deployment: _Deployment) -> dict[str, Any]:
        built = deployment.build
        found = built.plan if built else None
        url = ""
        if deployment.phase == "ready" and built is not None and built.head is not None:
            url = f"http://{endpoint.join(self._engines.own_address, built.head.http_port)}"
        return {
            "name": deployment.wish.name,
            "model": deployment.wish.model,
            "ring": deployment.ring,
            "epoch": deployment.epoch,
            "phase": deployment.phase,
            "progress": deployment.progress,
            "context": built.context if built else 0,
            "nodes": len({stage.node for stage in found.stages}) if found else 0,
            "stages": [
                {"node": s.node, "name": s.name, "first": s.first, "last": s.last}
                for s in (found.stages if found else ())
            ],
            "reasons": list(found.reasons) if found else [],
            "url": url,
            "error": to_wire(deployment.error) if deployment.error else None,
        }

    def _store(self) -> None:
        self._wishes.write(d.wish for d in self._deployments.values())
