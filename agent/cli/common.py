"""What all commands share: configuration flags, --json, and calls to the running agent."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from agent import config
from agent.cli import completing
from agent.cli.progress import waiting

if TYPE_CHECKING:
    from agent.client import AgentClient

_Answer = TypeVar("_Answer")
_Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


_file_option = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file (else $COVEY_CONFIG, else the default place).",
)
_set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting, stronger than environment and file; repeatable.",
    shell_complete=completing.settings,
)


def with_config(command: _Command) -> _Command:
    """Add --config and --set to a command; it gets the Config as `settings`, and `sources`.

    `sources` says where each key that was set comes from; a command that does not name it does
    without.
    """
    wanted = inspect.signature(command).parameters

    @_file_option
    @_set_option
    @functools.wraps(command)
    def wrapper(file: Path | None, assignments: tuple[str, ...], **arguments: Any) -> Any:
        settings, sources = config.load(file, os.environ, assignments)
        if "sources" in wanted:
            arguments["sources"] = sources
        return command(settings=settings, **arguments)

    return wrapper


def call(
    settings: config.Config,
    use: Callable[[AgentClient], Awaitable[_Answer]],
    doing: str = "asking the agent",
) -> _Answer:
    """Run `use` with a client of the running agent and return what it returns.

    `doing` is drawn where that takes a while; "": `use` draws or prints something itself.
    """
    # Only here: half of what a command takes to start is aiohttp, and many need none.
    from agent.client import AgentClient

    async def session() -> _Answer:
        async with AgentClient(settings.socket) as client:
            return await use(client)

    with waiting(doing) if doing else nullcontext():
        return asyncio.run(session())


def echo_json(answer: Any) -> None:
    """Print an answer as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headers, columns as wide as their widest cell; no decoration to parse."""
    widths = [max(len(str(row[i])) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [[header.upper() for header in headers], *rows]:
        click.echo(
            "  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        )


def colours() -> bool:
    """Say whether output may be coloured: on a terminal, unless NO_COLOR is set (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def ago(seconds: float | None) -> str:
    """Return an age for people: 5 s, 3 min, 2 h, or never."""
    if seconds is None:
        return "never"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(_: click.Context, param: click.Parameter, value: str) -> float:
    """Option callback: a duration as people write it (90s, 30m, 1h, 7d), in seconds."""
    unit, number = _UNITS_S.get(value[-1:], 0), value[:-1]
    if not unit or not number.isascii() or not number.isdecimal() or int(number) == 0:
        raise click.BadParameter(
            f"{value!r} is no duration: write 90s, 30m, 1h or 7d.", param=param
        )
    return float(int(number) * unit)
