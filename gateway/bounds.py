"""The middleware that bounds what a request may take: a body's time, all its time, and a place.

A shell, used by `app.py`. Sizes are bounded where bytes are read: the body by the application's
`client_max_size`, the head by the server's parser (`serve.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from gateway.attached import ANSWERED
from gateway.config import Config
from gateway.errors import ApiError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Bounds:
    """Bounds requests by `config`, which may be set anew while they run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._running = 0

    @web.middleware
    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Read the body and let the request through to the handler, or raise ApiError."""
        if request.method != "POST":
            return await handler(request)
        await self._read(request)
        most = self.config.max_requests
        if most and self._running >= most:
            raise ApiError(
                f"All {most} places for requests are taken",
                status=503,
                hint="Try again.",
                retry_after_s=1,
                reason="concurrency",
            )
        self._running += 1
        try:
            return await self._timed(request, handler)
        finally:
            self._running -= 1

    async def _read(self, request: web.Request) -> None:
        """Read the body; aiohttp keeps it for whoever reads it next."""
        limit_s = self.config.body_timeout_s
        if request.content.is_eof() and request.content.exception() is None:
            await request.read()  # it came with the head, as most do: there is nothing to wait for
            return
        try:
            async with asyncio.timeout(limit_s):
                await request.read()
        except TimeoutError:
            raise ApiError(
                f"The request's body did not arrive within {limit_s:g} s",
                status=408,
                reason="body_timeout",
            ) from None
        except web.RequestPayloadError as error:
            raise ApiError(f"The request's body cannot be read: {error}", status=400) from error

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
        if ANSWERED in request and request.transport is not None:
            # Its status has left: only a broken connection says that the answer is not whole.
            request.transport.abort()
        raise ApiError(
            f"The request took longer than {limit_s:g} s", status=504, reason="request_timeout"
        )


async def note_answer(request: web.Request, _: web.StreamResponse) -> None:
    """Remember that an answer's status has left; a signal of aiohttp's."""
    request[ANSWERED] = True
