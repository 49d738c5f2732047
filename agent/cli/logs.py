"""`agent logs`: what the engines of a deployment said last, on all its nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from agent import exits
from agent.cli import completing
from agent.cli.common import call, echo_json, json_option, with_config
from agent.config import Config
from agent.engine.tail import LINES
from agent.errors import EngineError, PeerError

if TYPE_CHECKING:
    from agent.client import AgentClient

_POLL_S = 1.0


@click.command(short_help="Show what engines said last.")
@click.argument("name", default="", shell_complete=completing.deployments)
@click.option("--node", default="", shell_complete=completing.members,
              help="Only what runs on this node: a name, or an id's end.")  # fmt: skip
@click.option(
    "--lines",
    type=click.IntRange(1, LINES),
    default=LINES,
    show_default=True,
    help="So many of each engine.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on, until Ctrl-C.")
@json_option
@with_config
def logs(name: str, node: str, lines: int, follow: bool, as_json: bool, settings: Config) -> None:
    """Show the last lines of the engines of the deployment NAME, or else of this node's.

    Those that ended, or did not start, are among them. With --follow and --json each line is an
    object of its own. Prompts and answers are never logged.
    """
    path = "/v1/logs?" + urlencode({"name": name, "node": node, "lines": lines})

    async def show(client: AgentClient) -> None:
        answer: dict[str, Any] = await client.get(path)
        if as_json and not follow:
            echo_json(answer)
        shown = _Shown(as_json=as_json)
        if follow or not as_json:
            shown.show(answer)
        if not follow:
            _require_some(answer, name)
        while follow:
            await asyncio.sleep(_POLL_S)
            shown.show(await client.get(path))

    try:
        call(settings, show, "" if follow else "asking the nodes")
    except KeyboardInterrupt:
        raise click.exceptions.Exit(exits.INTERRUPTED) from None


class _Shown:
    """Prints what was not printed yet."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._next: dict[tuple[str, int], int] = {}
        self._states: dict[tuple[str, int], str] = {}
        self._errors: dict[str, str] = {}

    def show(self, answer: dict[str, Any]) -> None:
        for found in answer["nodes"]:
            if found["error"] and found["error"] != self._errors.get(found["node"]):
                click.echo(f"{found['name']}: {found['error']}", err=True)
            self._errors[found["node"]] = found["error"]
            for tail in found["tails"]:
                for line in self._new(found["node"], tail):
                    fields = {"node": found["name"], "engine": tail["title"], "pid": tail["pid"]}
                    if self._as_json:
                        click.echo(json.dumps(fields | {"line": line}))
                    else:
                        click.echo(f"{found['name']}  {tail['title']}  {line}")

    def _new(self, node: str, tail: dict[str, Any]) -> Iterator[str]:
        key = node, tail["pid"]
        begin = self._next.get(key, 0)
        for number, line in enumerate(tail["lines"], tail["first"]):
            if number >= begin:
                yield line
        self._next[key] = tail["first"] + len(tail["lines"])
        if tail["state"] != "runs" and tail["state"] != self._states.get(key):
            yield f"({tail['state']})"
        self._states[key] = tail["state"]


def _require_some(answer: dict[str, Any], name: str) -> None:
    """Raise where nothing could be had at all."""
    if any(found["tails"] for found in answer["nodes"]):
        return
    for found in answer["nodes"]:
        if found["error"]:
            raise PeerError(f"{found['name']}: {found['error']}")
    what = f"of {name} " if name else ""
    raise EngineError(f"no engine {what}has run there since the agent is up", hint="`agent ps` "
                      "shows what runs where.")  # fmt: skip
