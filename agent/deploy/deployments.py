"""Deployments, for the daemon: the one object that knows the parts and what each is asked.

    deploy, undeploy ──▶ keeper (the book of wishes) ◀──▶ other members
                              │
    ownership (who coordinates) ──▶ executor ──Keep, Drop──▶ rings, here or on another node
                                                               │
                                                          stages, here or on others

Every node has all of it: any may be asked, any worker may own, be head, and hold stages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from agent.api import DeployRequest
from agent.config import Config
from agent.deploy import heads
from agent.deploy.asked import asked
from agent.deploy.beside import refused, room_for
from agent.deploy.blobs import BlobServer
from agent.deploy.board import Board
from agent.deploy.doubts import Doubts
from agent.deploy.engines import Engines
from agent.deploy.executor import Executor
from agent.deploy.heads import Head
from agent.deploy.keeper import BookKeeper
from agent.deploy.links import MEASURE_LIMIT_S, NOBODY, Around, Links
from agent.deploy.logs import gather
from agent.deploy.measuring import Measuring
from agent.deploy.mesh import Mesh
from agent.deploy.messages import (
    Answer,
    AskFacts,
    AskHead,
    AskLogs,
    AskStatus,
    CompareBook,
    Drop,
    EngineTails,
    ExchangeBook,
    HeadState,
    Keep,
    LinkFacts,
    MeasureLinks,
    Request,
)
from agent.deploy.offers import Offers
from agent.deploy.preview import Rings as PlannedRings
from agent.deploy.preview import preview, several, wish_of
from agent.deploy.ring import ring_id
from agent.deploy.ringkey import key_of, split
from agent.deploy.rings import Rings
from agent.deploy.stages import StageHost
from agent.deploy.stored import NoStore, Stored
from agent.deploy.succession import Succession
from agent.deploy.wish import Wish, check_name
from agent.deploy.work import work_here
from agent.errors import CoveyError, MembershipError, NotRunning, UsageError
from agent.figures import Engined
from agent.identity.keys import NodeId, NodeKey
from agent.ownership.lease import Token
from agent.ownership.owner import Want
from agent.ownership.service import OwnershipService

_log = logging.getLogger(__name__)

# `agent undeploy` says that a deployment is ended once its head says so, within this time.
_UNDEPLOY_WAIT_S = 6.0
_POLL_S = 0.2
_ASK_TIMEOUT_S = 2.0


Note = Callable[[str, str, str], None]
"""Called with an event's kind (deployment.owner, deployment.phase), the deployment, and words."""


