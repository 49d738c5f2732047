"""`agent acl check`, `agent acl show`: what the policy says, why, and what it has matched."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from agent import exits
from agent.cli import completing
from agent.cli.common import call, echo_json, json_option, table, with_config
from agent.config import Config
from agent.errors import NotRunning

# Pairs that a terminal shows; --json has all.
_SHOWN = 20


@click.group(short_help="Explain who may reach what over the overlay.")
def acl() -> None:
    """Explain who may reach which ports over the overlay, by this node's acl.toml."""


@acl.command(short_help="Say whether SRC may reach PORT of DST, and why.")
@click.argument("src", shell_complete=completing.members)
@click.argument("dst", shell_complete=completing.members)
@click.argument("port")
@json_option
@with_config
def check(src: str, dst: str, port: str, as_json: bool, settings: Config) -> None:
    """Say whether member SRC may reach PORT of member DST, by which rule of this node's file.

    SRC and DST are names, the last 8 or more characters of node ids, or tag:…, role:… or *, which
    stand for all members that have it. PORT is tcp:22 or just 22, udp:53, or icmp (ping).

    Works without a running agent too, by the members stored here. Exit code: 0 when it is allowed
    (for all of them), 11 when it is denied; any other is an error.
    """
    question = {"src": src, "dst": dst, "port": port}
    note = ""
    try:
        answer: dict[str, Any] = call(settings, lambda c: c.post("/v1/acl/check", question))
    except NotRunning as fault:
        answer = _check_stored(settings, fault, (src, dst, port))
        note = "No agent is running: this is by the stored members and the file as it is now."
    if as_json:
        echo_json(answer)
    else:
        click.echo(answer["sentence"])
        verdicts = sorted(answer["verdicts"], key=lambda v: bool(v["allowed"]))
        if len(verdicts) > 1:
            for verdict in verdicts[:_SHOWN]:
                click.echo(f"  {verdict['sentence']}")
            if len(verdicts) > _SHOWN:
                click.echo(f"  … and {len(verdicts) - _SHOWN} more; --json has all.")
        if not answer["here"]:
            click.echo("Each node enforces its own file for what comes in; this is by ours.")
        if note:
            click.echo(note, err=True)
    if not answer["allowed"]:
        sys.exit(exits.DENIED)


@acl.command(short_help="List the rules and what they have matched.")
@json_option
@with_config
def show(as_json: bool, settings: Config) -> None:
    """List this node's rules in their order, what each has matched here, and what follows them."""
    answer: dict[str, Any] = call(settings, lambda client: client.get("/v1/acl"))
    if as_json:
        echo_json(answer)
        return
    click.echo(_source(answer))
    if answer["enforced"]:
        click.echo(f"Enforced by nftables, table {answer['table']}.")
    else:
        click.echo(f"Not enforced: {answer['reason'] or 'the agent is just starting.'}")
    counters = answer["counters"]
    rows = [
        [str(r["number"]), r["action"], " ".join(r["from"]), " ".join(r["to"]),
         " ".join(r["ports"]), _packets(r) if r["here"] else "other nodes"]
        for r in answer["rules"]
    ]  # fmt: skip
    covey = " ".join(service["ports"] for service in answer["covey"])
    rows.append(["covey", "allow", "*", "*", covey, _packets(counters["covey"])])
    rows.append(["default", "deny", "*", "*", "*", _packets(counters["default"])])
    table(["rule", "action", "from", "to", "ports", "packets here"], rows)
    for name, text in (
        ("strangers", "packets from addresses of no member were dropped"),
        ("around", "packets to overlay addresses by other interfaces were dropped"),
        ("forwarded", "packets to be forwarded from or to the overlay were dropped"),
    ):
        if counters[name]["packets"]:
            click.echo(f"{counters[name]['packets']} {text}.")


def _source(answer: dict[str, Any]) -> str:
    file = answer["file"]
    match answer["state"]:
        case "loaded":
            return f"The rules are from {file}."
        case "broken":
            return f"{answer['fault']} What was in force before that holds."
        case _:
            return f"There are no rules: {file or 'no file'} does not exist."


def _packets(counted: dict[str, Any]) -> str:
    return "-" if counted["packets"] is None else str(counted["packets"])


def _check_stored(
    settings: Config, fault: NotRunning, question: tuple[str, str, str]
) -> dict[str, Any]:
    """Answer without an agent; raises `fault` where this node is in no mesh."""
    from agent.acl import policyfile, verdict
    from agent.acl.policy import Subject
    from agent.membership.store import StateDir

    membership = StateDir(settings.state_dir).membership()
    if membership is None:
        raise fault
    now, network = time.time(), membership.mesh.ipv4_network
    members = [
        Subject.of(member.certificate, network)
        for member in membership.members()
        if membership.is_member(member.node_id, now)
    ]
    policy = policyfile.read(policyfile.where(settings))
    covey = policyfile.covey_ports(settings)
    return verdict.answer(policy, covey, members, str(membership.key.id), question)
