"""The end of a gateway: no new connections, and every request that came is answered.

A shell, used by `serve.py`. aiohttp's own end loses requests whose bodies are still coming (it
reads no more once it ends), and the last bytes of answers whose clients are slow.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.bounds import Bounds

# What a client sent just before arrives; what it asks on a connection just made is answered.
GRACE_S = 0.1
# A client that reads slowly is looked at so often.
_LOOK_S = 0.02
# aiohttp takes no time at all for any time.
LEAST_S = 0.1


async def drain(runner: web.AppRunner, bounds: Bounds, seconds: float) -> None:
    """Stop listening and wait, so long at most, until what runs has been answered."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    server = runner.server
    assert server is not None  # noqa: S101  # it has been set up
    bounds.draining = True
    # Connections that the kernel has made for us are taken; they would be reset. asyncio looks,
    # accepts, and makes a transport, each in a round of its own.
    for _ in range(4):
        await asyncio.sleep(0)
    for site in runner.sites:
        await site.stop()
    await asyncio.sleep(min(GRACE_S, seconds))
    await bounds.arrived(max(until - loop.time(), 0.0))
    transports = [c.transport for c in server.connections if c.transport is not None]
    server.pre_shutdown()
    await server.shutdown(max(until - loop.time(), LEAST_S))
    while loop.time() < until and any(t.get_write_buffer_size() for t in transports):  # noqa: ASYNC110  # transports tell nobody
        await asyncio.sleep(_LOOK_S)
