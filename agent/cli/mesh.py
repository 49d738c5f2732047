"""`agent mesh …`, `agent invite`, `agent join`: how meshes begin and machines become members."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from agent.cli.common import ago, call, duration, echo_json, json_option, with_config
from agent.cli.progress import waiting
from agent.cli.service import start_in_background
from agent.config import Config
from agent.errors import MembershipError, NotRunning, UsageError
from agent.membership.invites import MAX_USES

ROLES = click.Choice(["worker", "gateway", "relay", "issuer", "admin"])


@click.group()
def mesh() -> None:
    """Make a mesh, and keep its root key safe."""


@mesh.command()
@click.argument("name")
@json_option
@with_config
def create(name: str, as_json: bool, settings: Config) -> None:
    """Make the mesh NAME: its root key and this node's admin certificate, both kept here."""
    from agent import enrol

    facts = enrol.create_mesh(settings, name, now=time.time())
    if as_json:
        echo_json(facts)
        return
    click.echo(f"Mesh {facts['mesh']} is made; this node is {facts['name']}, {facts['ipv6']}.")
    click.echo("Next: `agent up`, then `agent invite` for each machine that shall join.")


@mesh.group("root-key")
def root_key() -> None:
    """Look after the mesh's root key, which alone makes issuers and admins."""


@root_key.command()
@click.argument("to", type=click.Path(path_type=Path), metavar="FILE")
@json_option
@with_config
def move(to: Path, as_json: bool, settings: Config) -> None:
    """Move the root key into the new FILE: a stick or a disk that lies in a safe.

    The mesh goes on without it: issuers let others in for a year, until `agent grant NODE
    --root-key FILE` extends that. The copy is read back before the key here is removed.
    """
    path = to.absolute()
    try:
        answer = call(
            settings, lambda client: client.post("/v1/root-key/move", {"path": str(path)})
        )
    except NotRunning:
        answer = _move_here(settings, path)
    if as_json:
        echo_json(answer)
        return
    click.echo(f"The root key is in {answer['moved']}, and here no more.")
    if answer["grant_left_s"] is not None:
        click.echo(
            f"This node lets others in for another {ago(answer['grant_left_s'])} without it."
        )


def _move_here(settings: Config, path: Path) -> dict[str, Any]:
    """Move the root key while no agent runs; the lock says whether that is so."""
    from agent.membership.store import StateDir

    with StateDir(settings.state_dir).lock() as state:
        membership = state.membership()
        if membership is None:
            raise MembershipError("this node is in no mesh, so it has no root key")
        now = time.time()
        membership.move_root_key(path, now)
        return {"moved": str(path), "grant_left_s": membership.grant_left_s(now)}


@click.command()
@click.option(
    "--ttl",
    callback=duration,
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="How long the ticket is good.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, MAX_USES),
    default=1,
    show_default=True,
    help="How many machines may join with it.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=ROLES,
    default=["worker"],
    show_default=True,
    help="A role of whoever joins; repeatable.",
)
@click.option("--tag", "tags", multiple=True, help="A free tag of whoever joins; repeatable.")
@click.option("--qr", is_flag=True, help="Show the ticket as a QR code, too.")
@json_option
@with_config
def invite(
    ttl: float,
    uses: int,
    roles: tuple[str, ...],
    tags: tuple[str, ...],
    qr: bool,
    as_json: bool,
    settings: Config,
) -> None:
    """Print a ticket that lets a machine join this mesh."""
    body = {"ttl_s": ttl, "uses": uses, "roles": roles, "tags": tags}
    answer: dict[str, Any] = call(settings, lambda client: client.post("/v1/invite", body))
    if as_json:
        echo_json(answer)
        return
    click.echo(answer["ticket"])
    if qr:
        click.echo(qr_code(answer["ticket"]))
    machines = "one machine" if uses == 1 else f"{uses} machines"
    click.echo(f"Good for {machines} for {ago(ttl)}. There, run: agent join TICKET", err=True)


def qr_code(ticket: str) -> str:
    """Return a ticket as a QR code of block characters, for a terminal.

    In capitals it fits the alphanumeric mode, two letters in 11 bits; the lowest error correction
    is enough for a screen, and keeps the code small.
    """
    import segno  # only here: nothing else of the command line needs it

    drawn = io.StringIO()
    code = segno.make_qr(ticket.upper(), error="l", mode="alphanumeric", boost_error=False)
    code.terminal(drawn, compact=True)
    return drawn.getvalue().rstrip("\n")


@click.command()
@click.argument("ticket", required=False)
@click.option("--ticket", "ticket_option", metavar="TICKET", help="The ticket, as an option.")
@click.option(
    "--bootstrap",
    "bootstrap",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Where a member can be reached, if not where the ticket says; repeatable.",
)
@click.option("--name", help="This node's name in the mesh (else node.name, else the host name).")
@click.option("--no-up", is_flag=True, help="Only join; do not start the agent.")
@json_option
@with_config
def join(
    ticket: str | None,
    ticket_option: str | None,
    bootstrap: tuple[str, ...],
    name: str | None,
    no_up: bool,
    as_json: bool,
    settings: Config,
) -> None:
    """Join the mesh that TICKET is for, then start the agent.

    With - as TICKET it is read from the standard input, where no other user of this machine sees
    it, as on a command line.
    """
    from agent import enrol

    if ticket and ticket_option and ticket != ticket_option:
        raise UsageError("two different tickets were given", hint="Give one.")
    text = ticket or ticket_option
    if text == "-":
        text = sys.stdin.readline().strip()
    if not text:
        raise UsageError("no ticket was given", hint="`agent invite` on a member prints one.")
    enrolment = enrol.Enrolment(text, bootstrap, name or "")
    enrolment.check(settings, time.time())  # before a daemon is started in vain

    def joined(facts: dict[str, Any]) -> None:
        if not as_json:
            click.echo(f"Joined mesh {facts['mesh']} as {facts['name']}, {facts['ipv6']}.")

    if no_up:
        with waiting("joining"):
            facts = enrol.join_only(settings, enrolment, time.time())
        joined(facts)
    else:
        facts = start_in_background(settings, msgspec.json.encode(enrolment) + b"\n", joined)
    if as_json:
        echo_json(facts)
    elif not no_up:
        click.echo("The agent is up. `agent status` and `agent peers` show the mesh.")
