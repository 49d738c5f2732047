"""How a model would run, told before anything moves; and the wish that a request makes.

For `deployments.py`, which answers `agent plan` and `agent deploy`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.api import DeployRequest
from agent.deploy.asked import asked, model_path
from agent.deploy.beside import STREAMS
from agent.deploy.mesh import Mesh
from agent.deploy.needs import default_context, model_needs
from agent.deploy.planning import Own, Planning
from agent.deploy.stored import Stored
from agent.deploy.wish import Wish
from agent.engine.cuttable import CutRule
from agent.errors import ModelError, PeerError, UsageError
from agent.identity.keys import NodeId
from agent.models import bundled, catalogue
from agent.placement.inputs import Model
from agent.placement.results import Plan


@dataclass(frozen=True)
class _Named:
    """What was typed for a model: as a wish has it, and the id of a stored one, or its file."""

    model: str
    model_id: str = ""
    file: bool = False


async def wish_of(
    request: DeployRequest, name: str, own: NodeId, models: Path, stored: Stored
) -> Wish:
    """Return a request as a wish of this node, not signed yet.

    Stored models by their ids, files by their full paths, so it does not depend on where it was
    typed. What is neither stay as it was typed. Raises ModelError for a name that is two models'.
    """
    model = await _named(request.model, models, stored)
    draft = await _named(request.draft, models, stored)
    alone = model.file or draft.file
    # Of a stored model any node may be the head; which one had best be is for its owner to find.
    anywhere = not alone and bool(model.model_id or draft.model_id)
    return Wish(
        name=name, model=model.model, draft=draft.model, source=own.ed25519 if alone else b"",
        prefer=b"" if anywhere else own.ed25519, author=own.ed25519,
        generation=1, at=0, nodes=request.nodes, context=request.context, engine=request.engine,
        objective=request.objective, least=request.least, only=tuple(request.only),
        never=tuple(request.never), model_id=model.model_id, draft_id=draft.model_id,
        rings=request.rings or 1,
    )  # fmt: skip


async def _named(text: str, models: Path, stored: Stored) -> _Named:
    if text in ("", bundled.NAME):
        return _Named(text)
    if "/" not in text and (here := await stored.named(text, mesh=False)) is not None:
        return _Named(*here)
    try:
        return _Named(str(model_path(text, models)), file=True)
    except ModelError:
        there = None if "/" in text else await stored.named(text)
        return _Named(text) if there is None else _Named(*there)


async def preview(wish: Wish, own: Own, mesh: Mesh, models: Path, stored: Stored) -> dict[str, Any]:
    """Return the plan for a wish as JSON; a model of the catalogue need not be here.

    Raises CoveyError.
    """
    needs, context, model = await _needs(wish, models, stored)
    heads = await _heads(wish, own, mesh, stored)
    planning = Planning(wish, own, mesh, lambda _phase, _words: None, heads=heads)
    found: dict[str, Any] = msgspec.to_builtins(await planning.plan(needs, context))
    return found | {"model": model, "context": context, "objective": wish.objective}


async def _heads(wish: Wish, own: Own, mesh: Mesh, stored: Stored) -> frozenset[NodeId] | None:
    """Return who may be the head: who has the stored models; None for this node alone."""
    if not wish.stored_ids or wish.source:
        return None
    workers = {worker.node_id for worker in mesh.live_workers(time.time())} - mesh.draining()
    holders = frozenset(workers)
    for one in wish.stored_ids:
        here = {NodeId.parse(own.node.node)} if stored.path(one) is not None else frozenset()
        holders &= await stored.holders(one) | here
    return holders or frozenset(workers)


@dataclass(frozen=True)
class Rings:
    """How several rings of a model would run, the ways with other numbers of them last."""

    model: str
    context: int
    ways: Sequence[Sequence[Plan]]

    def settled(self, wish: Wish) -> Wish:
        """Return the wish with so many rings, and their heads."""
        first, *others = (NodeId.parse(plan.nodes[0]).ed25519 for plan in self.ways[0])
        return msgspec.structs.replace(
            wish, rings=len(self.ways[0]), prefer=first, heads=tuple(others)
        )

    def described(self, objective: str) -> dict[str, Any]:
        """Return it as JSON."""
        plans, *others = self.ways
        return {
            "model": self.model, "context": self.context, "objective": objective,
            "rings": [msgspec.to_builtins(plan) for plan in plans],
            "tokens_s": sum(plan.tokens_s for plan in plans), "streams": STREAMS,
            "otherwise": [
                {"rings": len(way), "tokens_s": sum(plan.tokens_s for plan in way),
                 "names": [list(dict.fromkeys(s.name for s in plan.stages)) for plan in way]}
                for way in others
            ],
        }  # fmt: skip


async def several(
    wish: Wish, rings: int | None, own: Own, mesh: Mesh, models: Path, stored: Stored
) -> Rings:
    """Plan so many rings for a wish, or the best number of them (None). Raises CoveyError.

    Of a stored model those that have it are the heads where they are enough for that number; else
    any worker may be one, which fetches what it lacks.
    """
    if wish.engine == "rpc":
        raise UsageError(
            "--rings is for Covey's own rings, not for llama.cpp's RPC",
            hint="Deploy it several times, each with a --name and --tag of its own.",
        )
    if wish.source_id is not None and rings is not None:
        raise UsageError(
            f"{wish.model} lies on this node alone, and each of {rings} rings needs a head that has"
            " it",
            hint="`agent pull` it into a store: then any node can be a head.",
        )
    needs, context, model = await _needs(wish, models, stored)
    holders = await _heads(wish, own, mesh, stored)

    async def over(heads: frozenset[NodeId] | None) -> Rings:
        planning = Planning(wish, own, mesh, lambda _phase, _words: None, heads=heads)
        return Rings(model, context, await planning.ways(needs, context, rings))

    if rings is not None and holders is not None and len(holders) >= rings:
        with contextlib.suppress(PeerError, ModelError, UsageError):
            return await over(holders)
    workers = {worker.node_id for worker in mesh.live_workers(time.time())} - mesh.draining()
    return await over(None if holders is None else frozenset(workers))


async def _needs(wish: Wish, models: Path, stored: Stored) -> tuple[Model, int, str]:
    """Return what placement takes of a model, its context, and its name."""
    if wish.source or wish.model_id or wish.model == bundled.NAME:
        found = await asked(wish, models, stored)
        return found.needs, found.context, found.facts.name
    try:
        entry, file = catalogue.choose(wish.model)
    except UsageError as error:
        raise ModelError(
            f"there is no model {wish.model}: it is no file on this node, no stored model here or"
            f" at another member, and"
            f" {error.message}",
            hint=error.hint,
        ) from None
    facts = catalogue.facts(entry, file)
    context = wish.context or default_context(facts)
    in_line = wish.engine == "rpc"
    cuts = CutRule() if in_line else catalogue.cuts(entry)
    name = f"{entry.name}:{file.quantisation}"
    return model_needs(facts, context, cuts, in_line=in_line), context, name
