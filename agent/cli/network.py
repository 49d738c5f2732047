"""`agent netcheck`, `agent ping`: what this network lets through, and how a peer is reached."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from agent import exits
from agent.cli import completing
from agent.cli.common import call, duration, echo_json, json_option, with_config
from agent.config import Config

_INTERVAL_S = 1.0


@click.command(short_help="Check what this node's network lets through.")
@json_option
@with_config
def netcheck(as_json: bool, settings: Config) -> None:
    """Check UDP, IPv4 and IPv6, the kind of NAT, port mapping, hairpinning and the rendezvous.

    Takes a second or two; the last line says what follows from it.
    """
    answer: dict[str, Any] = call(
        settings, lambda client: client.get("/v1/netcheck"), "checking the network"
    )
    if as_json:
        echo_json(answer)
        return
    for label, value in (
        ("UDP", _yes(answer["udp"])),
        ("IPv4", ", ".join(answer["ipv4"]) or "no"),
        ("IPv6", ", ".join(answer["ipv6"]) or "no"),
        ("NAT", answer["nat"]),
        ("seen as", ", ".join(answer["seen_as"]) or "by nobody yet"),
        ("port mapping", answer["port_mapping"]),
        ("hairpinning", _yes(answer["hairpin"])),
        ("path MTU", str(answer["path_mtu"] or "not measured yet")),
        ("relays", ", ".join(answer["relays"]) or "none"),
    ):
        click.echo(f"  {label:<13} {value}")
    for one in answer["rendezvous"]:
        rtt = "no answer" if one["rtt_ms"] is None else f"{one['rtt_ms']:.1f} ms"
        click.echo(f"  {'rendezvous':<13} {one['name']} {one['place']} {rtt}")
    for line in answer["port_mapping_tried"]:
        click.echo(f"  {'tried':<13} {line}")
    click.echo(answer["verdict"])


@click.command(short_help="Ask a member whether it is there, and how it is reached.")
@click.argument("peer", shell_complete=completing.members)
@click.option("--count", "-c", type=click.IntRange(1, 1000), default=4, show_default=True,
              help="How often to ask.")  # fmt: skip
@click.option("--until-direct", is_flag=True,
              help="Ask until packets go directly, at most as long as --timeout.")  # fmt: skip
@click.option("--timeout", "timeout_s", default="30s", show_default=True, callback=duration,
              metavar="TIME", help="How long --until-direct waits.")  # fmt: skip
@json_option
@with_config
def ping(
    peer: str, count: int, until_direct: bool, timeout_s: float, as_json: bool, settings: Config
) -> None:
    """Ask member PEER over the overlay: round-trip time, and by which path.

    PEER is a name, or the last 8 or more characters of a node id. Exit code 1: no answer, or with
    --until-direct no direct path in time.
    """
    deadline = time.monotonic() + timeout_s
    answers: list[dict[str, Any]] = []
    while True:
        answer: dict[str, Any] = call(settings, lambda c: c.post("/v1/ping", {"peer": peer}))
        answers.append(answer)
        if not as_json:
            click.echo(_line(answer))
        direct = answer["rtt_ms"] is not None and answer["route"] not in ("none", "relayed")
        if until_direct:
            if direct or time.monotonic() >= deadline:
                break
        elif len(answers) >= count:
            break
        time.sleep(_INTERVAL_S)
    if as_json:
        echo_json({"answers": answers})
    reached = direct if until_direct else any(a["rtt_ms"] is not None for a in answers)
    if not reached:
        sys.exit(exits.FAULTY)


def _line(answer: dict[str, Any]) -> str:
    way = answer["route"]
    if answer["relay"]:
        way += f" by {answer['relay']}"
    if answer["endpoint"]:
        way += f" ({answer['endpoint']})"
    rtt = "no answer" if answer["rtt_ms"] is None else f"{answer['rtt_ms']:.1f} ms"
    why = f" — {answer['why']}" if answer["why"] else ""
    return f"{answer['name']}: {rtt}, {way}{why}"


def _yes(value: bool | None) -> str:
    return "not known" if value is None else "yes" if value else "no"
