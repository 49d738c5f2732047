"""`agent up`, `down`, `restart`, `status`, `peers`: the daemon's life and what it sees."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec

from agent import config as configuration
from agent.cli import peerlist
from agent.cli.common import ago, call, echo_json, json_option, table, with_config
from agent.cli.progress import waiting
from agent.config import Config
from agent.errors import (
    CoveyError,
    EnvironmentFault,
    NotRunning,
    StateError,
    UsageError,
    from_wire,
)

if TYPE_CHECKING:
    from agent.client import AgentClient

# Importing libp2p and opening WireGuard take 3 s on a slow machine, and far more on a busy one.
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0


@click.command(short_help="Start the agent.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground (for service managers).")
@click.option(
    "--ticket-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In no mesh yet: join first, with the ticket in FILE, once that is there (--foreground).",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--join-from-stdin", is_flag=True, hidden=True)
@click.option("--replace", is_flag=True, hidden=True)
@json_option
@with_config
def up(
    foreground: bool,
    ticket_file: Path | None,
    ready_fd: int | None,
    join_from_stdin: bool,
    replace: bool,
    as_json: bool,
    settings: Config,
) -> None:
    """Start the agent of a node that has joined a mesh; returns when it is up."""
    if ticket_file is not None and not foreground:
        raise UsageError(
            "--ticket-file goes with --foreground",
            hint="`agent join - < FILE` joins and starts the agent in the background.",
        )
    if foreground or ready_fd is not None:
        from agent.cli import loading

        loading.load()
        # Only here: its imports take longer than every other command does.
        from agent import daemon, enrol
        from agent.cli import handed

        # Not on the command line, where everyone on this machine could read the ticket.
        wish = sys.stdin.readline() if join_from_stdin else ""
        enrolment = msgspec.json.decode(wish, type=enrol.Enrolment) if wish else None
        if ticket_file is not None:
            enrolment = handed.enrolment(settings, ticket_file)
        within_s = _STOP_TIMEOUT_S if replace else None
        daemon.serve(settings, daemon.Starter(ready_fd), enrolment, replace_within_s=within_s)
        return
    _say_up(start_in_background(settings), as_json=as_json)


@click.command(short_help="Stop the agent.")
@json_option
@with_config
def down(as_json: bool, settings: Config) -> None:
    """Stop the agent; its interface, engines and socket go with it, its identity stays.

    Where none runs, what one that was killed left is taken away.
    """
    try:
        pid = call(settings, lambda client: client.get("/v1/status"))["pid"]
    except NotRunning as fault:
        left = _take_away(settings, fault)
        if as_json:
            echo_json({"stopped": None, "removed": left})
        else:
            click.echo(f"No agent ran. What one had left is gone: {', '.join(left)}.")
        return
    call(settings, lambda client: client.post("/v1/down"))
    with waiting("waiting for the agent to end"):
        _wait_gone(pid)
    if as_json:
        echo_json({"stopped": pid})
    else:
        click.echo("The agent is down.")


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _alive(pid):
        if time.monotonic() > deadline:
            raise StateError(
                f"the agent (pid {pid}) still runs after {_STOP_TIMEOUT_S:.0f} s.",
                hint=f"`kill -9 {pid}` ends it; nothing that is stored is lost.",
            )
        time.sleep(0.05)


@click.command(short_help="Restart the agent, with the present settings.")
@json_option
@with_config
def restart(as_json: bool, settings: Config) -> None:
    """Put a new agent in the place of the one that runs; returns when it is up.

    The new one is loaded while the old one still runs, so members are without this node for about
    a quarter of the time that `agent down` and `agent up` take. Rings with layers here are built
    again.
    """
    pid = call(settings, lambda client: client.get("/v1/status"))["pid"]
    if b"--foreground" in _command_line(pid):
        raise UsageError(
            f"the agent (pid {pid}) was started by `agent up --foreground`",
            hint="Restart it by what started it, such as a service manager.",
        )
    ended = False

    def end_old() -> None:
        nonlocal ended
        call(settings, lambda client: client.post("/v1/down"))
        ended = True

    try:
        facts = start_in_background(settings, on_loaded=end_old)
    except CoveyError as error:
        left = (
            "The old agent has ended; `agent up` starts one." if ended else "The old one runs on."
        )
        raise type(error)(error.message, hint=f"{error.hint} {left}".strip()) from None
    _say_up(facts, as_json=as_json)


def _take_away(settings: Config, fault: NotRunning) -> list[str]:
    """Remove what a killed agent left; raises `fault` where there is nothing, or one runs."""
    from agent import leftovers  # its imports take longer than every other command does

    try:
        left = leftovers.take_away(settings)
    except StateError:
        raise fault from None
    if not left:
        raise fault
    return left


def _say_up(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        echo_json(facts)
    else:
        click.echo(f"The agent is up: {facts['name']} of mesh {facts['mesh']}, {facts['ipv6']}.")


@click.command(short_help="Show this node and what is wrong.")
@json_option
@with_config
def status(as_json: bool, settings: Config) -> None:
    """Show this node: identity, addresses, parts, peers, engines and what is wrong.

    Of each peer: path, round trip, bytes per second received (down) and sent (up) over the last
    seconds, age of the handshake, and why it is relayed or not reached. In a large mesh those with
    traffic come first and not all are shown; --json has all, as `peer_list`.
    """

    async def ask(client: AgentClient) -> tuple[dict[str, Any], list[peerlist.Peer]]:
        return await client.get("/v1/status"), (await client.get("/v1/peers"))["peers"]

    answer, found = call(settings, ask)
    if as_json:
        echo_json(answer | {"peer_list": found})
        return
    click.echo(f"{answer['name']} of mesh {answer['mesh']} (up {ago(answer['uptime_s'])})")
    for label, value in (
        ("node", answer["node"]),
        ("address", f"{answer['ipv6']}  {answer['ipv4']}"),
        ("roles", ", ".join(answer["roles"]) + (", draining" if answer["draining"] else "")),
        ("certificate", f"for another {ago(answer['certificate_left_s'])}"),
        ("overlay", answer["parts"]["overlay"]),
        ("control", answer["parts"]["control"]),
        ("discovery", answer["parts"]["discovery"]),
        ("paths", answer["parts"]["paths"]),
        ("relay", answer["parts"]["relay"]),
        ("peers", _peers_line(answer["peers"])),
    ):
        click.echo(f"  {label:<12} {value}")
    for line in answer["computes"]["lines"]:
        click.echo(f"  {'llama.cpp':<12} {line}")
    for engine in answer["engines"]:
        on = f" on {engine['runs_on']}" if engine["runs_on"] else ""
        click.echo(f"  {'engine':<12} {engine['ring']}: {engine['what']}, {engine['phase']}{on}")
    _show_peers(peerlist.ordered(found))
    if answer["health"]:
        counts = Counter(item["severity"] for item in answer["health"])
        words = [f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in sorted(counts.items())]
        click.echo(f"  {'health':<12} {', '.join(words)}; `agent doctor` looks closer")
    for item in answer["health"]:
        click.echo(f"  {item['severity']:<12} {item['title']}: {item['text']} {item['what_to_do']}")


def _show_peers(ordered: list[peerlist.Peer]) -> None:
    if not ordered:
        return
    shown = ordered[: peerlist.SHOWN]
    table([*peerlist.COLUMNS, "why"], [[*peerlist.cells(p), peerlist.why(p)] for p in shown])
    if more := peerlist.hidden(ordered):
        click.echo(more)


@click.command(short_help="List the other members.")
@json_option
@with_config
def peers(as_json: bool, settings: Config) -> None:
    """List the other members: address, path, endpoint, round trip, throughput, handshake, bytes.

    `down` and `up` are bytes per second received and sent over the last seconds, `handshake` is its
    age, `mtu` the largest packet that the path was seen to carry, `rx/tx bytes` all since the
    interface came up. Below the table stands why a member is relayed,
    or not reached at all.
    """
    answer: dict[str, Any] = call(settings, lambda client: client.get("/v1/peers"))
    if as_json:
        echo_json(answer)
        return
    if not answer["peers"]:
        click.echo("No other member is known. `agent invite` makes a ticket for one.")
        return
    rows = [
        [name, p["ipv6"], p["ipv4"], path, p["endpoint"] or "-", *more,
         str(p.get("path_mtu") or "-"), f"{p['rx_bytes']}/{p['tx_bytes']}", p["node"]]
        for p in answer["peers"]
        for name, path, *more in (peerlist.cells(p),)
    ]  # fmt: skip
    first, path, *rest = peerlist.COLUMNS
    table([first, "ipv6", "ipv4", path, "endpoint", *rest, "mtu", "rx/tx bytes", "node"], rows)
    for peer in answer["peers"]:
        if peer.get("why"):
            click.echo(f"{peer['name']}: {peer['why']}")
        if peer["draining"]:
            click.echo(f"{peer['name']}: it is draining")


def _peers_line(peers: dict[str, int]) -> str:
    asleep = f", {peers['asleep']} asleep until something flows to them" if peers["asleep"] else ""
    return f"{peers['connected']} of {peers['known']} connected{asleep}"


def start_in_background(
    settings: Config,
    join: bytes = b"",
    on_joined: Callable[[dict[str, Any]], None] = lambda _: None,
    on_loaded: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Start the daemon as a process of its own, wait until it is up, and return what it says.

    `join` is an encoded Enrolment: the daemon joins first, and `on_joined` gets the node's facts.
    With `on_loaded` it waits for another one to end, which that call brings about.
    Raises what the daemon raised, so that a fault at start is told here and not only in its log.
    """
    log = _log_file(settings)
    flags = ["--join-from-stdin"] if join else []
    if on_loaded is not None:
        flags.append("--replace")
    for key, value in configuration.flatten(settings).items():
        flags += ["--set", f"{key}={','.join(value) if isinstance(value, list) else value}"]
    read, write = os.pipe()
    with log.open("ab") as output, os.fdopen(read, "rb") as answers:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "up", "--ready-fd", str(write), *flags],
            stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
            pass_fds=[write], env=_environment(),
        )  # fmt: skip
        os.close(write)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin as wish:
                wish.write(join)
        while True:
            with waiting("starting the agent"):
                step = _next_step(answers, process, log)
            if "joined" in step:
                on_joined(step["joined"])
            elif "loaded" in step:
                if on_loaded is not None:
                    on_loaded()
            elif "error" in step:
                process.wait()
                raise from_wire(step["error"])
            else:
                facts: dict[str, Any] = step["up"]
                return facts


