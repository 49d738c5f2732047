"""Build one epoch of a ring: plan, cut, load every engine, close the ring; and take it down.

Used by `rings.py`, which decides when to build. A `Build` is made for one epoch and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent import endpoint
from agent.config import Config
from agent.deploy.asked import Asked, asked
from agent.deploy.blobs import BlobServer
from agent.deploy.carried import Carried, lost_node
from agent.deploy.engines import Engines, Place
from agent.deploy.mesh import Mesh
from agent.deploy.messages import (
    AskStage,
    ConnectStage,
    CutFile,
    LoadStage,
    Phase,
    Placed,
    StageState,
    StartServer,
    StopRing,
    StoredLayers,
)
from agent.deploy.parts import Parts
from agent.deploy.planning import Own, Planning, Progress
from agent.deploy.ringkey import key_of
from agent.deploy.stages import ABANDONED_S
from agent.deploy.stored import NoStore, Stored
from agent.deploy.wish import Wish
from agent.engine import cut
from agent.engine.spec import RpcServer
from agent.engine.supervisor import Engine
from agent.errors import CoveyError, EngineError, PeerError
from agent.identity.keys import NodeId
from agent.models.fetch import Progress as Fetch
from agent.models.fetch import Watch
from agent.ownership.lease import Token
from agent.placement.results import Plan, Stage

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.1
# A stage measures its link for so long at most, after the head is ready.
_ROWS_TIMEOUT_S = 4.0

Tokens = Callable[[], Token]
"""Returns the token by which the ring is commanded now; it changes with the owner."""


class Build:
    """One epoch of a deployment: its plan, its head engine, and the nodes that hold its stages."""

    def __init__(
        self, wish: Wish, ring: str, epoch: int, *, settings: Config, own: Own,
        engines: Engines, blobs: BlobServer, parts: Parts, mesh: Mesh, progress: Progress,
        token: Tokens,
        carried: Carried | None = None, without: frozenset[NodeId] = frozenset(),
        fewer: bool = False, kept: frozenset[NodeId] = frozenset(), stored: Stored | None = None,
        number: int = 1, plan: Plan | None = None,
    ) -> None:  # fmt: skip
        """`carried` goes on as the head. Nodes `without` which it can be are left out; `fewer`:
        where not as many nodes are there as were wished for, it is built over those. `kept` are the
        nodes of the epoch before. `number`: which of the wish's rings it is. `plan`: as it is to
        be, where that is decided.
        """
        self._wish = wish
        self._ring = ring
        self._epoch = epoch
        self._settings = settings
        self._own = own
        self._engines = engines
        self._blobs = blobs
        self._parts = parts
        self._mesh = mesh
        self._progress = progress
        self._token = token
        self._carried = carried
        self._stored = stored or NoStore()
        self._planning = Planning(
            wish, own, mesh, progress, waits=carried is None, without=without, fewer=fewer,
            kept=kept, ring=ring if kept else "", number=number,
        )  # fmt: skip
        self._number = number
        self._asked: set[NodeId] = set()
        self._stopping: asyncio.Task[None] | None = None
        self.plan = plan
        self.context = 0
        self.head: Engine | None = carried.engine if carried else None
        self.runs_on: dict[str, str] = {}  # by node id, of what has loaded
        self._rows: tuple[str, ...] = ()
        self._asked_for: Asked | None = None

    @property
    def placed(self) -> tuple[Placed, ...]:
        """Which node has which layers, and what computes them where they have loaded."""
        return tuple(
            Placed(s.node, s.name, s.first, s.last, self.runs_on.get(s.node, ""))
            for s in (self.plan.stages if self.plan else ())
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is split as it is, what computes it, and in which types its rows travel."""
        if self.plan is None:
            return ()
        said = self._asked_for.said if self._asked_for is not None else ()
        layers: dict[str, int] = {}
        for stage in self.plan.stages:
            layers[stage.node] = layers.get(stage.node, 0) + stage.last - stage.first
        names = {stage.node: stage.name for stage in self.plan.stages}
        computed = (
            f"{names[node]}: {count} layers on {self.runs_on[node]}"
            for node, count in layers.items()
            if node in self.runs_on
        )
        return (*self.plan.reasons, *self._planning.absent, *said, *computed, *self._rows)

    async def up(self) -> Engine:
        """Bring the ring up and return its head, which answers. Raises CoveyError."""
        self._progress("planning", "asking the nodes what they can hold")
        wanted = await asked(self._wish, self._settings.models_dir, self._stored)
        self._asked_for = wanted
        self.context = wanted.context
        in_line = self._wish.engine == "rpc"
        if self.plan is None:
            self.plan = await self._planning.plan(wanted.needs, wanted.context)
        self._asked_for = wanted = await self._complete(wanted, self.plan.whole or in_line)
        path, layers = wanted.path, wanted.facts.layers
        if self.plan.whole:
            self._progress("loading", f"loading all {layers} layers here")
            self.head = await self._engines.start_whole(
                path, name=self._wish.name, context=self.context, draft=self._draft,
                carried=self.head,
            )  # fmt: skip
        elif in_line:
            await self._spread(self.plan, path)
        else:
            if not wanted.model_id:
                self._progress("cutting", f"cutting {layers} layers")
            weights = await self._weights(wanted, self.plan)
            await self._load(wanted, self.plan, weights)
        if self.head is None:
            raise EngineError(f"no head came up for {self._wish.name}")
        await self.head.wait_ready()
        self.runs_on[self._own.node.node] = self.head.runs_on
        if self._carried is not None:
            left = self._carried.asked - self._asked
            self._stopping = asyncio.create_task(self._stop(left), name=f"left {self._ring}")
        if not self.plan.whole and not in_line:
            self._rows = await self._row_types(self.plan, self.head)
        await self._parts.use(self._ring, [Path(file) for file in self.head.spec.files])
        return self.head

    @property
    def _draft(self) -> Path | None:
        return self._asked_for.draft if self._asked_for is not None else None

    @property
    def missing(self) -> int:
        """How many nodes fewer it has than were wished for."""
        return self._planning.missing

    @property
    def carries(self) -> bool:
        """Whether answers of the epoch before wait in its head."""
        return self._carried is not None and self.head is not None

    @property
    def carriable(self) -> bool:
        """Whether its head can go on over another epoch, with its answers."""
        return self._wish.engine != "rpc"

    @property
    def asked_for(self) -> Asked | None:
        """What is built, once it is known."""
        return self._asked_for

    async def cut_ahead(self, plan: Plan) -> dict[NodeId, CutFile | StoredLayers]:
        """Cut what another plan's stages need while this epoch goes on. Raises CoveyError.

        Returns where each of its nodes but the head gets its weights.
        """
        wanted = self._asked_for
        if wanted is None or plan.whole:
            return {}
        weights = await self._weights(wanted, plan)
        await self._cut(wanted.path, (plan.stages[0], plan.stages[-1]))
        nodes = [NodeId.parse(stage.node) for stage in plan.stages[1:-1]]
        return dict(zip(nodes, weights, strict=True))

    async def check_without_draining(self) -> None:
        """Raise ModelError, PeerError or UsageError where no ring of nodes that stay would do."""
        wanted = self._asked_for
        if wanted is None or self.head is None:
            raise EngineError(f"{self._wish.name} is not built yet")
        free = self._engines.hardware.free_without([self.head.pid])
        anew = Planning(
            # What is asked here is whether it fits, on however many nodes.
            msgspec.structs.replace(self._wish, nodes=None),
            # Who was doubted when this epoch began has answered since, or is not in it.
            replace(
                self._own, node=replace(self._own.node, free_bytes=free), doubted=frozenset()
            ), self._mesh,
            lambda *_: None, waits=False, fewer=True, ring=self._ring, number=self._number,
        )  # fmt: skip
        await anew.plan(wanted.needs, wanted.context)

    def carry(self) -> Carried | None:
        """Give the head away for the next epoch, with its answers; None where there is none to.

        What is left of this epoch on the other nodes is for the next one to end.
        """
        head = self.head
        if head is None or not head.alive or not self.carriable:
            return None
        if head.spec.role != "head" and self._carried is None and head.ended:
            return None  # a whole model that broke would only break again
        lost = self.lost
        self.head = None
        asked = frozenset(self._asked) | (self._carried.asked if self._carried else frozenset())
        self._asked.clear()
        return Carried(head, asked, lost)

    @property
    def lost(self) -> NodeId | None:
        """The node whose stage broke the ring, as far as the head knows."""
        if self.head is None or self.plan is None:
            return None
        nodes = [NodeId.parse(stage.node) for stage in self.plan.stages[:-1]]
        return lost_node(nodes, self.head.lost)

    async def down(self) -> None:
        """End what is left of this epoch; the other nodes may be gone themselves."""
        if self._stopping is not None:
            await asyncio.wait([self._stopping])
        if self.head is not None:
            await self.head.stop()
        self._parts.leave(self._ring)
        await self._stop(self._asked)

    async def _stop(self, nodes: Iterable[NodeId]) -> None:
        stops = [
            self._mesh.ask(node, StopRing(ring=self._ring, token=self._token()), _STOP_TIMEOUT_S)
            for node in nodes
        ]
        for answer in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(answer, BaseException):
                _log.info("ring=%s: a node could not be told to stop: %s", self._ring, answer)

    async def _complete(self, wanted: Asked, whole: bool) -> Asked:
        """Fetch what has to be here as a whole and is not: a draft model, a model that is not cut.

        Of a model that is cut the head takes its own parts alone, as every stage does.
        """
        wish = self._wish
        if whole and not wanted.here:
            path = await self._stored.whole(wish.model_id, wish.model, self._fetched(wish.model))
            wanted = replace(wanted, path=path, here=True)
        if not wanted.draft_here:
            draft = await self._stored.whole(wish.draft_id, wish.draft, self._fetched(wish.draft))
            wanted = replace(wanted, draft=draft, draft_here=True)
        return wanted

    def _fetched(self, what: str) -> Watch:
        """Return who tells people how far the fetch of `what` is."""

        def watch(fetch: Fetch) -> None:
            percent = 100 * fetch.done // max(1, fetch.total)
            self._progress("loading", f"the head fetches {what}: {percent} %")

        return watch

    async def _weights(self, wanted: Asked, plan: Plan) -> list[CutFile | StoredLayers]:
        """Return where each stage in the middle gets its layers from.

        Of a stored model each node takes them itself; else they are cut here, the head's too.
        """
        middle = plan.stages[1:-1]
        if wanted.model_id:
            return [
                StoredLayers(wanted.model_id, stage.first, stage.last,
                             sum(wanted.facts.layer_bytes[stage.first : stage.last]))
                for stage in middle
            ]  # fmt: skip
        parts = await self._cut(wanted.path, plan.stages)
        source = endpoint.join(self._engines.own_address, self._settings.network.overlay_port)
        for part in parts[1:-1]:
            self._blobs.offer(part.sha256, part.path)
        return [CutFile(part.sha256, part.size, f"http://{source}") for part in parts[1:-1]]

    async def _cut(self, path: Path, stages: Sequence[Stage]) -> list[cut.PartFile]:
        ranges = [(stage.first, stage.last) for stage in stages]
        return await asyncio.to_thread(self._parts.cut, path, ranges, self._ring)

    async def _load(
        self, wanted: Asked, plan: Plan, weights: Sequence[CutFile | StoredLayers]
    ) -> None:
        """Start all engines of a cut model at the same time, then close the ring behind them.

        `plan.stages` ends with the head's last part; as a process the head is stage 0 of the ring.
        """
        nodes = [NodeId.parse(stage.node) for stage in plan.stages[:-1]]
        middle = range(1, len(nodes))
        self._progress("loading", "the stages fetch and load their layers")
        heard = asyncio.create_task(self._stay_heard(nodes), name=f"stages of {self._ring}")
        try:
            head, *ports = await _all([
                self._load_head(wanted, plan.stages, nodes),
                *(self._load_stage(index, nodes, weights[index - 1]) for index in middle),
            ])  # fmt: skip
        finally:
            heard.cancel()
            await asyncio.wait([heard])
        self._progress("connecting", "closing the ring")
        targets = [*ports[1:], head]  # where stages 1, 2, … find their successors
        for index in reversed(middle):
            request = ConnectStage(
                ring=self._ring, token=self._token(), epoch=self._epoch, index=index,
                successor=str(nodes[(index + 1) % len(nodes)]), port=targets[index - 1],
            )  # fmt: skip
            await self._mesh.ask(nodes[index], request, _CALL_TIMEOUT_S)
        if self.head is None:
            raise EngineError("the head ended while its ring was loading")
        await self.head.connect(self._engines.address(nodes[1]), ports[0])

    async def _spread(self, plan: Plan, path: Path) -> None:
        """Start llama.cpp's RPC servers on the other nodes, then the whole model over them here."""
        nodes = [NodeId.parse(stage.node) for stage in plan.stages]
        self._progress("loading", "the other nodes start RPC servers")
        ports = await _all([self._start_server(index, nodes) for index in range(1, len(nodes))])
        servers = [
            RpcServer(stage.name, self._engines.address(node), port, stage.last - stage.first)
            for stage, node, port in zip(plan.stages[1:], nodes[1:], ports, strict=True)
        ]
        self._progress("loading", f"{plan.stages[-1].last} layers go to {len(nodes)} nodes")
        self.head = await self._engines.start_spread(
            path, Place(self._ring, self._epoch, 0, len(nodes)), servers, name=self._wish.name,
            context=self.context, draft=self._draft,
        )  # fmt: skip
        names = ", ".join(server.name for server in servers)
        self._rows = (f"llama.cpp's RPC asks {names} in turn for each batch",)

    async def _start_server(self, index: int, nodes: Sequence[NodeId]) -> int:
        self._asked.add(nodes[index])
        request = StartServer(
            ring=self._ring, token=self._token(), epoch=self._epoch, index=index, stages=len(nodes)
        )
        await self._mesh.ask(nodes[index], request, _CALL_TIMEOUT_S)
        return await self._until_listening(index, nodes[index])

    async def _head_parts(self, wanted: Asked, stages: Sequence[Stage]) -> list[Path]:
        """Return the head's own parts: cut here, or fetched from who has the model."""
        if wanted.here:
            return [part.path for part in await self._cut(wanted.path, stages)]
        return [
            await self._parts.fetch(
                self._stored, wanted.model_id, (stage.first, stage.last),
                self._fetched(f"layers {stage.first} to {stage.last - 1}"),
            )
            for stage in stages
        ]  # fmt: skip

    async def _load_head(
        self, wanted: Asked, stages: Sequence[Stage], nodes: Sequence[NodeId]
    ) -> int:
        self.head = await self._engines.start_head(
            await self._head_parts(wanted, (stages[0], stages[-1])),
            Place(self._ring, self._epoch, 0, len(nodes)), nodes[-1], name=self._wish.name,
            context=self.context, frames=self._settings.engine.frames, draft=self._draft,
            model=wanted.path, carried=self.head,
        )  # fmt: skip
        return self.head.port

    async def _load_stage(
        self, index: int, nodes: Sequence[NodeId], weights: CutFile | StoredLayers
    ) -> int:
        """Have a node get and load its layers; returns the port on which it then listens."""
        node = nodes[index]
        self._asked.add(node)
        await self._mesh.ask(
            node,
            LoadStage(
                ring=self._ring, token=self._token(), epoch=self._epoch, index=index,
                stages=len(nodes), weights=weights,
                predecessor=str(nodes[index - 1]), context=self.context,
                frames=self._settings.engine.frames,
                key=key_of(self._wish.name, self._number) if self._wish.rings > 1 else "",
            ),
            _CALL_TIMEOUT_S,
        )  # fmt: skip
        return await self._until_listening(index, node)

    async def _until_listening(self, index: int, node: NodeId) -> int:
        """Return the port on which a stage listens, once it does."""
        deadline = asyncio.get_running_loop().time() + self._settings.engine.load_timeout_s
        while asyncio.get_running_loop().time() < deadline:
            state = await self._stage_state(index, node)
            if state.phase == "listening":
                self.runs_on[str(node)] = state.runs_on
                return state.port
            percent = 100 * state.done // max(1, state.total)
            self._progress("loading", f"stage {index}: {state.phase}, {percent} % fetched")
            await asyncio.sleep(_POLL_S)
        raise EngineError(
            f"stage {index} on …{node.short} did not load within "
            f"{self._settings.engine.load_timeout_s:.0f} s",
            hint="Raise engine.load_timeout_s for a slow link or disk.",
        )

    async def _row_types(self, plan: Plan, head: Engine) -> tuple[str, ...]:
        """Say how rows leave each node; a stage that is not ready yet is waited for a little."""
        said = [f"rows leave {plan.stages[0].name} as {head.rows}"]
        deadline = asyncio.get_running_loop().time() + _ROWS_TIMEOUT_S
        for index, stage in enumerate(plan.stages[1:-1], 1):
            node = NodeId.parse(stage.node)
            while not (state := await self._stage_state(index, node)).rows:
                if asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(_POLL_S)
            if state.rows:
                said.append(f"rows leave {stage.name} as {state.rows}")
        return tuple(said)

    async def _stay_heard(self, nodes: Sequence[NodeId]) -> None:
        """Ask the stages that have loaded now and then while others load: they wait for a word."""
        while True:
            await asyncio.sleep(ABANDONED_S / 4)
            asks = (self._stage_state(index, nodes[index]) for index in range(1, len(nodes)))
            # What is wrong with a stage comes out where it is loaded or connected.
            await asyncio.gather(*asks, return_exceptions=True)

    async def _stage_state(self, index: int, node: NodeId) -> StageState:
        request = AskStage(ring=self._ring, epoch=self._epoch, index=index)
        state = await self._mesh.ask(node, request, _CALL_TIMEOUT_S)
        if not isinstance(state, StageState):
            raise PeerError(f"node …{node.short} answered {type(state).__name__} for a stage")
        lost: tuple[Phase, ...] = ("broken", "unknown")
        if state.phase in lost:
            raise EngineError(f"stage {index} on …{node.short}: {state.message}", hint=state.hint)
        return state


_T = TypeVar("_T")


async def _all(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run everything at once; the first failure cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one) for one in work]
    except* CoveyError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    return [task.result() for task in running]
