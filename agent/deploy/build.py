"""Build one epoch of a ring: plan, cut, load every engine, close the ring; and take it down.

Used by `rings.py`, which decides when to build. A `Build` is made for one epoch and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from agent import endpoint
from agent.config import Config
from agent.deploy.blobs import BlobServer
from agent.deploy.engines import Engines, Place
from agent.deploy.mesh import Mesh
from agent.deploy.messages import (
    AskFacts,
    AskStage,
    ConnectStage,
    Facts,
    LoadStage,
    Phase,
    Placed,
    StageState,
    StartServer,
    StopRing,
)
from agent.deploy.needs import (
    cuts_of,
    default_context,
    draft_bytes,
    model_sizes,
    spread_of,
    with_draft,
)
from agent.deploy.stages import ABANDONED_S
from agent.deploy.wish import Wish
from agent.engine import cut
from agent.engine.gguf_file import GgufFile, ModelFacts
from agent.engine.spec import RpcServer
from agent.engine.supervisor import Engine
from agent.errors import CoveyError, EngineError, ModelError, PeerError, UsageError
from agent.identity.keys import NodeId
from agent.models import bundled, store
from agent.ownership.lease import Token
from agent.placement.plan import Candidate, Plan, plan

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
_FACTS_TIMEOUT_S = 3.0
_POLL_S = 0.1
# A stage measures its link for so long at most, after the head is ready.
_ROWS_TIMEOUT_S = 4.0
# While fewer nodes than wished for are connected (the agent just started), planning waits so long.
_NODES_TIMEOUT_S = 20.0

Progress = Callable[[str, str], None]
"""Called with the phase and a sentence for people."""


Tokens = Callable[[], Token]
"""Returns the token by which the ring is commanded now; it changes with the owner."""


def model_path(model: str, models: Path) -> Path:
    """Return the file of a model by its bundled name, its name in the store, or its path.

    `models` is the store's folder. A stored model counts as used now. Raises ModelError.
    """
    if model == bundled.NAME:
        return bundled.path()
    path = Path(model).expanduser()
    # A wish has the path, whatever its author called the model.
    named = path.stem if path.parent == models.resolve() else model
    stored = store.find(models, named)
    if stored is not None:
        return stored
    if not path.is_file():
        raise ModelError(
            f"there is no model {model}: it is no file on this node, none of its stored models, and"
            f" {bundled.NAME} is the only bundled one",
            hint="Give the path of a GGUF file, or `agent pull` it; `agent models` lists what is"
            " there.",
        )
    return path.resolve()


def model_facts(path: Path) -> ModelFacts:
    """Return what a model file says of itself; raises ModelError for a damaged one."""
    with GgufFile(path) as model:
        return model.facts()


def draft_path(model: str, facts: ModelFacts, models: Path) -> Path | None:
    """Return the file of a draft model for the model of `facts`; None for "". Raises CoveyError."""
    if not model:
        return None
    if facts.purpose != "text":
        raise UsageError(
            f"{facts.name} is for {facts.purpose}: a draft model has nothing to guess there",
            hint="Deploy it without --draft.",
        )
    return model_path(model, models)


class Build:
    """One epoch of a deployment: its plan, its head engine, and the nodes that hold its stages."""

    def __init__(
        self, wish: Wish, ring: str, epoch: int, *, settings: Config, own: Candidate,
        engines: Engines, blobs: BlobServer, mesh: Mesh, progress: Progress, token: Tokens,
    ) -> None:  # fmt: skip
        self._wish = wish
        self._ring = ring
        self._epoch = epoch
        self._settings = settings
        self._own = own
        self._engines = engines
        self._blobs = blobs
        self._mesh = mesh
        self._progress = progress
        self._token = token
        self._asked: set[NodeId] = set()
        self.plan: Plan | None = None
        self.context = 0
        self.head: Engine | None = None
        self.runs_on: dict[str, str] = {}  # by node id, of what has loaded
        self._rows: tuple[str, ...] = ()
        self._draft: Path | None = None
        self._guesses: tuple[str, ...] = ()

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
        layers: dict[str, int] = {}
        for stage in self.plan.stages:
            layers[stage.node] = layers.get(stage.node, 0) + stage.last - stage.first
        names = {stage.node: stage.name for stage in self.plan.stages}
        computed = (
            f"{names[node]}: {count} layers on {self.runs_on[node]}"
            for node, count in layers.items()
            if node in self.runs_on
        )
        return (*self.plan.reasons, *self._guesses, *computed, *self._rows)

    async def up(self) -> Engine:
        """Bring the ring up and return its head, which answers. Raises CoveyError."""
        path = model_path(self._wish.model, self._settings.models_dir)
        self._progress("planning", "asking the nodes what they can hold")
        facts = await asyncio.to_thread(model_facts, path)
        self.context = self._wish.context or default_context(facts)
        in_line = self._wish.engine == "rpc"
        cuts = await asyncio.to_thread(spread_of if in_line else cuts_of, path)
        sizes = model_sizes(facts, self.context, cuts, in_line=in_line)
        self._draft = draft_path(self._wish.draft, facts, self._settings.models_dir)
        if self._draft is not None:
            needed = draft_bytes(await asyncio.to_thread(model_facts, self._draft), self.context)
            sizes = with_draft(sizes, needed)
            self._guesses = (
                f"the head's memory holds the draft model {self._draft.name} too,"
                f" {needed / 2**20:.1f} MiB",
            )
        others = [] if sizes.uncut else await self._candidates()
        self.plan = plan(sizes, self._own, others, self._wish.nodes)
        if self.plan.whole:
            self._progress("loading", f"loading all {facts.layers} layers here")
            self.head = await self._engines.start_whole(
                path, name=self._wish.name, context=self.context, draft=self._draft
            )
        elif in_line:
            await self._spread(self.plan, path)
        else:
            self._progress("cutting", f"cutting {facts.layers} layers")
            parts = await asyncio.to_thread(self._cut, path, self.plan)
            await self._load(self.plan, parts)
        if self.head is None:
            raise EngineError(f"no head came up for {self._wish.name}")
        await self.head.wait_ready()
        self.runs_on[self._own.node] = self.head.runs_on
        if not self.plan.whole and not in_line:
            self._rows = await self._row_types(self.plan, self.head)
        return self.head

    async def down(self) -> None:
        """End what is left of this epoch; the other nodes may be gone themselves."""
        if self.head is not None:
            await self.head.stop()
        stops = [
            self._mesh.ask(node, StopRing(ring=self._ring, token=self._token()), _FACTS_TIMEOUT_S)
            for node in self._asked
        ]
        for answer in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(answer, BaseException):
                _log.info("ring=%s: a node could not be told to stop: %s", self._ring, answer)

    async def _candidates(self) -> list[Candidate]:
        """Ask the other workers what they can hold; wait a little for as many as are wished."""
        wished = (self._wish.nodes or 1) - 1
        deadline = asyncio.get_running_loop().time() + _NODES_TIMEOUT_S
        while True:
            workers = [
                worker
                for worker in self._mesh.live_workers(time.time())
                if str(worker.node_id) != self._own.node
            ]
            asks = (self._facts(worker.node_id) for worker in workers)
            found = [
                Candidate(str(worker.node_id), worker.certificate.name, facts.free_bytes)
                for worker, facts in zip(workers, await asyncio.gather(*asks), strict=True)
                if facts is not None
            ]
            if len(found) >= wished or asyncio.get_running_loop().time() > deadline:
                return found
            self._progress("planning", f"waiting for {wished - len(found)} more nodes")
            await asyncio.sleep(5 * _POLL_S)

    async def _facts(self, node: NodeId) -> Facts | None:
        try:
            answer = await self._mesh.ask(node, AskFacts(), _FACTS_TIMEOUT_S)
        except CoveyError as error:
            _log.info("node %s is left out of the plan: %s", node, error.line())
            return None
        return answer if isinstance(answer, Facts) else None

    def _cut(self, path: Path, plan: Plan) -> list[cut.PartFile]:
        folder = self._settings.state_dir / "parts"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts = []
        with GgufFile(path) as model:
            for stage in plan.stages:
                # Named by its content in the end: two models may have the same header.
                fresh = folder / f"{self._ring}-{stage.first}.new"
                part = cut.write_part(model, stage.first, stage.last, fresh)
                parts.append(replace(part, path=fresh.rename(folder / f"{part.sha256}.gguf")))
        return parts

    async def _load(self, plan: Plan, parts: Sequence[cut.PartFile]) -> None:
        """Start all engines of a cut model at the same time, then close the ring behind them.

        `plan.stages` ends with the head's last part; as a process the head is stage 0 of the ring.
        """
        nodes = [NodeId.parse(stage.node) for stage in plan.stages[:-1]]
        middle = range(1, len(nodes))
        self._progress("loading", "the stages fetch and load their layers")
        heard = asyncio.create_task(self._stay_heard(nodes), name=f"stages of {self._ring}")
        try:
            head, *ports = await _all([
                self._load_head([parts[0].path, parts[-1].path], nodes),
                *(self._load_stage(index, nodes, parts[index]) for index in middle),
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

    async def _load_head(self, paths: Sequence[Path], nodes: Sequence[NodeId]) -> int:
        self.head = await self._engines.start_head(
            paths, Place(self._ring, self._epoch, 0, len(nodes)), nodes[-1], name=self._wish.name,
            context=self.context, frames=self._settings.engine.frames, draft=self._draft,
        )  # fmt: skip
        return self.head.port

    async def _load_stage(self, index: int, nodes: Sequence[NodeId], part: cut.PartFile) -> int:
        """Have a node fetch and load a part; returns the port on which it then listens."""
        self._blobs.offer(part.sha256, part.path)
        node = nodes[index]
        source = endpoint.join(self._engines.own_address, self._settings.network.overlay_port)
        self._asked.add(node)
        await self._mesh.ask(
            node,
            LoadStage(
                ring=self._ring, token=self._token(), epoch=self._epoch, index=index,
                stages=len(nodes),
                sha256=part.sha256, size=part.size, source=f"http://{source}",
                predecessor=str(nodes[index - 1]), context=self.context,
                frames=self._settings.engine.frames,
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
