"""The middleware that bounds what a request may take: a body's time, all its time, and a place.

A shell, used by `app.py`. A body's size is bounded here, where it is read; the head's size by the
server's parser, its time and the number of connections by `serve.py`.

| what | is bounded by |
|---|---|
| a head that does not come, a connection that asks nothing | `head_timeout_s` |
| a body that does not come | `body_timeout_s` |
| a body that is too long, packed or not | `max_body_bytes` |
| bodies that are too much together | `max_bodies_bytes` |
| an answer that is not read | `delivery.WRITE_TIMEOUT_S`, and TCP (`listen.GONE_S`) |
| requests at once | `max_requests` |
| connections at once | the limit of open files (`process.py`) |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web

from gateway.attached import ANSWERED, BODY
from gateway.config import Config
from gateway.cut import cut
from gateway.errors import ApiError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# What a connection costs anyway, by the buffers of kernel and server.
SMALL_BODY_BYTES = 64 * 2**10
# What aiohttp's server unpacks, or refuses by itself where a library is missing.
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})


class Bounds:
    """Bounds requests by `config`, which may be set anew while they run.

    `draining`: no other request is wanted on a connection, and answers say so. `arriving`,
    `running`: so many requests' bodies are on their way, so many are served; `held_bytes`: so
    large are their larger bodies together.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.draining = False
        self.arriving = self.running = self.held_bytes = 0
        self._all_arrived = asyncio.Event()

    @web.middleware
    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Read the body and let the request through to the handler, or raise ApiError."""
        if request.method != "POST":
            return await handler(request)
        body = request[BODY] = await self._read(request)
        held = _counted(len(body))
        try:
            return await self._placed(request, handler)
        finally:
            self.held_bytes -= held

    async def arrived(self, seconds: float) -> None:
        """Wait until no request's body is on its way, so long at most."""
        if self.arriving:
            self._all_arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._all_arrived.wait()

    async def note_answer(self, request: web.Request, response: web.StreamResponse) -> None:
        """Remember that an answer's status has left; a signal of aiohttp's."""
        request[ANSWERED] = True
        if self.draining:
            response.force_close()
            response.headers["Connection"] = "close"

    async def _read(self, request: web.Request) -> bytes:
        """Return the body, unpacked; larger ones are added to what is held."""
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise ApiError(
                f"The request's Content-Encoding {encoding!r} is not understood",
                status=415,
                hint="Use gzip or deflate, or none.",
            )
        if (request.content_length or 0) > self.config.max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(
                self.config.max_body_bytes, request.content_length or 0
            )
        if request.content.is_eof() and request.content.exception() is None:
            # It came with the head, as most do: there is nothing to wait for.
            return await self._pieces(request)
        limit_s = self.config.body_timeout_s
        self.arriving += 1
        try:
            async with asyncio.timeout(limit_s):
                return await self._pieces(request)
        except TimeoutError:
            raise ApiError(
                f"The request's body did not arrive within {limit_s:g} s",
                status=408,
                reason="body_timeout",
            ) from None
        except web.RequestPayloadError as error:
            raise ApiError(f"The request's body cannot be read: {error}", status=400) from error
        finally:
            self.arriving -= 1
            if not self.arriving:
                self._all_arrived.set()

    async def _pieces(self, request: web.Request) -> bytes:
        pieces: list[bytes] = []
        size = held = 0
        try:
            while piece := await request.content.readany():
                pieces.append(piece)
                size += len(piece)
                if size > self.config.max_body_bytes:
                    raise web.HTTPRequestEntityTooLarge(self.config.max_body_bytes, size)
                self.held_bytes += _counted(size) - held
                held = _counted(size)
                if held and self.held_bytes > self.config.max_bodies_bytes:
                    raise ApiError(
                        "The requests that are here are as large as may be together",
                        status=503,
                        hint="Try again.",
                        retry_after_s=1,
                        reason="bodies",
                    )
        except BaseException:
            self.held_bytes -= held
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _placed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        most = self.config.max_requests
        if most and self.running >= most:
            raise ApiError(
                f"All {most} places for requests are taken",
                status=503,
                hint="Try again.",
                retry_after_s=1,
                reason="concurrency",
            )
        self.running += 1
        try:
            return await self._timed(request, handler)
        finally:
            self.running -= 1

    async def _timed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        limit_s = self.config.request_timeout_s
        if not limit_s:
            return await handler(request)
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await handler(request)
        except TimeoutError:
            if not limit.expired():
                raise
        if ANSWERED in request:
            # Its status has left: only a broken connection says that the answer is not whole.
            cut(request, framed=False)
        raise ApiError(
            f"The request took longer than {limit_s:g} s", status=504, reason="request_timeout"
        )


def _counted(size: int) -> int:
    return size if size > SMALL_BODY_BYTES else 0
