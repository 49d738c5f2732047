"""`agent drain`: this node's work goes to others, so that it may be switched off."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from agent import exits
from agent.cli.common import call, echo_json, json_option, with_config
from agent.cli.progress import Progress
from agent.config import Config
from agent.errors import PeerError, UsageError

if TYPE_CHECKING:
    from agent.client import AgentClient

_POLL_S = 0.5
# What is left may be about to move: a new head has to be found and loaded, an owner to be told. It
# counts as what stays when nothing else moves for so long.
_STAYS_S = 15.0


@click.command(short_help="Move this node's work to others.")
@click.option("--off", is_flag=True, help="Take it back: this node may be used again.")
@click.option("--once", is_flag=True, help="Only until the agent ends, and not after a restart.")
@json_option
@with_config
def drain(off: bool, once: bool, as_json: bool, settings: Config) -> None:
    """Have this node run nothing, so that it may be switched off; returns once nothing runs.

    Nothing new is placed here, rings leave it and their answers go on, and what it is the head of
    is started elsewhere before it ends here, once its last answer is written. What cannot move
    stays, and is said. Ctrl-C ends the waiting alone: the node drains until `agent drain --off`,
    after a restart too (with --once: until the agent ends).
    """
    if off and once:
        raise UsageError("--off takes a drain back, --once begins one", hint="Give one of them.")
    try:
        answer = call(settings, _take_back) if off else _waited(settings, once)
    except KeyboardInterrupt:
        click.echo("This node goes on draining; `agent drain --off` takes it back.", err=True)
        raise click.exceptions.Exit(exits.INTERRUPTED) from None
    name = answer["name"]
    if left := answer["work"] if not off else ():
        said = "; ".join(f"{work['deployment']} stays: {work['state']}" for work in left)
        raise PeerError(
            said,
            hint=f"{name} goes on draining: `agent drain` waits again, `agent drain --off` takes it"
            " back.",
        )
    if as_json:
        echo_json(answer)
    elif off:
        click.echo(f"{name} does not drain any more: it may be used again.")
    else:
        click.echo(f"{name} runs nothing now: it may be switched off.")


def _waited(settings: Config, once: bool) -> dict[str, Any]:
    with Progress() as progress:
        return call(settings, lambda client: _wait(client, progress, once), "")


async def _take_back(client: AgentClient) -> dict[str, Any]:
    answer: dict[str, Any] = await client.post("/v1/drain", {"off": True})
    return answer


async def _wait(client: AgentClient, progress: Progress, once: bool) -> dict[str, Any]:
    """Return the node's last answer: nothing runs on it any more, or only what stays."""
    answer: dict[str, Any] = await client.post("/v1/drain", {"once": once})
    moved_at = time.monotonic()
    while answer["work"]:
        if not all(work["stays"] for work in answer["work"]):
            moved_at = time.monotonic()
        if time.monotonic() - moved_at > _STAYS_S:
            break
        progress.tell("; ".join(f"{w['deployment']} ({w['what']}): {w['state']}"
                                for w in answer["work"]))  # fmt: skip
        await asyncio.sleep(_POLL_S)
        answer = await client.get("/v1/drain")
        if not answer["draining"]:
            raise PeerError(f"{answer['name']} does not drain any more: it was taken back")
    return answer
