"""`agent deploy`, `undeploy`, `ps`: what runs in the mesh; the same on every node."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from agent.cli.common import call, echo_json, json_option, table, with_config
from agent.cli.picture import picture
from agent.cli.placing import asked, placing
from agent.config import Config
from agent.errors import UsageError, from_wire

if TYPE_CHECKING:
    from agent.client import AgentClient

_POLL_S = 0.2


@click.command(short_help="Run a model on the mesh.")
@click.argument("model")
@click.option("--name", default="", help="What clients call it (else the model's own name).")
@placing
@click.option("--no-wait", is_flag=True, help="Return at once instead of when it answers.")
@json_option
@with_config
def deploy(
    model: str, name: str, no_wait: bool, as_json: bool, settings: Config, **options: Any
) -> None:
    """Run MODEL (one that `agent pull` stored, a GGUF file, or covey-mini) until it is undeployed.

    `agent plan` says before where and how fast. This node is the ring's head if it is a worker. If
    it dies, another one becomes the head of covey-mini; a file that only this node has waits until
    it is back.
    """
    body = asked(model, name, options)

    async def start(client: AgentClient) -> dict[str, Any]:
        answer: dict[str, Any] = await client.post("/v1/deployments", body)
        shown = ""
        while not no_wait and answer["phase"] not in ("ready", "failed", "waiting"):
            if answer["progress"] != shown and sys.stderr.isatty():
                shown = answer["progress"]
                click.echo(f"\r\x1b[K{shown}", nl=False, err=True)
            await asyncio.sleep(_POLL_S)
            answer = await _one(client, answer["name"])
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)
        return answer

    answer = call(settings, start)
    if answer["phase"] in ("failed", "waiting"):
        error = from_wire(answer["error"])
        drop = f"`agent undeploy {answer['name']}` drops it."
        if answer["phase"] == "waiting":
            drop = f"The agent goes on trying; {drop}"
        raise type(error)(error.message, hint=f"{error.hint} {drop}".strip())
    if as_json:
        echo_json(answer)
        return
    for reason in answer["reasons"]:
        click.echo(reason)
    for line in picture(answer["stages"]):
        click.echo(line)
    click.echo(f"{answer['name']} is {answer['phase']}.")


@click.command()
@click.argument("name")
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
    """List all deployments of the mesh: who owns them, and who holds which layers."""
    answer = call(settings, lambda client: client.get("/v1/deployments"))
    if as_json:
        echo_json(answer)
        return
    if not answer["deployments"]:
        click.echo("Nothing is deployed. `agent deploy covey-mini` runs the bundled model.")
        return
    rows = [
        [d["name"], d["phase"], str(d["nodes"]), d["owner_name"] or "-",
         str(d["owner_epoch"] or "-"), d["head_name"] or "-", d["url"] or "-", d["progress"]]
        for d in answer["deployments"]
    ]  # fmt: skip
    table(["name", "phase", "nodes", "owner", "epoch", "head", "url", "state"], rows)
    for deployment in answer["deployments"]:
        if deployment.get("gain"):
            click.echo(f"{deployment['name']}: {deployment['gain']}")
        for line in picture(deployment["stages"]):
            click.echo(line)


async def _one(client: AgentClient, name: str) -> dict[str, Any]:
    answer = await client.get("/v1/deployments")
    found: dict[str, Any] | None = next(
        (d for d in answer["deployments"] if d["name"] == name), None
    )
    if found is None:
        raise UsageError(f"{name} was undeployed meanwhile")
    return found
