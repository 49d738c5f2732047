"""How a model would run, told before anything moves; and the wish that a request makes.

For `deployments.py`, which answers `agent plan` and `agent deploy`.
"""

from __future__ import annotations

import contextlib
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
from agent.deploy.wish import Wish
from agent.engine.cuttable import CutRule
from agent.errors import ModelError, UsageError
from agent.identity.keys import NodeId
from agent.models import bundled, catalogue
from agent.placement.inputs import Model
from agent.placement.results import Plan


def wish_of(request: DeployRequest, name: str, own: NodeId, models: Path) -> Wish:
    """Return a request as a wish of this node, not signed yet; files by their full paths.

    So it does not depend on where it was typed. What is neither stored in `models` nor a file here
    stays as it was typed.
    """
    files = []
    for model in (request.model, request.draft):
        found = ""
        if model not in ("", bundled.NAME):
            with contextlib.suppress(ModelError):
                found = str(model_path(model, models))
        files.append(found)
    return Wish(
        name=name, model=files[0] or request.model, draft=files[1] or request.draft,
        source=own.ed25519 if any(files) else b"", prefer=own.ed25519, author=own.ed25519,
        generation=1, at=0, nodes=request.nodes, context=request.context, engine=request.engine,
        objective=request.objective, least=request.least, only=tuple(request.only),
        never=tuple(request.never), rings=request.rings or 1,
    )  # fmt: skip


async def preview(wish: Wish, own: Own, mesh: Mesh, models: Path) -> dict[str, Any]:
    """Return the plan for a wish as JSON; a model of the catalogue need not be here.

    Raises CoveyError.
    """
    needs, context, model = await _needs(wish, models)
    planning = Planning(wish, own, mesh, lambda _phase, _words: None)
    found: dict[str, Any] = msgspec.to_builtins(await planning.plan(needs, context))
    return found | {"model": model, "context": context, "objective": wish.objective}


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
    wish: Wish, rings: int | None, own: Own, mesh: Mesh, models: Path, *, works: bool
) -> Rings:  # fmt: skip
    """Plan so many rings for a wish, or the best number of them (None). Raises CoveyError.

    `works`: this node is a worker.
    """
    if wish.engine == "rpc":
        raise UsageError(
            "--rings is for Covey's own rings, not for llama.cpp's RPC",
            hint="Deploy it several times, each with a --name and --tag of its own.",
        )
    if wish.source_id is not None and rings is not None:
        raise UsageError(
            f"{wish.model} lies on this node alone, and each of {rings} rings needs a head that has"
            " it"
        )
    needs, context, model = await _needs(wish, models)
    planning = Planning(wish, own, mesh, lambda _phase, _words: None)
    return Rings(model, context, await planning.ways(needs, context, rings, works=works))


async def _needs(wish: Wish, models: Path) -> tuple[Model, int, str]:
    """Return what placement takes of a model, its context, and its name."""
    if wish.source or wish.model == bundled.NAME:
        found = await asked(wish, models)
        return found.needs, found.context, found.facts.name
    try:
        entry, file = catalogue.choose(wish.model)
    except UsageError as error:
        raise ModelError(
            f"there is no model {wish.model}: it is no file on this node, no stored model, and"
            f" {error.message}",
            hint=error.hint,
        ) from None
    facts = catalogue.facts(entry, file)
    context = wish.context or default_context(facts)
    in_line = wish.engine == "rpc"
    cuts = CutRule() if in_line else catalogue.cuts(entry)
    name = f"{entry.name}:{file.quantisation}"
    return model_needs(facts, context, cuts, in_line=in_line), context, name
