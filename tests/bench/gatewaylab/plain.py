"""A proxy on aiohttp that does nothing but pass on: what its server and its client cost.

    plain.py PORT UPSTREAM     serves on the loopback until its stdin ends

No routing, no keys, no log, no metrics, no limits; it is not for anything but to be measured.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
from aiohttp import web


async def main(port: int, upstream: int) -> None:
    """Serve until nobody needs it any more."""
    session = aiohttp.ClientSession(f"http://127.0.0.1:{upstream}", auto_decompress=False)

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def passed_on(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        sent = {"Content-Type": request.headers["Content-Type"]}
        async with session.post(request.path, data=body, headers=sent) as answer:
            told = {"Content-Type": answer.headers["Content-Type"]}
            if answer.content_length is not None:
                return web.Response(body=await answer.read(), headers=told)
            response = web.StreamResponse(headers=told)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_post("/v1/chat/completions", passed_on)
    runner = web.AppRunner(app, access_log=None)
    async with session:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