class Deployments:
    """All that has to do with deployments on this node."""

    def __init__(
        self, settings: Config, key: NodeKey, name: str, mesh_id: bytes, engines: Engines,
        blobs: BlobServer, mesh: Mesh, note: Note = lambda kind, name, text: None,
        around: Around = NOBODY, stored: Stored | None = None,
    ) -> None:  # fmt: skip
        """`note(kind, name, text)` hears of a new owner here, and of a new phase of a ring here."""
        self._own = key.id
        self._name = name
        self._settings = settings
        self._note = note
        self._noted: dict[str, str] = {}
        self._draining: frozenset[NodeId] = frozenset()
        self._mesh = mesh
        self._doubts = Doubts()
        self._tasks: list[asyncio.Task[None]] = []
        self._avoided: dict[str, frozenset[NodeId]] = {}  # by ring's key
        self._wants: dict[str, Want] = {}
        self._keeper = BookKeeper(settings.state_dir, mesh_id, key, mesh, self._book_changed)
        self._rings = Rings(
            settings, key.id, name, engines, blobs, mesh, self._rings_changed,
            self._measured_links, stored, lambda: self._doubts.nodes(time.monotonic()),
        )  # fmt: skip
        self._stored = stored or NoStore()
        self._succession = Succession(
            mesh, self._rings.own, self._on_duty, self._stored, settings.models_dir,
            self._heads_changed, lambda name: self._stages.rings_of(name),
        )  # fmt: skip
        self._stages = StageHost(
            settings.state_dir / "stages", engines, self._drains, self._stored.part, self._rings
        )
        self._engines = engines
        self.hardware = engines.hardware
        self._logs = engines.logs
        self.offers = Offers(mesh, self._ask)
        self.links = Links(
            settings.state_dir / "links.json", settings.network.overlay_port,
            lambda node: engines.address(node), around,
        )  # fmt: skip
        self.hardware.links = self.links.facts
        self._measures = settings.engine.measure == "idle"
        self._measuring = Measuring(
            self.hardware, self.links, around, working=self._works, partners=self.partners
        )
        self._ownership = OwnershipService(
            key.id, settings.state_dir, mesh, wants=self._wanted, running=self._rings.running,
            changed=self._owned_changed,
        )  # fmt: skip
        self._executor = Executor(self._ownership, self._keeper, self._ask)
        self._board = Board(
            key.id, self._ownership, self._executor, self._rings, mesh, self._ask,
            self._succession.error,
        )  # fmt: skip
        self._news = asyncio.Event()

    # ------------------------------------------------------------------ life

    async def start(self, host: str, beat_port: int) -> None:
        """Read the book and take part, with beats on `host` (this node's overlay address).

        Raises StateError for a damaged file, EnvironmentFault when the UDP port is taken.
        """
        self._keeper.restore()
        self._read_wants()
        self._expect_parts()
        await self._ownership.start(host, beat_port)
        self.draining_changed()
        self.hardware.begin()
        self.links.restore()
        self._tasks = [
            asyncio.create_task(self._keeper.follow(), name="deployments compare"),
            asyncio.create_task(self._executor.follow(), name="deployments owned"),
            asyncio.create_task(self._follow_removed(), name="deployments removed"),
            asyncio.create_task(self._succession.follow(), name="deployments heads"),
        ]
        if self._measures:
            self._tasks.append(asyncio.create_task(self._measuring.run(), name="measuring"))

    async def stop(self) -> None:
        """Give back what this node owns, and end all rings and stages here."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        await self._ownership.stop()
        await self._rings.stop()
        await self._stages.stop()
        await self._engines.stop()
        await self.hardware.stop()

    # ------------------------------------------------------------------ what the daemon passes on

    async def on_gossip(self, author: NodeId, payload: bytes) -> bool:
        """Take in what came on the topic `keeper.TOPIC`; False for what makes no sense."""
        if not self._tasks:
            return True  # the stored book is not read yet; what is missed is compared later
        return await self._keeper.on_gossip(author, payload)

    def on_link(self, node: NodeId, up: bool) -> None:
        """Hear that a control connection to a member came up, or that the last one went."""
        self._keeper.on_link(node, up)
        if up:
            self._rings.came(node)
            self.trust(node)
        else:
            self.suspect(node)

    def suspect(self, node: NodeId) -> None:
        """Hear that a member may have died."""
        self._doubts.suspect(node, time.monotonic())
        self._ownership.suspect(node)

    def trust(self, node: NodeId) -> None:
        """Hear that a member is there (again)."""
        self._doubts.trust(node)
        self._ownership.trust(node)

    def draining_changed(self) -> None:
        """Hear that a member drains, this one perhaps, or that one does not any more."""
        if self._mesh.draining() != self._draining:
            self._draining = self._mesh.draining()
            self._expect_parts()
            self._rings.draining_changed()
            self._succession.look_soon()
            self._ownership.kick()

    async def answer(self, peer: NodeId, request: Request) -> Answer:
        """Do what a member asks; raises a CoveyError, which reaches that member."""
        if not self._tasks:
            raise NotRunning("the node is starting or stopping", hint="Try again in a moment.")
        match request:
            case Keep() | Drop() | AskHead():
                return await self._as_head(peer, request)
            case AskStatus():
                return self._board.answer(request)
            case AskLogs():
                return self._tails(request)
            case MeasureLinks():
                await self._measure_links(request)
                return await self.hardware.facts()
            case CompareBook() | ExchangeBook():
                return self._keeper.answer(request)
            case AskFacts():
                return await self._stages.answer(peer, request)
            case _:
                if not self._keeper.may_deploy(peer):
                    raise MembershipError(
                        "a node that has neither the role worker nor admin has no stages here"
                    )
                return await self._stages.answer(peer, request)

    # ------------------------------------------------------------------ the local API

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        """Check the model, tell the mesh the wish, and describe its (first) ring.

        Several rings are planned before, which may take a minute. Raises CoveyError.
        """
        self._keeper.require_may_deploy()
        models = self._settings.models_dir
        wanted = await wish_of(request, request.name or "m", self._own, models, self._stored)
        found = await asked(wanted, models, self._stored)
        facts = found.facts
        name = request.name or facts.name
        check_name(name, rings=request.rings or 1)
        workers = {
            member.node_id: member.certificate.name
            for member in self._mesh.members(time.time())
            if "worker" in member.certificate.roles
        }
        away = sorted(workers[node] for node in self._mesh.draining() & workers.keys())
        rings, nodes = request.rings or 1, request.nodes or 1
        named = request.nodes is not None or rings > 1
        if named and rings * nodes > len(workers) - len(away):
            what = f"a ring of {nodes} nodes was" if rings == 1 else f"{rings} rings were"
            each = f" over {nodes} nodes each" if rings > 1 and nodes > 1 else ""
            raise UsageError(
                f"{what} asked for{each}, and this mesh has "
                f"{len(workers) - len(away)} that could be in it"
                + "".join(f"; {other} is draining" for other in away),
                hint="`agent drain --off` takes a node back." if away
                else "`agent invite` lets more machines join.",
            )  # fmt: skip
        if request.context > facts.context:
            raise UsageError(
                f"a context of {request.context} tokens was asked for, and {facts.name} was "
                f"trained for {facts.context}"
            )
        wish = msgspec.structs.replace(wanted, name=name)
        file = wish.model if wish.model.startswith("/") else wish.draft
        if request.rings != 1:
            wish = (await self._several(wish, request.rings)).settled(wish)
            check_name(name, rings=wish.rings)
        if wish.source and self._own not in workers:
            raise MembershipError(
                f"{file} lies on this node, which is no worker, so nobody could be its head",
                hint="Deploy it on a worker that has the file.",
            )
        if wish.source and self._drains():
            raise UsageError(
                f"{file} lies on this node alone, which is draining",
                hint="`agent drain --off` takes that back; or deploy it on a node that has the file"
                " too.",
            )
        here = {other.name for other in self._keeper.book.wishes() if other.prefer_id == self._own}
        heads.encode([Head(other, 65535, facts.context, "x" * 8) for other in {*here, name}])
        wish = await self._keeper.add(wish)
        first_ring, *_ = await self._board.describe([wish])
        return first_ring

    async def plan(self, request: DeployRequest) -> dict[str, Any]:
        """Say how a model would run, before anything moves. Raises CoveyError."""
        models = self._settings.models_dir
        wish = await wish_of(request, request.name or "m", self._own, models, self._stored)
        if request.rings != 1:
            planned = await self._several(wish, request.rings)
            return planned.described(wish.objective)
        found = await preview(wish, await self._rings.own(), self._mesh, models, self._stored)
        model = wish.model_id or wish.model
        wishes = self._keeper.book.wishes()
        same = [other for other in wishes if (other.model_id or other.model) == model]
        running = await self._board.describe(same)
        return found | {"running": [{"name": one["name"], "gain": one["gain"]} for one in running]}

    async def undeploy(self, name: str) -> dict[str, Any]:
        """Tell the mesh that a deployment shall end, and wait a little until it has.

        Returns its phase, "ended", or "ending" when its head has not said so in time.
        """
        self._keeper.require_may_deploy()
        wish = self._keeper.book.find(name)
        before = await self._board.describe([wish]) if wish and not wish.removed else []
        await self._keeper.remove(name)
        heads = {one["key"]: NodeId.parse(one["head"]) for one in before if one["head"]}
        ended = await asyncio.gather(*(self._ends(key, head) for key, head in heads.items()))
        return {"name": name, "phase": "ended" if all(ended) else "ending"}

    async def describe(self) -> list[dict[str, Any]]:
        """Describe every deployment of the mesh."""
        return await self._board.describe(self._keeper.book.wishes())

    def wished(self) -> list[str]:
        """Return the names of the deployments that shall run."""
        return sorted(wish.name for wish in self._keeper.book.wishes())

    def wanted(self) -> dict[str, int]:
        """Return how many rings each deployment shall have, by its name."""
        return {wish.name: wish.rings for wish in self._keeper.book.wishes()}

    async def figures(self) -> Engined:
        """Return what the engines here did."""
        return await self._engines.figures()

    def engines(self) -> list[dict[str, Any]]:
        """Describe the engines that run here, for `agent status`."""
        return [*self._rings.engines(), *self._stages.engines()]

    async def logs(self, name: str, node: NodeId | None, lines: int) -> dict[str, Any]:
        """Describe what engines said last: those of a deployment, or of `node`, or this node's.

        Raises UsageError where there is no such deployment and nothing of it is kept here.
        """
        nodes = {node or self._own}
        if name and node is None:
            wish = self._keeper.book.find(name)
            if wish is not None and not wish.removed:
                for one in await self._board.describe([wish]):
                    found = [one["head"], *(stage["node"] for stage in one["stages"])]
                    nodes |= {NodeId.parse(each) for each in found if each}
            elif not self._tails(AskLogs(name=name)).tails:
                raise UsageError(
                    f"{name} is not deployed in this mesh", hint="`agent ps` shows what is."
                )
        asked = await gather(nodes, name, lines, self._ask, self._name_of)
        return {"deployment": name, "nodes": asked}

    async def work(self) -> list[dict[str, Any]]:
        """Describe what runs here and what becomes of it while this node drains."""
        heads_here = {name: self._rings.state(name).phase for name in self._rings.names()}
        stages_here = self._stages.running()
        if not heads_here and not stages_here:
            return []
        live = {worker.node_id for worker in self._mesh.live_workers(time.time())}
        staying = {str(node) for node in live - self._mesh.draining() - {self._own}}
        return work_here(
            str(self._own), self._name, heads_here, stages_here, await self.describe(), staying
        )

    def files(self) -> dict[Path, str]:
        """Return the model files of this node that deployments use or wait for, and which do.

        Of stored models every copy counts: its node may be the next head.
        """
        wishes = [*self._keeper.book.wishes(), *self._rings.names().values()]
        found: dict[Path, str] = {}
        for wish in wishes:
            files = [self._stored.path(one) for one in wish.stored_ids]
            if wish.source_id == self._own:
                files += [Path(one) for one in (wish.model, wish.draft) if one.startswith("/")]
            found |= {file.resolve(): wish.name for file in files if file is not None}
        return found

    def partners(self) -> set[NodeId]:
        """Return the nodes whose stages form rings with those that run here."""
        return {*self._rings.partners(), *self._stages.partners()} - {self._own}

    # ------------------------------------------------------------------ inside

    async def _several(self, wish: Wish, rings: int | None) -> PlannedRings:
        own, models = await self._rings.own(), self._settings.models_dir
        return await several(wish, rings, own, self._mesh, models, self._stored)

    async def _measured_links(self, nodes: Sequence[NodeId]) -> Sequence[LinkFacts]:
        """Measure this node's links to others, where that is due; return all that are known."""
        await self.links.measure(nodes, MEASURE_LIMIT_S)
        return self.links.facts()

    async def _measure_links(self, request: MeasureLinks) -> None:
        wanted = {NodeId.parse(text) for text in request.to} - {self._own}
        members = [member.node_id for member in self._mesh.members(time.time())]
        self.links.keep(members)
        if self._measures:
            await self.links.measure(wanted.intersection(members), MEASURE_LIMIT_S)

    def _works(self) -> bool:
        return bool(self._rings.names() or self.engines())

    async def _as_head(self, peer: NodeId, request: Keep | Drop | AskHead) -> HeadState:
        if isinstance(request, AskHead):
            return self._rings.state(request.name)
        if isinstance(request, Drop):
            self._check_token(peer, request.name, request.token)
            return self._rings.drop(request.name)
        wish = Wish.decode(request.wish)
        self._check_token(peer, key_of(wish.name, request.number), request.token)
        known = self._keeper.book.find(wish.name)
        if known is None or known.rank < wish.rank:
            # The owner heard of it first; it is checked as if it had come by gossip.
            await self._keeper.on_gossip(peer, request.wish)
            known = self._keeper.book.find(wish.name)
        if known != wish:
            raise UsageError(f"another wish for {wish.name} counts here")
        if wish.removed or request.number > wish.rings:
            raise UsageError(f"{wish.name} shall not run any more")
        key = key_of(wish.name, request.number)
        if self._drains() and key not in self._rings.names():
            raise UsageError(f"{self._name} is draining", hint="Another worker is to be its head.")
        if wish.rings > 1 and key not in self._rings.names():
            other = room_for(request.number, self._stages.rings_of(wish.name))
            if other is not None:
                return HeadState(key, "taken", refused(wish.name, self._name, other).message)
            await self._rings.make_room(wish.name, request.number)
        return await self._rings.keep(
            wish, request.token, proven=request.proven, number=request.number
        )

    def _check_token(self, peer: NodeId, name: str, token: Token) -> None:
        if token.owner_id != peer or not self._ownership.admits(name, token):
            raise UsageError(
                f"…{peer.short} does not own {name} here any more (epoch {token.epoch})",
                hint="Nothing was changed; its present owner goes on.",
            )

    async def _ask(self, node: NodeId, request: Request, timeout_s: float) -> Answer:
        if node == self._own:
            return await self.answer(node, request)
        return await self._mesh.ask(node, request, timeout_s)

    async def _ends(self, name: str, head: NodeId) -> bool:
        try:
            async with asyncio.timeout(_UNDEPLOY_WAIT_S):
                while True:
                    state = await self._ask(head, AskHead(name), _ASK_TIMEOUT_S)
                    if isinstance(state, HeadState) and not state.phase:
                        return True
                    await asyncio.sleep(_POLL_S)
        except (TimeoutError, CoveyError):
            return False

    async def _follow_removed(self) -> None:
        """End the rings here whose wishes were taken back, whether their owner says so or not.

        A newer wish may have fewer rings than the one before.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            for key, kept in self._rings.names().items():
                wish = self._keeper.book.find(kept.name)
                if wish is None or wish.rank <= kept.rank:
                    continue
                if wish.removed or split(key)[1] > wish.rings:
                    await self._rings.end(key)

    def _tails(self, request: AskLogs) -> EngineTails:
        members = self._mesh.members(time.time()) if request.name else ()
        wish = self._keeper.book.find(request.name)
        keys = wish.keys if wish is not None else (request.name,)
        rings = {ring_id(member.node_id, key) for member in members for key in keys}
        return EngineTails(tuple(self._logs.tails(request.lines, request.name, rings)))

    def _name_of(self, node: NodeId) -> str:
        member = self._mesh.find(node)
        return member.certificate.name if member else f"…{node.short}"

    def _drains(self) -> bool:
        return self._own in self._mesh.draining()

    def _read_wants(self) -> None:
        self._wants = {
            key: Want(key, wish.head_of(number), wish.source_id, wish.removed,
                      self._succession.heads(wish, key))
            for wish in self._keeper.book.entries()
            for number, key in enumerate(wish.keys, 1)
        }  # fmt: skip

    def _expect_parts(self) -> None:
        """Have an engine in advance where this node may get a part of a ring."""
        member = self._mesh.find(self._own)
        works = member is not None and "worker" in member.certificate.roles and not self._drains()
        cut = any(wish.engine != "rpc" for wish in self._keeper.book.wishes())
        self._engines.expect(parts=works and cut)

    def _on_duty(self) -> list[tuple[Wish, str, str]]:
        """Return the wishes that this node owns, or is to own next, with the ring's key and id."""
        found = []
        for wish in self._keeper.book.wishes():
            for key in wish.keys:
                view = self._ownership.view(key)
                if view.owner == self._own or view.deputy:
                    found.append((wish, key, ring_id(view.head, key) if view.head else ""))
        return found

    def _wanted(self) -> Mapping[str, Want]:
        avoided = self._executor.avoided()
        if avoided != self._avoided:
            self._avoided = avoided
            for key, nodes in avoided.items():
                self._succession.refused(key, nodes)
        if not avoided:
            return self._wants
        return self._wants | {
            key: replace(self._wants[key], avoid=nodes)
            for key, nodes in avoided.items()
            if key in self._wants
        }

    def _heads_changed(self) -> None:
        self._read_wants()
        self._ownership.kick()

    def _book_changed(self) -> None:
        self._read_wants()
        self._expect_parts()
        self._board.forget()
        self._succession.look_soon()
        self._news.set()
        self._executor.changed()
        self._ownership.kick()

    def _rings_changed(self) -> None:
        for name in self._rings.names():
            self._note_once("deployment.phase", name, self._rings.state(name).phase)
        self._ownership.kick()

    def _owned_changed(self) -> None:
        for name, holdings in self._ownership.owned().items():
            epochs = [holding.token.epoch for holding in holdings if holding.main]
            if epochs:
                self._note_once("deployment.owner", name, f"owned here, epoch {epochs[0]}")
        self._executor.changed()

    def _note_once(self, kind: str, name: str, text: str) -> None:
        if self._noted.get(f"{kind} {name}") != text:
            self._noted[f"{kind} {name}"] = text
            self._note(kind, name, text)
