"""Real HTTP servers on loopback that hold one file and do with it what a test wants."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Answer = Callable[["Server", web.Request, int, int], "web.StreamResponse | None"]
CHUNK = 16 << 10


@dataclass
class Server:
    """A file at /file, and how it is given; `asked` has the ranges, `sent` how many bytes went.

    `statuses` are answered first, one a request; then: `cut_after` ends each connection after so
    many bytes, `stall_after` falls silent, `rate` bounds bytes/s, `wrong` changes bytes.
    """

    body: bytes
    etag: str = '"one"'
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    cuts: int = 10**9  # how often
    stall_after: int | None = None
    rate: float | None = None
    wrong: Callable[[int, bytes], bytes] | None = None
    claims: int | None = None  # the total that it announces
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""
    after: Callable[[Server], None] | None = None  # called when a request has been answered

    async def answer(self, request: web.Request) -> web.StreamResponse:
        wanted = request.headers.get("Range", "")
        self.asked.append(wanted)
        if self.statuses:
            return web.Response(status=self.statuses.pop(0), text="no\n", headers=self.headers)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        start, end, total = 0, len(self.body), self.claims or len(self.body)
        condition = request.headers.get("If-Range")
        partial = found is not None and self.ranges and condition in (None, self.etag)
        if partial and found is not None:
            start = int(found[1])
            end = min(end, int(found[2]) + 1 if found[2] else end)
            if start >= len(self.body):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{total}"})
        response = web.StreamResponse(status=206 if partial else 200, headers=self.headers)
        if self.etag:
            response.headers["ETag"] = self.etag
        if partial:
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        response.content_length = end - start if partial else total
        await response.prepare(request)
        await self._send(request, response, start, end)
        if self.after is not None:
            self.after(self)
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, start: int, end: int
    ) -> None:
        given = 0
        for at in range(start, end, CHUNK):
            raw = self.body[at : min(end, at + CHUNK)]
            if self.wrong is not None:
                raw = self.wrong(at, raw)
            if self.cut_after is not None and self.cuts and given + len(raw) > self.cut_after:
                raw = raw[: self.cut_after - given]
                await response.write(raw)
                self.sent += len(raw)
                self.cuts -= 1
                assert request.transport is not None
                request.transport.close()
                return
            if self.stall_after is not None and given >= self.stall_after:
                await asyncio.sleep(3600)
            await response.write(raw)
            given += len(raw)
            self.sent += len(raw)
            if self.rate is not None:
                await asyncio.sleep(len(raw) / self.rate)


@asynccontextmanager
async def serving(*servers: Server) -> AsyncIterator[None]:
    """Run them until the block is left; each then has its `url`."""
    runners = []
    try:
        for server in servers:
            app = web.Application()
            app.router.add_get("/{path:.*}", server.answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/file"
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


@asynccontextmanager
async def serving_together(servers: Mapping[str, Server]) -> AsyncIterator[str]:
    """Run them as one server of files with these names, until the block is left; gives its URL."""
    app = web.Application()
    for name, server in servers.items():
        app.router.add_get(f"/{name}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for name, server in servers.items():
            server.url = f"{base}/{name}"
        yield base
    finally:
        await runner.cleanup()
