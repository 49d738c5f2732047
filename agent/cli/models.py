"""`agent pull`, `models`, `rm`, `verify`: the models that this node keeps."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from agent import exits
from agent.cli import completing
from agent.cli.common import ago, call, echo_json, json_option, table, with_config
from agent.cli.progress import Progress
from agent.config import Config
from agent.errors import CoveyError, PeerError, UsageError, from_wire
from agent.models.room import size

if TYPE_CHECKING:
    from agent.client import AgentClient

_POLL_S = 0.3
_SHOWN = 10


@click.command(short_help="Fetch a model into this node's store.")
@click.argument("source", shell_complete=completing.sources)
@click.option("--name", default="", help="What it is called here (else what its file is called).")
@click.option("--sha256", default="", metavar="HEX", help="What the file's SHA-256 must be.")
@click.option("--pin/--no-pin", "pinned", default=None,
              help="Whether it stays when models.quota_bytes needs room.")  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Return at once; `agent models` shows how far it is.")
@click.option("--cancel", is_flag=True, help="End the pull named SOURCE, and drop what came.")
@json_option
@with_config
def pull(
    source: str,
    name: str,
    sha256: str,
    pinned: bool | None,
    no_wait: bool,
    cancel: bool,
    as_json: bool,
    settings: Config,
) -> None:
    """Fetch the model SOURCE into the store, checked, and go on where an earlier try ended.

    \b
    SOURCE is  a GGUF file on this node: a path with a / or ending in .gguf
               an https URL (http for loopback and overlay addresses)
               hf:ORG/REPO/FILE, a file of the hub (models.hub)
               any file of a split model (model-00001-of-00003.gguf): all are fetched
             a name of `agent catalogue` (llama-3.1-8b, or llama-3.1-8b:Q8_0)
               what `agent models` shows of other members: a name, an id or a SHA-256

    The agent does it: Ctrl-C ends this command, not the pull.
    """
    if cancel:
        path = f"/v1/pulls/{quote(source, safe='')}"
        answer = call(settings, lambda client: client.delete(path))
        if as_json:
            echo_json(answer)
        else:
            click.echo(f"{source} is not pulled any more; what came is removed.")
        return
    body = {"source": _absolute(source), "name": name, "sha256": sha256, "pinned": pinned}

    async def start(client: AgentClient) -> dict[str, Any]:
        answer: dict[str, Any] = await client.post("/v1/models/pull", body)
        return answer if no_wait else await _follow(client, answer, progress)

    with Progress() as progress:
        answer = call(settings, start, "")
    _raise(answer)
    if as_json:
        echo_json(answer)
    elif answer["phase"] != "done":
        click.echo(f"{answer['name']} is being pulled; `agent models` shows how far it is.")
    else:
        found = answer["result"]
        if answer["note"]:
            click.echo(answer["note"], err=True)
        files = f" in {found['files']} files" if found["files"] > 1 else ""
        click.echo(
            f"{answer['name']} is here: {size(found['size'])}{files}, SHA-256 {found['sha256']}."
        )
        if found["trust"] == "its first use":
            click.echo(
                "Nobody said beforehand what its SHA-256 is: what came is trusted from now on."
            )


@click.command(short_help="List the models here and at other members.")
@json_option
@with_config
def models(as_json: bool, settings: Config) -> None:
    """List this node's models, what is on its way, and what other members have."""
    answer = call(settings, lambda client: client.get("/v1/models"))
    if as_json:
        echo_json(answer)
        return
    if not answer["models"]:
        click.echo("No models are stored, here or at members. `agent pull SOURCE` fetches one.")
    else:
        table(
            ["name", "size", "architecture", "quantisation", "layers", "used", "here", "elsewhere",
             "id"],
            [_row(model) for model in answer["models"]],
        )  # fmt: skip
    quota = f" of {size(answer['quota_bytes'])}" if answer["quota_bytes"] else ""
    click.echo(
        f"{answer['folder']}: {size(answer['used_bytes'])}{quota} used, "
        f"{size(answer['free_bytes'])} free."
    )
    for model in answer["models"]:
        if model["error"]:
            click.echo(f"{model['name']}: {model['error']}")
    for fault in answer["faults"]:
        click.echo(fault)


@click.command(name="rm", short_help="Remove a model from the store.")
@click.argument("name", shell_complete=completing.stored)
@json_option
@with_config
def remove(name: str, as_json: bool, settings: Config) -> None:
    """Remove the model NAME from this node's store, unless a deployment uses it."""
    answer = call(settings, lambda client: client.delete(f"/v1/models/{quote(name, safe='')}"))
    if as_json:
        echo_json(answer)
    else:
        click.echo(f"{name} is removed.")


