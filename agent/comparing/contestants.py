"""Whom a mesh is compared with on its own nodes: the model whole on this one, and llama.cpp's RPC.

Both are there for the comparison alone: whatever ends it, they are ended. A shell; `agent bench`
uses it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from agent.comparing.wish import Server
from agent.config import Config
from agent.deploy.asked import model_facts, model_path
from agent.deploy.hardware import Hardware
from agent.deploy.needs import cuts_of, draft_bytes, model_needs, whole_bytes
from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine
from agent.errors import (
    CoveyError,
    MembershipError,
    ModelError,
    NotRunning,
    UsageError,
    from_wire,
    one_line,
)
from agent.models import bundled, store

if TYPE_CHECKING:
    from agent.client import AgentClient

_LOOPBACK = "127.0.0.1"
_POLL_S = 0.3
_DEPLOY_TIMEOUT_S = 75.0
_SETTLED = ("ready", "failed", "waiting")
# Deployments that are made for a comparison are called so.
RPC_PREFIX = "bench-rpc-"

Tell = Callable[[str], None]


def choose(deployments: Sequence[dict[str, Any]], model: str) -> dict[str, Any]:
    """Return the deployment that answers to `model`, or the only one there is for "".

    `deployments` are those of GET /v1/deployments. Raises UsageError, NotRunning.
    """
    names = sorted({str(one["name"]) for one in deployments})
    if not names:
        raise UsageError("nothing is deployed", hint="`agent deploy MODEL` runs a model.")
    if not model and len(names) > 1:
        raise UsageError(
            f"{len(names)} models are deployed: {one_line(', '.join(names))}",
            hint="Name the one to measure with --model.",
        )
    rings = [one for one in deployments if one["name"] == (model or names[0])]
    if not rings:
        raise UsageError(
            f"no deployment is called {model}", hint=f"There are {one_line(', '.join(names))}."
        )
    for ring in rings:
        if ring["phase"] != "ready":
            raise NotRunning(
                f"{ring['name']} does not answer: {one_line(ring['progress'])}",
                hint="`agent ps` shows when it does.",
            )
    return rings[0]


def nodes_of(ring: dict[str, Any]) -> list[str]:
    """Return the names of a deployment's nodes, its head first."""
    return list(dict.fromkeys(str(stage["name"]) for stage in ring["stages"]))


def head_of(ring: dict[str, Any]) -> Server:
    """Return a deployment's head as a server; raises UsageError where there are several."""
    if ring["rings"] > 1:
        raise UsageError(
            f"{ring['name']} has {ring['rings']} rings, and a gateway shares requests out",
            hint="Name a gateway of this mesh with --mesh URL.",
        )
    return Server(ring["url"], ring["name"], name="this mesh")


async def whole_file(client: AgentClient, model: str, model_id: str, models: Path) -> Path:
    """Return the file of a deployment's model on this node; raises ModelError if it has none."""
    if model == bundled.NAME:
        return bundled.path()
    if not model_id:
        return model_path(model, models)
    listed = await client.get("/v1/models")
    for one in listed["models"]:
        if one["id"] == model_id and one["here"] and one["phase"] == "whole":
            found = store.find(Path(listed["folder"]), one["name"])
            if found is not None:
                return found
    raise ModelError(
        f"{model} is not whole on this node, so it cannot run here alone",
        hint=f"`agent pull {model}` fetches it; or leave out --one-node.",
    )


