"""A relay as one writes it with asyncio alone: what the bench compares our user-space one with.

relay_asyncio.py ADDRESS PORT PORT       learns who is where from what comes first
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


class Side(asyncio.DatagramProtocol):
    """One port."""

    other: Side
    transport: Any  # what asyncio gives is no DatagramTransport by its type
    place: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.place = addr
        if self.other.place:
            self.other.transport.sendto(data, self.other.place)


async def main(address: str, ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    one, other = [(await loop.create_datagram_endpoint(Side, (address, port)))[1] for port in ports]
    one.other, other.other = other, one
    print('{"event": "up"}', flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], [int(port) for port in sys.argv[2:]]))
