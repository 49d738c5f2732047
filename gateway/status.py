"""`gateway status`: ask a running gateway what it knows, and show it. Used by `cli.py`."""

from __future__ import annotations

from typing import Any

import aiohttp
from rich.markup import escape
from rich.table import Table

from gateway.config import parse_listen
from gateway.errors import NotRunning

ANSWER_TIMEOUT_S = 5.0


async def ask(listen: str) -> dict[str, Any]:
    """Return what the gateway that listens on HOST:PORT says of itself; raises NotRunning."""
    host, port = parse_listen(listen)
    # A gateway that listens on every address is asked on the loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # not bound here
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            return await _ask(session, f"http://{place}", listen)
        except aiohttp.ClientConnectorError as error:
            raise _none(listen) from error
        except (aiohttp.ClientError, OSError, ValueError):
            pass  # it may speak TLS
        try:
            # Its certificate is for the name that clients use, not for this machine's loopback;
            # what is asked holds no secret, and nothing is told it but the question.
            return await _ask(session, f"https://{place}", listen, ssl=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _none(listen) from error


async def _ask(
    session: aiohttp.ClientSession, url: str, listen: str, *, ssl: bool = True
) -> dict[str, Any]:
    async with session.get(url + "/gateway/status", ssl=ssl) as answer:
        if answer.status != 200:
            raise NotRunning(
                f"what listens on {listen} is no gateway, or not for this machine"
                f" (status {answer.status})",
                hint="Name the gateway's address with --listen.",
            )
        status: dict[str, Any] = await answer.json()
        return status


def _none(listen: str) -> NotRunning:
    return NotRunning(f"no gateway answers on {listen}", hint="Start it with `gateway serve`.")


def heading(status: dict[str, Any]) -> str:
    """Return the lines above the table."""
    lines = [f"strategy: {status['strategy']}   agent: {status['agent']}"]
    workers = status.get("workers")
    if workers:
        lines[0] += f"   workers: {len(workers['pids'])} of {workers['wanted']}"
    keys = status.get("keys")
    if keys:
        needed = "required" if keys["required"] else "not required"
        lines.append(f"keys: {needed}, {keys['active_keys']} valid   "
                     f"store: {keys['store']} ({keys['state']})")  # fmt: skip
    return "\n".join(lines)


def table(status: dict[str, Any]) -> Table:
    """Return the replicas as a table for a terminal."""
    shown = Table()
    for column in ("replica", "models", "state", "running", "requests", "first byte", "url"):
        shown.add_column(column, overflow="fold")
    for replica in status["replicas"]:
        times = replica["first_byte_s"]
        seconds = times.get("stream", times.get("whole"))
        state = "ready" if replica["usable"] and not replica["reason"] else replica["reason"]
        shown.add_row(
            escape(replica["name"]),
            escape(", ".join(replica["models"])),
            escape(state or f"cooling down {replica['cooling_s']:.0f} s"),
            str(replica["in_flight"]),
            str(replica["requests"]),
            "-" if seconds is None else f"{seconds * 1000:.0f} ms",
            escape(replica["url"]),
        )
    return shown
