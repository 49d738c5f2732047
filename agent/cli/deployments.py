"""`agent deploy`, `undeploy`, `ps`: what runs in the mesh; the same on every node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from agent.cli import completing
from agent.cli.common import call, echo_json, json_option, table, with_config
from agent.cli.picture import picture
from agent.cli.placing import PLAN_TIMEOUT_S, asked, placing
from agent.cli.progress import Progress
from agent.config import Config
from agent.errors import UsageError, from_wire

if TYPE_CHECKING:
    from agent.client import AgentClient

_POLL_S = 0.2
# One of several rings may wait for a moment, because another was quicker to get a node.
_RINGS_SETTLE_S = 10.0
# The header of a model that is not here comes first: some MB, over a slow uplink perhaps.
_DEPLOY_TIMEOUT_S = 60.0


@click.command(short_help="Run a model on the mesh.")
@click.argument("model", shell_complete=completing.models)
@click.option("--name", default="", help="What clients call it (else the model's own name).")
@placing
@click.option("--no-wait", is_flag=True, help="Return at once instead of when it answers.")
@json_option
@with_config
def deploy(
    model: str, name: str, no_wait: bool, as_json: bool, settings: Config, **options: Any
) -> None:
    """Run MODEL (one that `agent pull` stored, a GGUF file, or covey-mini) until it is undeployed.

    `agent plan` says before where and how fast. A model that any member has in its store is named
    as `agent models` lists it: its head is the best of the nodes that have it, and another one if
    that dies. The head of a file (a path), and of covey-mini, is this node if it is a worker; what
    only this node has waits until it is back. With --rings several run at once, each with the whole
    model on nodes of its own, and the gateway shares requests out among them.
    """
    body = asked(model, name, options)

    async def start(client: AgentClient) -> list[dict[str, Any]]:
        # Links are measured for the plan of several.
        timeout_s = _DEPLOY_TIMEOUT_S if options["rings"] == 1 else PLAN_TIMEOUT_S
        first: dict[str, Any] = await client.post("/v1/deployments", body, timeout_s=timeout_s)
        rings, shown, since = [first], "", time.monotonic()
        if first["rings"] > 1:
            rings = await _rings(client, first["name"])
        while not no_wait and not _settled(rings, time.monotonic() - since):
            line = "; ".join(_named(one) + one["progress"] for one in rings)
            if line != shown:
                shown, since = line, time.monotonic()
            progress.tell(line)
            await asyncio.sleep(_POLL_S)
            rings = await _rings(client, first["name"])
        return rings

    with Progress() as progress:
        progress.tell(f"finding nodes for {model}")
        rings = call(settings, start, "")
    for answer in rings:
        if answer["phase"] in ("failed", "waiting"):
            error = from_wire(answer["error"])
            drop = f"`agent undeploy {answer['name']}` drops it."
            if answer["phase"] == "waiting":
                drop = f"The agent goes on trying; {drop}"
            if any(one["phase"] == "ready" for one in rings):
                drop = f"The other rings answer. {drop}"
            line = f"{_named(answer)}{error.message}"
            raise type(error)(line, hint=f"{error.hint} {drop}".strip())
    if as_json:
        echo_json(rings[0] if len(rings) == 1 else {"deployments": rings})
        return
    for answer in rings:
        if len(rings) > 1:
            click.echo(f"ring {answer['number']} of {len(rings)}:")
        for reason in answer["reasons"]:
            click.echo(reason)
        for line in picture(answer["stages"]):
            click.echo(line)
    phases = " and ".join(sorted({answer["phase"] for answer in rings}))
    what = f"{rings[0]['name']} is" if len(rings) == 1 else f"All rings of {rings[0]['name']} are"
    click.echo(f"{what} {phases}.")


def _settled(rings: list[dict[str, Any]], since_s: float) -> bool:
    """Say whether there is nothing to wait for; `since_s`: for so long nothing has changed."""
    phases = [one["phase"] for one in rings]
    if any(phase not in ("ready", "failed", "waiting") for phase in phases):
        return False
    alone = len(rings) == 1
    return alone or "waiting" not in phases or since_s > _RINGS_SETTLE_S


def _named(ring: dict[str, Any]) -> str:
    """Return which of several rings it is, as the beginning of a line; empty for a single one."""
    return f"ring {ring['number']}: " if ring["rings"] > 1 else ""


@click.command()
@click.argument("name", shell_complete=completing.deployments)
@json_option
@with_config
def undeploy(name: str, as_json: bool, settings: Config) -> None:
    """End the deployment NAME on all its nodes; any node may be told."""
    path = f"/v1/deployments/{quote(name, safe='')}"
    answer = call(settings, lambda client: client.delete(path))
    if as_json:
        echo_json(answer)
    elif answer["phase"] == "ended":
        click.echo(f"{name} is ended.")
    else:
        click.echo(f"{name} will end: its head has been told, or is when it is there again.")


@click.command(short_help="List deployments and who holds what.")
@json_option
@with_config
def ps(as_json: bool, settings: Config) -> None:
    """List all deployments of the mesh: who owns them, and who holds which layers.

    One of several rings has a line for each of them.
    """
    answer = call(settings, lambda client: client.get("/v1/deployments"))
    if as_json:
        echo_json(answer)
        return
    if not answer["deployments"]:
        click.echo("Nothing is deployed. `agent deploy covey-mini` runs the bundled model.")
        return
    rows = [
        [_title(d), d["phase"], str(d["nodes"]), d["owner_name"] or "-",
         str(d["owner_epoch"] or "-"), d["head_name"] or "-", d["url"] or "-", d["progress"]]
        for d in answer["deployments"]
    ]  # fmt: skip
    table(["name", "phase", "nodes", "owner", "epoch", "head", "url", "state"], rows)
    for line in _lacking(answer["deployments"]):
        click.echo(line)
    for deployment in answer["deployments"]:
        if deployment["rings"] > 1 and deployment["stages"]:
            click.echo(f"{_title(deployment)}:")
        if deployment.get("gain"):
            click.echo(f"{_title(deployment)}: {deployment['gain']}")
        for line in picture(deployment["stages"]):
            click.echo(line)


def _title(ring: dict[str, Any]) -> str:
    name: str = ring["name"]
    return name if ring["rings"] == 1 else f"{name} {ring['number']}/{ring['rings']}"


def _lacking(rings: list[dict[str, Any]]) -> Iterator[str]:
    """Say of each deployment of several rings how many of them do not answer."""
    for name in dict.fromkeys(one["name"] for one in rings if one["rings"] > 1):
        each = [one for one in rings if one["name"] == name]
        ready = sum(one["phase"] == "ready" for one in each)
        if ready < len(each):
            yield f"{ready} of {len(each)} rings of {name} answer."


async def _rings(client: AgentClient, name: str) -> list[dict[str, Any]]:
    answer = await client.get("/v1/deployments")
    found = [d for d in answer["deployments"] if d["name"] == name]
    if not found:
        raise UsageError(f"{name} was undeployed meanwhile")
    return found
