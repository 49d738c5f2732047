"""How a model would run, told before anything moves; and the wish that a request makes.

For `deployments.py`, which answers `agent plan` and `agent deploy`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from agent.api import DeployRequest
from agent.deploy.asked import asked, model_path
from agent.deploy.mesh import Mesh
from agent.deploy.needs import default_context, model_needs
from agent.deploy.planning import Own, Planning
from agent.deploy.wish import Wish
from agent.engine.cuttable import CutRule
from agent.errors import ModelError, UsageError
from agent.identity.keys import NodeId
from agent.models import bundled, catalogue
from agent.placement.inputs import Model


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
        never=tuple(request.never),
    )  # fmt: skip


async def preview(wish: Wish, own: Own, mesh: Mesh, models: Path) -> dict[str, Any]:
    """Return the plan for a wish as JSON; a model of the catalogue need not be here.

    Raises CoveyError.
    """
    needs, context, model = await _needs(wish, models)
    planning = Planning(wish, own, mesh, lambda _phase, _words: None)
    found: dict[str, Any] = msgspec.to_builtins(await planning.plan(needs, context))
    return found | {"model": model, "context": context, "objective": wish.objective}


async def _needs(wish: Wish, models: Path) -> tuple[Model, int, str]:
    """Return what placement takes of a model, its context, and its name."""
    if wish.source or wish.model == bundled.NAME:
        found = await asked(wish, models)
        return found.needs, found.context, found.facts.name
    try:
        entry, file = catalogue.choose(wish.model)
    except UsageError as error:
        raise ModelError(
            f"there is no model {wish.model}: it is no file on this node, none of its stored models, and {error.message}",
            hint=error.hint,
        ) from None
    facts = catalogue.facts(entry, file)
    context = wish.context or default_context(facts)
    in_line = wish.engine == "rpc"
    cuts = CutRule() if in_line else catalogue.cuts(entry)
    name = f"{entry.name}:{file.quantisation}"
    return model_needs(facts, context, cuts, in_line=in_line), context, name