@click.command(short_help="Check stored models byte for byte.")
@click.argument("name", default="", shell_complete=completing.stored)
@click.option("--repair", is_flag=True, help="Fetch what is damaged anew, where its source is.")
@json_option
@with_config
def verify(name: str, repair: bool, as_json: bool, settings: Config) -> None:
    """Read the model NAME (else all) and compare every tensor with its manifest.

    Exit code 12 when something is damaged and was not repaired; the tensors are named.
    """
    body = {"name": name, "repair": repair}

    async def start(client: AgentClient) -> list[dict[str, Any]]:
        answer = await client.post("/v1/models/verify", body)
        answer = await _follow(client, answer, progress)
        _raise(answer)
        found: list[dict[str, Any]] = answer["result"]["models"]
        for model in found:
            if model["repairing"]:
                source = {"source": model["name"]}
                job = await client.post("/v1/models/pull", source)
                job = await _follow(client, job, progress)
                model["repaired"] = job["phase"] == "done"
                model["error"] = job["error"]
        return found

    with Progress() as progress:
        found = call(settings, start, "")
    if as_json:
        echo_json({"models": found})
    for model in found if not as_json else ():
        click.echo(_outcome(model))
    if not found and not as_json:
        click.echo("No models are stored.")
    if any(model["damaged"] and not model.get("repaired") for model in found):
        sys.exit(exits.DAMAGED)


def progress_line(job: dict[str, Any]) -> str:
    """Return in one line how far a job is: share, bytes, rate, time left."""
    total = job["total"]
    share = f"{100 * job['done'] // total} %, {size(job['done'])} of {size(total)}" if total else ""
    parts = [f"{job['name'] or 'models'}: {job['phase']}", share]
    if job["rate"]:
        parts.append(f"{size(job['rate'])}/s")
    if job["left_s"] is not None:
        parts.append(f"{ago(job['left_s'])} left")
    return ", ".join(part for part in parts if part)


async def _follow(client: AgentClient, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Wait for a job, drawing how far it is on a terminal; return how it ended."""
    try:
        while job["phase"] not in ("done", "failed", "cancelled"):
            progress.tell(progress_line(job))
            await asyncio.sleep(_POLL_S)
            answer = await client.get("/v1/models/jobs")
            found = next((j for j in answer["jobs"] if j["job"] == job["job"]), None)
            if found is None:
                raise PeerError(
                    f"the agent knows nothing of pulling {job['name']} any more",
                    hint="It may have been started anew: `agent models` shows how far it is.",
                )
            job = found
    except asyncio.CancelledError:
        if job["kind"] == "pull":
            click.echo(
                f"\n{job['name']} goes on in the agent: `agent pull {job['name']}` shows how far it"
                f" is, `agent pull --cancel {job['name']}` ends it.",
                err=True,
            )
        raise
    return job


def _raise(job: dict[str, Any]) -> None:
    if job["error"]:
        raise from_wire(job["error"])
    if job["phase"] == "cancelled":
        raise UsageError(f"pulling {job['name']} was cancelled meanwhile")


def _absolute(source: str) -> str:
    """Return a path as the agent understands it; the agent runs in another folder."""
    if "://" in source or source.startswith("hf:"):
        return source
    path = Path(source).expanduser()
    return str(path.absolute()) if "/" in source or path.suffix == ".gguf" else source


def _row(model: dict[str, Any]) -> list[str]:
    here = "-"
    if model["here"]:
        here = model["phase"]
        if model["phase"] != "whole" and model["size"]:
            here += f" {100 * model['done'] // model['size']} %"
        if model["used_by"]:
            here = f"used by {model['used_by']}"
        elif model["pinned"]:
            here += ", pinned"
    used = "-" if not model["here"] else ago(
        None if model["used_at"] is None else max(0.0, time.time() - model["used_at"])
    )  # fmt: skip
    return [model["name"], size(model["size"]), model["architecture"] or "-",
            model["quantisation"] or "-", str(model["layers"] or "-"), used, here,
            ", ".join(model["elsewhere"]) or "-", model["id"][:12] or "-"]  # fmt: skip


def _outcome(model: dict[str, Any]) -> str:
    damaged = model["damaged"]
    if not damaged:
        return f"{model['name']} is whole."
    names = ", ".join(name or "the header" for name in damaged[:_SHOWN])
    more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    line = f"{model['name']} is damaged: {names}{more}."
    if model.get("repaired"):
        return f"{line} It is repaired."
    error = model.get("error")
    why = f" {_line(from_wire(error))}" if error else ""
    return (
        f"{line}{why}" if error else f"{line} `agent verify {model['name']} --repair` fetches it."
    )


def _line(error: CoveyError) -> str:
    return f"It was not repaired: {error.line()}"
