"""`agent events`: what happened lately, here and in the mesh; `--follow` waits for more."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import click

from agent import exits
from agent.cli.common import call, json_option, with_config
from agent.config import Config

if TYPE_CHECKING:
    from agent.client import AgentClient

_POLL_S = 0.5


@click.command(short_help="Show what happened lately.")
@click.option("--follow", "-f", is_flag=True, help="Go on, until Ctrl-C.")
@click.option("--kind", default="", help="Only kinds that begin so, as member or link.down.")
@json_option
@with_config
def events(follow: bool, kind: str, as_json: bool, settings: Config) -> None:
    """Show events, oldest first: what this node saw (local), and what others told all (mesh).

    With --json each is a line of its own.
    """

    async def show(client: AgentClient) -> None:
        after = 0
        while True:
            answer: dict[str, Any] = await client.get(f"/v1/events?after={after}")
            for event in answer["events"]:
                if event["kind"].startswith(kind):
                    click.echo(json.dumps(event) if as_json else _line(event))
            after = answer["next"]
            if not follow:
                return
            await asyncio.sleep(_POLL_S)

    try:
        call(settings, show, "" if follow else "asking the agent")
    except KeyboardInterrupt:
        raise click.exceptions.Exit(exits.INTERRUPTED) from None


def _line(event: dict[str, Any]) -> str:
    at = time.strftime("%F %T", time.localtime(event["at"]))
    return (
        f"{at}  {event['scope']:<5}  {event['told_by']:<12}  {event['kind']:<17}  "
        f"{event['subject']}: {event['text']}"
    )