def _next_step(
    answers: BinaryIO, process: subprocess.Popen[bytes], log: Path
) -> dict[str, dict[str, Any]]:
    """Return the next line that the daemon tells; raises when it ends or is silent."""
    line = _read_line(answers, _START_TIMEOUT_S)
    if line is None:
        process.kill()
        raise EnvironmentFault(
            f"the agent was not up within {_START_TIMEOUT_S:.0f} s", hint=f"Its log is {log}."
        )
    if not line:
        code = process.wait()
        raise CoveyError(f"the agent ended at start (exit {code})", hint=f"Its log is {log}.")
    step: dict[str, dict[str, Any]] = json.loads(line)
    return step


def _log_file(settings: Config) -> Path:
    """Return the daemon's log file, its directory made. Raises StateError."""
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = settings.state_dir / "agent.log"
        path.touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"the state directory {settings.state_dir} cannot be used: {error.strerror}",
            hint="Run this as the user that owns it, or set node.state_dir.",
        ) from None
    return path


def _environment() -> dict[str, str]:
    """Everything is passed as flags, so the daemon must not read other settings beside them."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COVEY_")}
    kept["COVEY_CONFIG"] = os.devnull
    return kept


def _read_line(pipe: BinaryIO, timeout_s: float) -> bytes | None:
    """Return a line from a pipe, b"" at its end, None after the timeout."""
    deadline = time.monotonic() + timeout_s
    collected = b""
    while not collected.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        # One byte a call: what follows the line must stay in the pipe for the next one.
        byte = os.read(pipe.fileno(), 1)
        if not byte:
            return b""
        collected += byte
    return collected


def _command_line(pid: int) -> list[bytes]:
    """Return a process's command line; empty when it has ended or is somebody else's."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie has ended; it only waits to be collected by whoever started it.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
