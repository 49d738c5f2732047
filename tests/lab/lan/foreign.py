"""Another program on the LAN: it browses for our service with the zeroconf package.

foreign.py SECONDS: writes one JSON object {instance: [TXT data in hex, port, addresses]}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TYPE = "_covey._udp.local."


async def browse(seconds: float) -> dict[str, Any]:
    names: set[str] = set()

    def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change is ServiceStateChange.Added:
            names.add(name)

    async with AsyncZeroconf() as network:
        browser = AsyncServiceBrowser(network.zeroconf, TYPE, handlers=[changed])
        await asyncio.sleep(seconds)
        found = {}
        for name in names:
            info = AsyncServiceInfo(TYPE, name)
            info.load_from_cache(network.zeroconf)
            found[name] = [(info.text or b"").hex(), info.port, info.parsed_addresses()]
        await browser.async_cancel()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(browse(float(sys.argv[1])))))
