"""How every deployment of the mesh is, as this node can tell: `agent ps` on any node.

What this node owns or runs it knows; for the rest it asks the owners, each at most once a second,
and says so when one does not answer. Used by `deployments.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from agent.deploy.executor import Ask, Executor
from agent.deploy.mesh import Mesh
from agent.deploy.messages import AskStatus, HeadState, Status, Statuses
from agent.deploy.ringkey import split
from agent.deploy.rings import Rings
from agent.deploy.wish import Wish
from agent.errors import CoveyError, PeerError, to_wire
from agent.identity.keys import NodeId
from agent.ownership.owner import View

# A person cannot read faster, and a program that asks more often gets the same again.
CACHED_S = 1.0
_ASK_TIMEOUT_S = 2.0
# An owner that just died does not answer, and its successor is known sooner than that is sure.
_LOOK_S = 0.1
_HOPS = 2


class Owners(Protocol):
    """What the board needs of ownership."""

    def view(self, name: str) -> View:
        """Return what this node knows of a deployment's owner without asking anyone."""

    def first(self, name: str) -> NodeId | None:
        """Return who comes first for a deployment among the workers that are there."""


class Board:
    """Describes deployments for the local API, and answers other members who ask."""

    def __init__(
        self, own: NodeId, owners: Owners, executor: Executor, rings: Rings, mesh: Mesh, ask: Ask,
        headless: Callable[[str], CoveyError | None] = lambda _: None,
    ) -> None:  # fmt: skip
        """`headless` says why no node may be the head of a deployment that this node owns."""
        self._own = own
        self._owners = owners
        self._executor = executor
        self._rings = rings
        self._mesh = mesh
        self._ask = ask
        self._headless = headless
        self._cache: dict[NodeId, tuple[float, dict[str, Status]]] = {}
        self._asking = asyncio.Lock()

    def forget(self) -> None:
        """Take no answer for a new wish that was given for one of the same name before."""
        self._cache.clear()

    def answer(self, request: AskStatus) -> Statuses:
        """Answer another member with what this node knows itself."""
        return Statuses(tuple(self.status(name) for name in request.names))

    def status(self, name: str) -> Status:
        """Return what this node knows of a deployment without asking anyone."""
        view = self._owners.view(name)
        state = None
        if view.head is not None:
            state = self._executor.state(name, view.head)
            if view.head == self._own:
                state = self._rings.state(name)
        elif view.owner == self._own and (error := self._headless(name)) is not None:
            state = HeadState(name, "waiting", error.line(), error=to_wire(error))
        return Status(
            name, str(view.owner or ""), str(view.head or ""),
            view.token.epoch if view.token else 0, state,
        )  # fmt: skip

    async def describe(self, wishes: Iterable[Wish]) -> list[dict[str, Any]]:
        """Describe the deployments, asking owners where this node does not know.

        There is one description for each ring.
        """
        rings = [(wish, key) for wish in wishes for key in wish.keys]
        found = {key: self.status(key) for _, key in rings}
        silent: dict[str, NodeId] = {}
        # Whoever is asked may know better whom to ask.
        for _ in range(_HOPS):
            ask: dict[NodeId, list[str]] = {}
            for name, status in found.items():
                owner = self._owner(name, status)
                if (
                    status.state is None
                    and owner is not None
                    and owner != self._own
                    and (owner not in silent.values())
                ):
                    ask.setdefault(owner, []).append(name)
            async with self._asking:
                answers = await self._answers(ask)
            for node, names in ask.items():
                statuses = answers.get(node)
                for name in names:
                    if statuses is None:
                        # Meanwhile this node may have heard of another owner.
                        found[name] = self.status(name)
                        silent[name] = node
                    elif name in statuses and (statuses[name].owner or statuses[name].state):
                        found[name] = statuses[name]
                        silent.pop(name, None)
        return [
            self._describe(wish, found[key], silent.get(key), self._besides(wish, key, found))
            for wish, key in rings
        ]

    def _besides(self, wish: Wish, key: str, found: Mapping[str, Status]) -> frozenset[str]:
        """Return the nodes (ids) that have part in other rings of a deployment."""
        others = [found[other] for other in wish.keys if other != key]
        stages = [stage.node for status in others if status.state for stage in status.state.stages]
        return frozenset({*stages, *(status.head for status in others)} - {""})

    async def _answers(
        self, ask: Mapping[NodeId, list[str]]
    ) -> dict[NodeId, dict[str, Status] | None]:
        """Ask some nodes; whoever is slow is waited for only while nobody else owns what it did."""
        asking = {
            node: asyncio.create_task(self._statuses(node, names)) for node, names in ask.items()
        }
        pending = set(asking.values())
        try:
            while pending:
                pending = (await asyncio.wait(pending, timeout=_LOOK_S))[1]
                for node, names in ask.items():
                    if asking[node] in pending and self._replaced(node, names):
                        pending.discard(asking[node])
            return {node: task.result() for node, task in asking.items() if task.done()}
        finally:
            for task in asking.values():
                task.cancel()

    def _replaced(self, node: NodeId, names: Sequence[str]) -> bool:
        """Say whether all that a node was asked for has another owner by now."""
        statuses = [self.status(name) for name in names]
        return all(s.state is not None or s.owner not in ("", str(node)) for s in statuses)

    def _owner(self, name: str, status: Status) -> NodeId | None:
        return NodeId.parse(status.owner) if status.owner else self._owners.first(name)

    async def _statuses(self, node: NodeId, names: list[str]) -> dict[str, Status] | None:
        """Return what a node answers, or answered within a second; None if it does not."""
        at, known = self._cache.get(node, (float("-inf"), {}))
        now = time.monotonic()
        if now - at < CACHED_S and known.keys() >= set(names):
            return known
        try:
            answer = await self._ask(node, AskStatus(tuple(names)), _ASK_TIMEOUT_S)
        except CoveyError:
            return None
        if not isinstance(answer, Statuses):
            return None
        known = {status.name: status for status in answer.statuses}
        self._cache[node] = (time.monotonic(), known)
        return known

    # ------------------------------------------------------------------ as JSON

    def _describe(
        self, wish: Wish, status: Status, silent: NodeId | None, besides: frozenset[str]
    ) -> dict[str, Any]:
        state = status.state
        if state is None or not state.phase:
            state = self._without_ring(wish, status, silent, besides)
        return {
            "name": wish.name,
            "key": status.name,
            "number": split(status.name)[1],
            "rings": wish.rings,
            "model": wish.model,
            "model_id": wish.model_id,
            "engine": wish.engine,
            "draft": wish.draft,
            "wish": {
                "nodes": wish.nodes,
                "least": wish.least,
                "context": wish.context,
                "objective": wish.objective,
                "only": list(wish.only),
                "never": list(wish.never),
            },
            "generation": wish.generation,
            "author": str(wish.author_id),
            "source": str(wish.source_id or ""),
            "owner": status.owner,
            "owner_name": self._name(status.owner),
            "owner_epoch": status.epoch,
            "head": status.head,
            "head_name": self._name(status.head),
            "ring": state.ring,
            "epoch": state.epoch,
            "phase": state.phase,
            "progress": state.progress,
            "context": state.context,
            "nodes": len({stage.node for stage in state.stages}),
            "stages": [msgspec.to_builtins(stage) for stage in state.stages],
            "reasons": list(state.reasons),
            "url": state.url if state.phase == "ready" else "",
            "error": state.error,
            "stays": state.stays,
            "gain": state.gain,
        }

    def _without_ring(
        self, wish: Wish, status: Status, silent: NodeId | None, besides: frozenset[str]
    ) -> HeadState:
        """Say why nothing runs yet, or why nothing is known.

        `besides` are the nodes of the other rings of its deployment.
        """
        if silent is not None:
            name = self._name(str(silent))
            return HeadState(wish.name, "unknown", f"its owner, {name}, does not answer")
        error: CoveyError | None = None
        live = {member.node_id for member in self._mesh.live_workers(time.time())}
        staying = live - self._mesh.draining()
        if wish.source_id is not None and wish.source_id not in live:
            error = PeerError(
                f"{wish.model} lies on {self._name(str(wish.source_id))} alone, and that node is "
                "not there",
                hint="Start its agent, or deploy a file of another node.",
            )
        elif wish.source_id is not None and wish.source_id not in staying:
            error = PeerError(
                f"{wish.model} lies on {self._name(str(wish.source_id))} alone, and that node is "
                "draining",
                hint="`agent drain --off` there takes that back.",
            )
        elif live and not staying:
            error = PeerError(
                "every worker that is there is draining",
                hint="`agent drain --off` on one of them takes that back.",
            )
        elif staying and besides.issuperset(str(node) for node in staying):
            named = ", ".join(sorted(self._name(node) for node in besides))
            error = PeerError(
                f"no worker is left for this ring: the others of {wish.name} have {named}",
                hint="It is started once there is one; `agent invite` lets more machines join.",
            )
        elif status.owner == str(self._own):
            error = self._executor.error(status.name)
        if error is not None:
            return HeadState(wish.name, "waiting", error.line(), error=to_wire(error))
        if not status.owner:
            words = "no owner has taken it up yet"
        elif not status.epoch:
            words = f"{self._name(status.owner)} is taking it up"
        else:
            words = f"{self._name(status.head)} is to be its head"
        return HeadState(wish.name, "planning", words)

    def _name(self, node: str) -> str:
        """Return a node's name for people; its id's end for one that is not known."""
        if not node:
            return ""
        member = self._mesh.find(NodeId.parse(node))
        return member.certificate.name if member else f"…{node[-8:]}"
