"""A machine that has its UDP port mapped: a PortMapper, and a socket that hears what comes in.

mapped.py PORT CHECK_S LIFETIME_S PROTOCOLS: says what happens as JSON lines. It ends, and
releases, on SIGTERM. SIGUSR1 is a network change. Times are of the clock that all processes share.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any

import msgspec

from agent.portmap.service import PortMapper


def say(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what, "at": time.monotonic(), **facts}), flush=True)


class Inside(asyncio.DatagramProtocol):
    """Stands for WireGuard on its port."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        say("heard", text=data.decode(), sender=addr[0])


async def main(port: int, check_s: float, lifetime_s: int, protocols: list[str]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    transport, _ = await loop.create_datagram_endpoint(Inside, local_addr=("0.0.0.0", port))
    mapper = PortMapper(
        port,
        b"s" * 32,
        lambda mapping: say("mapping", mapping=msgspec.to_builtins(mapping)),
        protocols=protocols,
        check_s=check_s,
        lifetime_s=lifetime_s,
    )
    loop.add_signal_handler(signal.SIGUSR1, mapper.network_changed)
    await mapper.start()
    say("started")
    while not ended.is_set():
        say("report", report=msgspec.to_builtins(mapper.describe()))
        try:
            async with asyncio.timeout(0.5):
                await ended.wait()
        except TimeoutError:
            continue
    before = time.monotonic()
    await mapper.stop()
    say("stopped", took_s=time.monotonic() - before)
    transport.close()


asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(",")))
