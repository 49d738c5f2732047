"""`agent update`, `agent factory-reset`: another version on this appliance, or a fresh start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from agent.cli import completing
from agent.cli.common import ago, call, echo_json, json_option, with_config
from agent.cli.progress import Progress, waiting
from agent.config import Config
from agent.errors import UsageError
from agent.models.room import size

if TYPE_CHECKING:
    from agent.appliance import door

_STANDINGS = {
    "good": "good", "trial": "on trial", "empty": "empty",
    "bad": "left",
}  # fmt: skip


@click.command(short_help="Put another version onto this appliance.")
@click.argument("source", default="")
@click.option(
    "--from",
    "member",
    default="",
    metavar="MEMBER",
    shell_complete=completing.members,
    help="Install what this member runs; it comes over the overlay.",
)
@click.option("--status", "show", is_flag=True, help="Show versions, slots and what is on trial.")
@click.option("--back", is_flag=True, help="Start the version in the other slot, if it is good.")
@click.option("--no-restart", is_flag=True, help="Leave restarting to you: it starts it then.")
@click.option("--now", is_flag=True, help="Wait for no other node of this one's rings.")
@json_option
@with_config
def update(
    source: str, member: str, show: bool, back: bool, no_restart: bool, now: bool, as_json: bool,
    settings: Config,
) -> None:  # fmt: skip
    """Install the signed update SOURCE, a file or an http(s) URL, and restart this appliance.

    It goes into the slot that does not run, and is checked there. It then has three starts to prove
    itself: five minutes of health make it good; otherwise the version before it is back by itself,
    and `agent update --status` says why. While another node of a ring that has a part here is away
    or on trial, this one waits with its restart.
    """
    if bool(source) + bool(member) + show + back != 1:
        raise UsageError(
            "what shall be done is not clear",
            hint="Give a file or a URL, or --from MEMBER, or --status, or --back.",
        )
    if show:
        _show_status(_ask("status"), as_json=as_json)
        return
    restart = not no_restart
    waits = restart and not now
    if back:
        answer = _restart("back", settings) if waits else _ask("back", restart=restart)
    else:
        if waits:
            _wait(settings)
        answer = _install(source, member, settings)
        if restart:
            # Another one may have begun meanwhile.
            answer = _restart("restart", settings) if waits else _ask("restart", restart=True)
    if as_json:
        echo_json(answer)
        return
    what = f"Version {answer['version']}" if answer["version"] else "The other version"
    then = "this machine restarts into it now" if answer["restarts"] else "the next start runs it"
    click.echo(f"{what} is in slot {answer['slot']}; {then}.")


@click.command(name="factory-reset", short_help="Make this appliance as it was when flashed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def factory_reset(yes: bool, as_json: bool) -> None:
    """Restart this appliance and empty its data partition; the present version stays.

    It then is in no mesh: its keys, its models and its settings are gone. What is in covey.toml on
    the boot partition counts again, without the ticket, which left it after joining.
    """
    if not yes:
        click.confirm(
            "This machine leaves its mesh; its keys, models and settings are lost. Go on?",
            abort=True, err=True,
        )  # fmt: skip
    answer = _ask("reset", restart=True)
    if as_json:
        echo_json(answer)
    else:
        click.echo("This machine restarts now, and is then as it was when it was flashed.")


def _install(source: str, member: str, settings: Config) -> dict[str, Any]:
    """Install the update of a path, a URL or a member."""
    from agent.appliance import door  # it loads aiohttp, which takes half a second

    def tell(phase: str, done: int, total: int) -> None:
        progress.tell(f"{phase}: {100 * done // total} %, {size(done)} of {size(total)}")

    with Progress() as progress:
        return asyncio.run(door.install(_opener(source, member, settings), tell))


def _opener(source: str, member: str, settings: Config) -> door.OpenAt:
    """Return what gives the update from a byte on."""
    from agent.appliance import sources, turn

    if member:
        port = settings.network.overlay_port
        url = call(settings, lambda client: turn.address_of(client, member, port))
        return lambda start: sources.url(url, member, start)
    if sources.is_url(source):
        return lambda start: sources.url(source, start=start)
    return lambda start: sources.file(Path(source), start)


def _ask(do: door.Do, *, restart: bool = False) -> dict[str, Any]:
    from agent.appliance import door

    with waiting("asking this appliance"):
        return asyncio.run(door.ask(do, restart=restart))


def _wait(settings: Config) -> None:
    """Wait until this machine could restart."""
    from agent.appliance import turn

    port = settings.network.overlay_port
    call(settings, lambda client: turn.wait(client, port, _waits), "")


def _restart(do: Literal["back", "restart"], settings: Config) -> dict[str, Any]:
    """Restart this machine when its turn has come."""
    from agent.appliance import turn

    port = settings.network.overlay_port
    return call(settings, lambda client: turn.restart(client, port, do, _waits), "")


def _waits(why: str) -> None:
    click.echo(f"This machine waits: {why}. --now would not.", err=True)


def _show_status(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        echo_json(answer)
        return
    click.echo(f"Covey {answer['version']} runs from slot {answer['slot']}.")
    for slot, facts in answer["slots"].items():
        words = _STANDINGS.get(facts["standing"], facts["standing"])
        if facts["tries_left"] is not None:
            words += f", {facts['tries_left']} starts left"
        if facts["version"] and facts["standing"] != "empty":
            words += f", version {facts['version']}"
        click.echo(f"  Slot {slot}: {words}")
    if trial := answer["trial"]:
        click.echo(f"  {_trial(trial)}")
    if answer["next"] != answer["slot"]:
        click.echo(f"  The next start is from slot {answer['next']}.")
    if answer["why_not"]:
        click.echo(f"  The last update was taken back: {answer['why_not']}.")
    if answer["last_error"]:
        click.echo(f"  The last update was not installed: {answer['last_error']}")
    if answer["reset"]:
        click.echo("  The next start empties the data partition.")
    if not answer["takes_updates"]:
        click.echo("  The image was built without a key, so it takes no update: flash the next.")


def _trial(trial: dict[str, Any]) -> str:
    if trial["over_in_s"] is None:
        return "On trial since this start."
    over = f"given up in {ago(trial['over_in_s'])}"
    if trial["good_in_s"] is None:
        return f"On trial: not healthy now; {over} if that stays."
    healthy = f"healthy for {ago(trial['healthy_s'])}"
    return f"On trial: {healthy}; good in {ago(trial['good_in_s'])} if that stays."
