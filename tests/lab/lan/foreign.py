"""Another program on the LAN: it browses for our service with the zeroconf package.

foreign.py COUNT LEAST MOST: writes one JSON object {instance: [TXT data in hex, port, addresses]}
once it has seen so many whole ones, after so many seconds at least and at most.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TYPE = "_covey._udp.local."


async def browse(count: int, least_s: float, most_s: float) -> dict[str, Any]:
    names: set[str] = set()

    def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change is ServiceStateChange.Added:
            names.add(name)

    async with AsyncZeroconf() as network:
        browser = AsyncServiceBrowser(network.zeroconf, TYPE, handlers=[changed])
        until = time.monotonic() + most_s
        await asyncio.sleep(least_s)
        found = _whole(network, names)
        while len(found) < count and time.monotonic() < until:
            await asyncio.sleep(0.1)
            found = _whole(network, names)
        await browser.async_cancel()
    return found


def _whole(network: AsyncZeroconf, names: set[str]) -> dict[str, Any]:
    """Return those whose text and port are known too."""
    found = {}
    for name in names:
        info = AsyncServiceInfo(TYPE, name)
        info.load_from_cache(network.zeroconf)
        if info.text:
            found[name] = [info.text.hex(), info.port, info.parsed_addresses()]
    return found


if __name__ == "__main__":
    count, least, most = sys.argv[1:]
    print(json.dumps(asyncio.run(browse(int(count), float(least), float(most)))))
