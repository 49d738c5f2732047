"""What a wish asks of the nodes: the model's file and sizes, the context, the draft model.

Read from the files on this node, before anything is planned; of a stored model that is not here,
from its header alone. Used by `build.py`, `succession.py` and `deployments.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from agent.deploy.needs import (
    cuts_of,
    default_context,
    draft_bytes,
    model_needs,
    spread_of,
    with_draft,
)
from agent.deploy.stored import NoStore, Stored
from agent.deploy.wish import Wish
from agent.engine.gguf_file import GgufFile, ModelFacts
from agent.errors import ModelError, UsageError
from agent.models import bundled, store
from agent.placement.inputs import Model


@dataclass(frozen=True)
class Asked:
    """A model's file and what it says of itself; `context` tokens for all requests together.

    `needs` is what placement takes, with the `draft` model, if there is one; `said` tells of it.
    `model_id` (hex): the model is a stored one, which other members may have too; empty: a file.
    `here`: `path` is all of it, not its header alone; `draft_here` says so of the draft model.
    """

    path: Path
    facts: ModelFacts
    context: int
    needs: Model
    draft: Path | None = None
    said: tuple[str, ...] = ()
    model_id: str = ""
    here: bool = True
    draft_here: bool = True


async def asked(wish: Wish, models: Path, stored: Stored | None = None) -> Asked:
    """Read what a wish names; `models` is the store's folder.

    Headers of stored models that are not here are fetched. Raises CoveyError.
    """
    stored = stored or NoStore()
    headers = {one: await stored.header(one) for one in wish.stored_ids}
    here = {one: stored.path(one) is not None for one in headers}
    for one in headers:
        if here[one]:
            store.mark_used(headers[one])
    path, draft = headers.get(wish.model_id), headers.get(wish.draft_id)
    found = await asyncio.to_thread(_asked, wish, models, path, draft)
    return replace(
        found, model_id=wish.model_id or found.model_id, here=here.get(wish.model_id, True),
        draft_here=here.get(wish.draft_id, True),
    )  # fmt: skip


def _asked(wish: Wish, models: Path, path: Path | None, draft: Path | None) -> Asked:
    """Read what a wish names; `path` and `draft` are those of stored models."""
    path = path or model_path(wish.model, models)
    facts = model_facts(path)
    context = wish.context or default_context(facts)
    in_line = wish.engine == "rpc"
    needs = model_needs(
        facts, context, spread_of(path) if in_line else cuts_of(path), in_line=in_line
    )
    stored_id = store.id_of(models, path)
    draft = draft_path(wish.draft, facts, models, draft)
    if draft is None:
        return Asked(path, facts, context, needs, model_id=stored_id)
    needed = draft_bytes(model_facts(draft), context)
    said = f"the head's memory holds the draft model {draft.name} too, {needed / 2**20:.1f} MiB"
    return Asked(path, facts, context, with_draft(needs, needed), draft, (said,), stored_id)


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
            f"there is no model {model}: it is no file on this node, no stored model of it or of"
            f" another member, and {bundled.NAME} is the only bundled one",
            hint="Give the path of a GGUF file, or `agent pull` it; `agent models` lists what is"
            " there.",
        )
    return path.resolve()


def model_facts(path: Path) -> ModelFacts:
    """Return what a model file says of itself; raises ModelError for a damaged one."""
    with GgufFile(path) as model:
        return model.facts()


def draft_path(
    model: str, facts: ModelFacts, models: Path, stored: Path | None = None
) -> Path | None:
    """Return the file of a draft model for the model of `facts`; None for "".

    `stored`: the draft model is a stored one, and this is its file. Raises CoveyError.
    """
    if not model:
        return None
    if facts.purpose != "text":
        raise UsageError(
            f"{facts.name} is for {facts.purpose}: a draft model has nothing to guess there",
            hint="Deploy it without --draft.",
        )
    return stored or model_path(model, models)
