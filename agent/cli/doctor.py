"""`agent doctor`: what is wrong with this node, what it means, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent import exits
from agent.cli.common import call, colours, echo_json, json_option, with_config
from agent.cli.progress import waiting
from agent.config import Config
from agent.errors import CoveyError
from agent.health import SEVERITIES, HealthItem

if TYPE_CHECKING:
    from agent.client import AgentClient
    from agent.doctor.facts import Agent

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan", "ok": "green"}
_INDENT = " " * 11


@click.command(short_help="Look for what is wrong with this node.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a report for whoever helps, a .tar.gz without keys, tickets or passwords.",
)
@json_option
@with_config
def doctor(bundle: Path | None, as_json: bool, settings: Config, sources: dict[str, str]) -> None:
    """Look at this machine, its network and its agent, and say what is wrong and what to do.

    Works without a running agent, also before this node is in a mesh. Each finding has a code,
    which docs/troubleshooting.md explains. Exit code 1: something is an error.
    """
    # Only here: no other command needs what looks at interfaces and keys.
    from agent.doctor import bundle as report
    from agent.doctor import look
    from agent.doctor.checks import examine, together

    answers, agent, fault = _asked(settings, report.ANSWERS if bundle else ("status", "peers"))
    with waiting("looking at this machine"):
        facts = look.facts(settings, agent, fault)
    items = together(examine(facts), agent.health if agent else ())
    if bundle is not None:
        report.write(bundle, settings, sources, facts, items, answers)
    if as_json:
        counts = {severity: _count(items, severity) for severity in SEVERITIES}
        echo_json({
            "items": items, "counts": counts, "running": agent is not None,
            "bundle": str(bundle) if bundle else None,
        })  # fmt: skip
    else:
        _show(items)
        if bundle is not None:
            click.echo(
                f"\nThe report is in {bundle}. It names machines and addresses; keys, tickets and "
                "passwords were taken out."
            )
    if _count(items, "error"):
        sys.exit(exits.FAULTY)


def _asked(
    settings: Config, paths: Sequence[str]
) -> tuple[dict[str, Any], Agent | None, CoveyError | None]:
    """Return what the agent answers, the agent itself, and why there is none.

    One that does not answer a question still answers the others.
    """
    from agent.doctor.facts import agent_of

    async def ask(client: AgentClient) -> dict[str, Any]:
        found = {"status": await client.get("/v1/status")}
        for path in paths:
            if path not in found:
                try:
                    found[path] = await client.get(f"/v1/{path}")
                except CoveyError as error:
                    found[path] = {"error": error.line()}
        return found

    try:
        answers = call(settings, ask)
    except CoveyError as fault:
        return {}, None, fault
    return answers, agent_of(answers["status"], answers.get("peers", {})), None


def _count(items: Sequence[HealthItem], severity: str) -> int:
    return sum(item.severity == severity for item in items)


def _show(items: Sequence[HealthItem]) -> None:
    coloured = colours()
    for item in items:
        word = f"{item.severity:<8}"
        if coloured:
            word = click.style(word, fg=_COLOURS[item.severity], bold=item.fault or None)
        if item.severity == "ok":
            click.echo(f"{word} {item.title}: {item.text}", color=coloured)
            continue
        click.echo(f"{word} {item.title} [{item.code}]", color=coloured)
        for line in (item.text, *(f"  {detail}" for detail in item.details)):
            click.echo(f"{_INDENT}{line}")
        if item.what_to_do:
            click.echo(f"{_INDENT}→ {item.what_to_do}")
    click.echo(f"\n{summary(items)}")


def summary(items: Sequence[HealthItem]) -> str:
    """Return how many of which kind there are, for people."""
    errors, warnings, notes = (_count(items, kind) for kind in ("error", "warning", "note"))
    return (
        f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning"
        f"{'' if warnings == 1 else 's'}, {notes} note{'' if notes == 1 else 's'}, "
        f"{_count(items, 'ok')} in order."
    )
