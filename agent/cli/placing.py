"""`agent plan`: how a model would run, and why; its options are those of `agent deploy` too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli import completing
from agent.cli.common import call, echo_json, json_option, table, with_config
from agent.cli.picture import picture
from agent.config import Config
from agent.deploy.ringkey import MOST_RINGS

if TYPE_CHECKING:
    from agent.client import AgentClient

# Measuring the links of a plan takes up to three rounds of about 20 s.
PLAN_TIMEOUT_S = 75.0

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _rings(_: click.Context, param: click.Parameter, value: str) -> int | None:
    """Option callback: a number of rings, or None for `auto`."""
    if value == "auto":
        return None
    number = int(value) if value.isascii() and value.isdecimal() and len(value) < 4 else 0
    if not 1 <= number <= MOST_RINGS:
        raise click.BadParameter(f"{value!r} is neither 1 to {MOST_RINGS} nor auto.", param=param)
    return number


_OPTIONS = (
    click.option("--nodes", type=click.IntRange(min=1),
                 help="Cut it over exactly so many nodes (else: as many as are best)."),
    click.option("--min-nodes", "least", type=click.IntRange(min=1), default=1,
                 help="Cut it over at least so many."),
    click.option("--rings", default="1", show_default=True, callback=_rings, metavar="N|auto",
                 help="Run so many of them on different nodes, each with the whole model, for more "
                 "answers at once; auto: the number that promises the most tokens/s."),
    click.option("--objective", type=click.Choice(["auto", "latency", "throughput"]),
                 default="auto", show_default=True,
                 help="latency: one answer's tokens as fast as can be; throughput: many answers at "
                 "once; auto: the former, unless the latter is much better at about the same."),
    click.option("--tag", "only", multiple=True, metavar="TAG",
                 help="Only on nodes with this tag; several: with any of them."),
    click.option("--not-tag", "never", multiple=True, metavar="TAG",
                 help="Never on nodes with this tag; may be given several times."),
    click.option("--context", type=click.IntRange(min=16), default=None,
                 help="Tokens that its requests may hold together, or one alone (else what the "
                 "model was trained for, up to 8192)."),
    click.option("--engine", type=click.Choice(["ring", "rpc"]), default="ring", show_default=True,
                 help="What spreads it over nodes: Covey's ring, or, for models that cannot be "
                 "cut, llama.cpp's own RPC."),
    click.option("--draft", default="", shell_complete=completing.models,
                 help="A small model of the same family whose guesses are computed ahead (a model "
                 "in any member's store, or a GGUF file on this node)."),
)  # fmt: skip


def placing(command: _Command) -> _Command:
    """Give a command the options that say where a model may run; see `asked`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked(model: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a request from what `placing` gave."""
    return options | {"model": model, "name": name, "context": options["context"] or 0}


@click.command(short_help="Say how a model would run, and why.")
@click.argument("model", shell_complete=completing.models)
@placing
@json_option
@with_config
def plan(model: str, as_json: bool, settings: Config, **options: Any) -> None:
    """Say how MODEL would run on this mesh, how fast, and why; nothing is moved or started.

    MODEL is a model in this node's or another member's store, a GGUF file on this node, covey-mini,
    or a name of `agent catalogue`, which need not be here (llama-3.1-8b, or llama-3.1-8b:Q8_0).
    Links on which the plan rests are measured if they were not yet.
    """

    async def look(client: AgentClient) -> dict[str, Any]:
        body = asked(model, "", options)
        answer: dict[str, Any] = await client.post("/v1/plan", body, timeout_s=PLAN_TIMEOUT_S)
        return answer

    found = call(settings, look, "finding nodes and measuring links")
    if as_json:
        echo_json(found)
        return
    click.echo(f"{found['model']}, {found['context']} tokens of context:")
    if "rings" in found:
        _show_rings(found)
    else:
        _show(found)


def _show_rings(found: dict[str, Any]) -> None:
    """Print each ring, what all of them are predicted to do, and other numbers of rings."""
    rings = found["rings"]
    for number, ring in enumerate(rings, 1):
        click.echo(f"\nring {number} of {len(rings)}, {ring['tokens_s']:.1f} tokens/s:")
        _show(ring, alternatives=False)
    click.echo(
        f"\n{len(rings)} ring{'s' * (len(rings) > 1)}: {found['tokens_s']:.1f} tokens/s in all, for"
        f" {found['streams']} answers at once"
    )
    if found["otherwise"]:
        click.echo()
        table(["otherwise", "nodes", "tokens/s"], [
            [f"{way['rings']} ring{'s' * (way['rings'] > 1)}",
             "; ".join(", ".join(names) for names in way["names"]), f"{way['tokens_s']:.1f}"]
            for way in found["otherwise"]
        ])  # fmt: skip


def _show(found: dict[str, Any], *, alternatives: bool = True) -> None:
    for line in picture([stage | {"runs_on": ""} for stage in found["stages"]]):
        click.echo(line)
    for reason in found["reasons"]:
        click.echo(reason)
    for one in found.get("running", ()):
        click.echo(f"{one['name']} runs it: {one['gain'] or 'no better ring is known'}")
    if found["memory"]:
        click.echo()
        table(["node", "needs", "free"], [
            [one["name"], f"{one['needed'] / 2**20:,.0f} MiB", f"{one['free'] / 2**20:,.0f} MiB"]
            for one in found["memory"]
        ])  # fmt: skip
    if alternatives and found["alternatives"]:
        click.echo()
        table(["otherwise", "nodes", "ms a token", "tokens/s"], [
            [one["title"], ", ".join(one["names"]), f"{1000 * one['token_s']:.1f}",
             f"{one['tokens_s']:.1f}"]
            for one in found["alternatives"]
        ])  # fmt: skip
