"""A wave: a crowd comes, others are served meanwhile, it is gone, and what it took is freed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gatewaylab.client import BenchError
from gatewaylab.contenders import Process

from connectionslab.crowd import PATIENCE_S, Crowd, message
from connectionslab.replica import Replica

# Kinds that only the gateway's own bounds end.
BOUNDED = ("silent", "trickling", "half")
ORDINARY_EACH_S = 0.02
LOOK_EACH_S = 0.2
# Connections to the replica that wait for the next request, and the one that asks how things are.
SPARE_FILES = 32
_COUNTED = re.compile(rb"(?m)^covey_gateway_requests_(?:in_flight|waiting)\S* (\S+)$")


@dataclass
class Seen:
    """What a wave was like."""

    connections: int = 0
    ordinary_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    files_most: int = 0
    rss_before_mib: float = 0.0
    rss_most_mib: float = 0.0
    bounded_s: float = 0.0
    freed_s: float = 0.0
    left: str = ""
    rss_mib: float = 0.0


async def wave(
    gateway: Process, port: int, replica: Replica, counts: Mapping[str, int], settle_s: float
) -> Seen:
    """Send `counts` connections of each kind; raises BenchError where the gateway gives up.

    `settle_s` after all is freed the gateway's memory is looked at.
    """
    seen = Seen()
    files = gateway.files
    seen.rss_before_mib = gateway.rss_mib
    crowd = Crowd(port)
    doing = crowd.go_on(), _ordinary(port, seen), _most(gateway, files, seen)
    tasks = [asyncio.create_task(one) for one in doing]
    try:
        await asyncio.gather(*(crowd.gather(kind, count) for kind, count in counts.items()))
        seen.connections = crowd.made
        began = time.monotonic()
        await _until(lambda: not any(crowd.left(kind) for kind in BOUNDED), "bounds do not bound")
        seen.bounded_s = time.monotonic() - began
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        crowd.leave()
    began = time.monotonic()
    with suppress(BenchError):
        await _until(lambda: gateway.files <= files + SPARE_FILES and not replica.busy, "")
    seen.freed_s = time.monotonic() - began
    running = await _running(port)
    if gateway.files > files + SPARE_FILES or replica.busy or running:
        seen.left = (f"{gateway.files - files} files, {replica.busy} requests at the replica, "
                     f"{running:g} requests")  # fmt: skip
    await asyncio.sleep(settle_s)
    seen.rss_mib = gateway.rss_mib
    return seen


async def _until(done: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > until:
            raise BenchError(otherwise)
        await asyncio.sleep(0.05)


async def _most(gateway: Process, files: int, seen: Seen) -> None:
    """Note how much there is at most."""
    while True:
        seen.files_most = max(seen.files_most, gateway.files - files)
        seen.rss_most_mib = max(seen.rss_most_mib, gateway.rss_mib)
        await asyncio.sleep(LOOK_EACH_S)


async def _ordinary(port: int, seen: Seen) -> None:
    """Ask again and again, each time on a connection of its own."""
    while True:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await _ask(port, message())
        except (OSError, asyncio.IncompleteReadError) as error:
            answer = repr(error).encode()
        if answer.startswith(b"HTTP/1.1 200"):
            seen.ordinary_s.append(time.perf_counter() - began)
        else:
            seen.failed.append(answer.rpartition(b"\r\n\r\n")[2][:300].decode(errors="replace"))
        await asyncio.sleep(ORDINARY_EACH_S)


async def _ask(port: int, request: bytes) -> bytes:
    """Return the answer's head and what of its body came with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])  # type: ignore[index]
        return head + await reader.readexactly(length)
    finally:
        writer.close()


async def _running(port: int) -> float:
    """Return how many requests the gateway believes it has."""
    answer = await _ask(port, b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")
    return sum(map(float, _COUNTED.findall(answer)))


def config(folder: Path, replica: int, bound_s: float, most: int) -> Path:
    """Write the configuration of the gateway that is measured, and return its path."""
    file = folder / "gateway.toml"
    file.write_text(
        f"head_timeout_s = {bound_s}\nbody_timeout_s = {bound_s}\nper_replica = {most}\n"
        f'store = "{folder}/gateway.db"\nsocket = "{folder}/no-agent.sock"\n'
        f'[replicas]\nbench = "http://127.0.0.1:{replica}"\n'
    )
    return file
