"""The stages that other nodes' heads placed here: fetch the file, run the engine, say how it goes.

A ring belongs to its head, the node that first loaded it here; nobody else can change or end it,
and its head not with an older owner's token after a newer one's. A newer epoch of a ring replaces
the older one's stages. A stage whose head is silent while it loads is ended, since its memory is
needed elsewhere. Of a deployment of several rings a node has part in one alone: stages of another
are refused. Used by `deployments.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.deploy import blobs, pruning
from agent.deploy.ahead import Ahead, SoFar
from agent.deploy.beside import refused, room_for
from agent.deploy.engines import Engines, Place
from agent.deploy.messages import (
    Answer,
    AskFacts,
    AskStage,
    ConnectStage,
    CutFile,
    Facts,
    FetchAhead,
    LoadStage,
    RingHere,
    StageRequest,
    StageState,
    StartServer,
    StopRing,
    StoredLayers,
)
from agent.deploy.ringkey import split
from agent.engine.supervisor import Engine
from agent.errors import CoveyError, EngineError, MembershipError, NotRunning, UsageError
from agent.identity.keys import NodeId
from agent.models.fetch import Watch
from agent.ownership.fence import Fence
from agent.ownership.lease import Token

_log = logging.getLogger(__name__)


class HeadsHere(Protocol):
    """The rings whose heads are on this node."""

    def of(self, name: str) -> list[RingHere]:
        """Return those of a deployment."""

    async def make_room(self, name: str, number: int) -> None:
        """End those of a deployment that have no plan here, but for this one of them."""


Stored = Callable[[str, tuple[int, int], Path, Watch], Awaitable[object]]
"""Writes layers [first, last) of a stored model (its id) as a part; raises CoveyError."""

# It names a file here, so it must be nothing but that.
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A head asks ten times a second how far a stage is, and connects it once all are loaded; one that
# says nothing for so long has died or moved.
ABANDONED_S = 60.0
# A stage has nothing to lose: one that does not end by then is frozen, and its place is needed.
_STOP_GRACE_S = 0.5
# How long the reason why a stage broke can be asked for.
_BROKEN_KEPT_S = 60.0


@dataclass
class _Stage:
    """One stage of one epoch of a ring."""

    owner: NodeId
    request: LoadStage | StartServer
    state: StageState
    engine: Engine | None = None
    file: Path | None = None
    task: asyncio.Task[None] | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    asked_at: float = field(default_factory=time.monotonic)


class StageHost:
    """All stages that run here for others."""

    def __init__(
        self, folder: Path, engines: Engines, draining: Callable[[], bool] = lambda: False,
        stored: Stored | None = None, heads: HeadsHere | None = None,
    ) -> None:  # fmt: skip
        """`draining` says whether this node is to hold nothing; `stored` gets layers of stored
        models, None: there is no store. `heads` are those of this node.
        """
        self._heads = heads
        self._draining = draining
        self._engines = engines
        self._folder = folder
        self._stored = stored
        self._stages: dict[tuple[str, int], _Stage] = {}
        self._fetching: dict[Path, asyncio.Lock] = {}
        self._hosted: set[str] = set()  # rings that were here, since the agent is up
        self._fence = Fence()
        self._ahead: dict[str, Ahead] = {}  # by ring

    async def answer(self, peer: NodeId, request: StageRequest) -> Answer:
        """Do what a member asks; raises a CoveyError, which reaches that member."""
        match request:
            case AskFacts():
                facts = await self._facts(request.ring)
                if not request.deployment:
                    return facts
                return msgspec.structs.replace(facts, rings=self.rings_of(request.deployment))
            case FetchAhead():
                return await self._fetch_ahead(peer, request)
            case LoadStage() | StartServer():
                return await self._load(peer, request)
            case ConnectStage():
                return await self._connect(peer, request)
            case AskStage():
                stage = self._stages.get((request.ring, request.index))
                if stage is None or stage.request.epoch != request.epoch:
                    return StageState(phase="unknown", message="this stage is not here (any more)")
                self._check_owner(stage, peer)
                stage.asked_at = time.monotonic()
                return stage.state
            case StopRing():
                for stage in self._of(request.ring):
                    self._check_owner(stage, peer)
                self._check_token(request.ring, request.token)
                await self._end(request.ring)
                await self._end_ahead(request.ring)
                return StageState(phase="unknown")

    def rings_of(self, name: str) -> tuple[RingHere, ...]:
        """Return the rings of a deployment that have a head or a stage on this node."""
        found = [] if self._heads is None else self._heads.of(name)
        numbers = {ring.number for ring in found}
        for stage in self._stages.values():
            key = stage.request.key if isinstance(stage.request, LoadStage) else ""
            deployment, number = split(key)
            if deployment == name and stage.state.phase != "broken" and number not in numbers:
                numbers.add(number)
                found.append(RingHere(number, nodes=(str(stage.owner),)))
        return tuple(found)

    def partners(self) -> set[NodeId]:
        """Return the heads and the predecessors of the stages here; their successors call."""
        stages = self._stages.values()
        loads = [s.request for s in stages if isinstance(s.request, LoadStage)]
        return {*(s.owner for s in stages), *(NodeId.parse(load.predecessor) for load in loads)}

    def engines(self) -> list[dict[str, Any]]:
        """Describe what runs here, for `agent status`."""
        return [
            {"ring": ring, "what": f"stage {index}", "phase": stage.state.phase,
             "head": str(stage.owner), "message": stage.state.message,
             "runs_on": stage.state.runs_on}
            for (ring, index), stage in sorted(self._stages.items())
        ]  # fmt: skip

    def running(self) -> list[tuple[str, int]]:
        """Return the stages (ring, index) that are not at their end."""
        return [key for key, stage in self._stages.items() if stage.state.phase != "broken"]

    async def stop(self) -> None:
        """End every stage."""
        for ring in {ring for ring, _ in self._stages}:
            await self._end(ring)
        for ring in list(self._ahead):
            await self._end_ahead(ring)

    async def _facts(self, ring: str) -> Facts:
        """Return what this node can hold, as if no stage of `ring` were here."""
        facts = await self._engines.hardware.facts()
        pids = [stage.engine.pid for stage in self._of(ring) if stage.engine is not None]
        if pids:
            free = self._engines.hardware.free_without(pids)
            facts = msgspec.structs.replace(facts, free_bytes=free)
        return msgspec.structs.replace(facts, draining=self._draining())

    async def _fetch_ahead(self, peer: NodeId, request: FetchAhead) -> StageState:
        for stage in self._of(request.ring):
            self._check_owner(stage, peer)
        self._check_weights(peer, request.weights)
        if self._draining():
            raise NotRunning("this node is draining", hint="Plan anew, without it.")
        self._check_token(request.ring, request.token)
        known = self._ahead.get(request.ring)
        if known is None or known.weights != request.weights or known.broken:
            await self._end_ahead(request.ring)
            known = self._ahead[request.ring] = Ahead(request.weights, self._weights)
        return known.state

    async def _load(self, peer: NodeId, request: LoadStage | StartServer) -> StageState:
        for stage in self._of(request.ring):
            self._check_owner(stage, peer)
            if stage.request.epoch > request.epoch:
                raise UsageError(
                    f"ring {request.ring} is in epoch {stage.request.epoch} here, "
                    f"and epoch {request.epoch} is over"
                )
        state = StageState(phase="loading")
        if isinstance(request, LoadStage):
            self._check_weights(peer, request.weights)
            state = StageState(phase="fetching", total=request.weights.size)
        if self._draining() and request.ring not in self._hosted:
            # Planned before its head could know; one that was here may be unable to do without.
            raise NotRunning("this node is draining", hint="Plan anew, without it.")
        self._check_token(request.ring, request.token)
        if isinstance(request, LoadStage) and request.key:
            await self._make_room(request.key)
        self._hosted.add(request.ring)
        if any(stage.request.epoch < request.epoch for stage in self._of(request.ring)):
            await self._end(request.ring)
        await self._end_ahead(request.ring)
        stage = _Stage(peer, request, state)
        self._stages[request.ring, request.index] = stage
        stage.task = asyncio.create_task(self._run(stage), name=f"stage {request.ring}")
        return stage.state

    async def _make_room(self, key: str) -> None:
        """Raise where another ring of the same deployment is here to stay; end one that waits."""
        name, number = split(key)
        if (ring := room_for(number, self.rings_of(name))) is not None:
            raise refused(name, "this node", ring)
        if self._heads is not None:
            await self._heads.make_room(name, number)

    async def _run(self, stage: _Stage) -> None:
        """Bring one stage up and watch it until it ends; its state says how far it is."""
        request = stage.request
        place = Place(request.ring, request.epoch, request.index, request.stages)
        pruned: asyncio.Task[None] | None = None
        try:
            if isinstance(request, LoadStage):
                stage.engine = await self._start(stage, request, place)
            else:
                stage.engine = await self._engines.start_rpc_server(place, stage.owner)
            self._set(stage, "listening", port=stage.engine.port)
            if isinstance(request, LoadStage):
                await self._wait_connected(stage)
            await stage.engine.wait_ready()
            self._set(stage, "ready", port=stage.engine.port, rows=stage.engine.rows)
            used = {other.file for other in self._stages.values() if other.file is not None}
            pruned = asyncio.create_task(asyncio.to_thread(pruning.prune, self._folder, used))
            raise await stage.engine.wait_ended() or EngineError("the engine was stopped")
        except CoveyError as error:
            _log.warning("stage ring=%s index=%d broke: %s", request.ring, request.index,
                         error.line())  # fmt: skip
            stage.state = StageState(phase="broken", message=error.message, hint=error.hint)
        finally:
            if stage.engine is not None:
                await stage.engine.stop(grace_s=_STOP_GRACE_S)
            if pruned is not None:
                await pruned
        await asyncio.sleep(_BROKEN_KEPT_S)
        key = request.ring, request.index
        if self._stages.get(key) is stage:
            del self._stages[key]

    async def _start(self, stage: _Stage, request: LoadStage, place: Place) -> Engine:
        """Get the weights of a stage and load them."""
        path = await self._weights(
            request.weights,
            lambda done, total: self._set(stage, "fetching", done=done, total=total),
        )
        self._set(stage, "loading")
        stage.file = path
        return await self._engines.start_stage(
            path, place, NodeId.parse(request.predecessor), context=request.context,
            frames=request.frames,
        )  # fmt: skip

    async def _weights(self, wanted: CutFile | StoredLayers, so_far: SoFar) -> Path:
        if isinstance(wanted, CutFile):
            return await self._fetch(wanted, so_far)
        return await self._layers(wanted, so_far)

    async def _fetch(self, file: CutFile, so_far: SoFar) -> Path:
        """Fetch the file that the head has cut."""
        path = self._folder / f"{file.sha256}.gguf"
        # Rings of one model have the same parts, and move at the same time.
        async with self._fetching.setdefault(path, asyncio.Lock()):
            await blobs.fetch(
                f"{file.source}/stage/{file.sha256}", path, file.size, file.sha256,
                lambda done: so_far(done, file.size),
            )  # fmt: skip
        return path

    async def _layers(self, wanted: StoredLayers, so_far: SoFar) -> Path:
        """Cut layers out of the model if it is here, or fetch them alone from all who have it."""
        path = self._folder / f"{wanted.model}-{wanted.first}-{wanted.last}.gguf"
        # It appears whole or not at all. A stage may be asked for while it is fetched ahead.
        async with self._fetching.setdefault(path, asyncio.Lock()):
            if not path.is_file():
                if self._stored is None:
                    raise EngineError("this node has no store of models to take layers from")
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                span = wanted.first, wanted.last
                await self._stored(
                    wanted.model, span, path,
                    lambda progress: so_far(progress.done, progress.total),
                )  # fmt: skip
        return path

    async def _wait_connected(self, stage: _Stage) -> None:
        """Wait until the head connects the stage; raises EngineError when it seems to be gone."""
        while not stage.connected.is_set():
            left_s = stage.asked_at + ABANDONED_S - time.monotonic()
            if left_s <= 0:
                raise EngineError(f"its head, …{stage.owner.short}, has gone")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await stage.connected.wait()

    async def _connect(self, peer: NodeId, request: ConnectStage) -> StageState:
        stage = self._stages.get((request.ring, request.index))
        if stage is None or stage.request.epoch != request.epoch or stage.engine is None:
            raise UsageError(f"stage {request.index} of ring {request.ring} does not listen here")
        self._check_owner(stage, peer)
        self._check_token(request.ring, request.token)
        await stage.engine.connect(
            self._engines.address(NodeId.parse(request.successor)), request.port
        )
        stage.connected.set()
        return stage.state

    async def _end_ahead(self, ring: str) -> None:
        ahead = self._ahead.pop(ring, None)
        if ahead is not None:
            await ahead.stop()

    async def _end(self, ring: str) -> None:
        for key in [key for key in self._stages if key[0] == ring]:
            stage = self._stages.pop(key)
            if stage.task is not None:
                stage.task.cancel()
                await asyncio.wait([stage.task])

    def _set(
        self, stage: _Stage, phase: Any, *, done: int | None = None, total: int | None = None,
        port: int = 0, rows: str = "",
    ) -> None:  # fmt: skip
        if total is None:
            request = stage.request
            total = request.weights.size if isinstance(request, LoadStage) else 0
        stage.state = StageState(
            phase=phase, done=total if done is None else done, total=total, port=port, rows=rows,
            runs_on=stage.engine.runs_on if stage.engine else "",
        )  # fmt: skip

    def _of(self, ring: str) -> list[_Stage]:
        return [stage for (name, _), stage in self._stages.items() if name == ring]

    def _check_weights(self, peer: NodeId, weights: CutFile | StoredLayers) -> None:
        if isinstance(weights, StoredLayers):
            if not _SHA256.fullmatch(weights.model) or weights.first >= weights.last:
                raise UsageError("a stored model's layers are named by its id and their numbers")
            return
        if not _SHA256.fullmatch(weights.sha256):
            raise UsageError("a stage is named by its SHA-256, 64 lower-case hexadecimal digits")
        if not weights.source.startswith(f"http://[{self._engines.address(peer)}]:"):
            raise MembershipError("a stage is fetched from its head's overlay address only")

    def _check_owner(self, stage: _Stage, peer: NodeId) -> None:
        if stage.owner != peer:
            raise MembershipError(f"ring {stage.request.ring} belongs to node …{stage.owner.short}")

    def _check_token(self, ring: str, token: Token) -> None:
        if not self._fence.admit(ring, token, time.monotonic()):
            raise UsageError(
                f"ring {ring} has a newer owner than the one of epoch {token.epoch}",
                hint="Nothing was changed; the newer owner goes on.",
            )