@asynccontextmanager
async def one_node(client: AgentClient, ring: dict[str, Any], settings: Config) -> AsyncIterator[
    tuple[Server, str]
]:  # fmt: skip
    """Have this node run the model whole, beside what it runs already; also say by what.

    With the same context, the same draft model and the same engine as the mesh's. Raises
    CoveyError; ModelError where its memory does not hold that.
    """
    models = settings.models_dir
    path = await whole_file(client, ring["model"], ring["model_id"], models)
    draft: Path | None = None
    if ring["draft"]:
        draft_id = "" if Path(ring["draft"]).is_file() else await _id_of(client, ring["draft"])
        draft = await whole_file(client, ring["draft"], draft_id, models)
    hardware = Hardware(settings)
    layers = await hardware.gpu_layers()
    await asyncio.to_thread(_require_room, path, draft, ring["context"], hardware.free_bytes())
    engine = await Engine.start(
        EngineSpec(
            role="whole", files=(str(path),), model_name=ring["name"], n_ctx=ring["context"],
            threads=settings.engine.threads, gpu_layers=layers,
            flash_attention=settings.engine.flash_attention, http_address=_LOOPBACK,
            draft_file=str(draft or ""), cache=str(settings.engine_cache),
            confined=settings.engine.confine,
        ),
        load_timeout_s=settings.engine.load_timeout_s,
    )  # fmt: skip
    try:
        url = f"http://{_LOOPBACK}:{engine.http_port}"
        yield Server(url, ring["name"], name="one node"), engine.runs_on
    finally:
        await engine.stop()


@asynccontextmanager
async def over_rpc(
    client: AgentClient, ring: dict[str, Any], tell: Tell, warn: Tell
) -> AsyncIterator[tuple[Server, list[str]]]:
    """Deploy the same model by llama.cpp's RPC, over as many nodes; also say on which.

    It is undeployed at the end; `warn` hears if that is not possible. Raises CoveyError.
    """
    count = len(nodes_of(ring))
    if count < 2:
        raise UsageError(
            f"{ring['name']} is on one node, so there is nothing to spread by RPC",
            hint="Leave out --rpc, or deploy it with --nodes 2.",
        )
    name = RPC_PREFIX + secrets.token_hex(3)
    body = {
        "model": ring["model_id"] or ring["model"], "name": name, "engine": "rpc",
        "nodes": count, "context": ring["context"],
    }  # fmt: skip
    # From before the question on: one that is broken off may have been heard.
    try:
        await client.post("/v1/deployments", body, timeout_s=_DEPLOY_TIMEOUT_S)
        found = await _settled(client, name, tell)
        if found["phase"] != "ready":
            raise from_wire(found["error"])
        yield Server(found["url"], name, name="llama.cpp RPC"), nodes_of(found)
    finally:
        await _undeploy(client, name, warn)


async def _settled(client: AgentClient, name: str, tell: Tell) -> dict[str, Any]:
    while True:
        answer = await client.get("/v1/deployments")
        found: dict[str, Any] | None = next(
            (one for one in answer["deployments"] if one["name"] == name), None
        )
        if found is None:
            raise UsageError(f"{name} was undeployed meanwhile")
        if found["phase"] in _SETTLED:
            return found
        tell(f"llama.cpp RPC: {found['progress']}")
        await asyncio.sleep(_POLL_S)


async def _undeploy(client: AgentClient, name: str, warn: Tell) -> None:
    try:
        await client.delete(f"/v1/deployments/{quote(name, safe='')}")
    except (UsageError, MembershipError):
        pass  # it never came to be, or somebody else ended it; who may not deploy has not
    except CoveyError as error:
        warn(f"{name} was not undeployed: {error.line()} `agent undeploy {name}` does it.")


async def _id_of(client: AgentClient, model: str) -> str:
    listed = await client.get("/v1/models")
    return next((str(one["id"]) for one in listed["models"] if one["name"] == model), "")


def _require_room(path: Path, draft: Path | None, context: int, free: int) -> None:
    """Raise ModelError where `free` bytes do not hold a model, UsageError if it makes no chats."""
    facts = model_facts(path)
    if facts.purpose != "text":
        raise UsageError(f"{facts.name} is for {facts.purpose}: there is no chat to measure by")
    needed = whole_bytes(model_needs(facts, context, cuts_of(path)), context)
    if draft is not None:
        needed += draft_bytes(model_facts(draft), context)
    if needed > free:
        raise ModelError(
            f"{facts.name} does not fit on this node beside what it runs: "
            f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free",
            hint="Leave out --one-node: what does not fit on one node is what a mesh is for.",
        )
