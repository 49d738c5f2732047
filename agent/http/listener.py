"""The socket on which an agent shows its pages, and what holds for all of them.

A shell over aiohttp. Pages are read and change nothing; no other web site gets to read them.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from agent import endpoint
from agent.errors import EnvironmentFault
from agent.http import hosts

_log = logging.getLogger(__name__)

_METHODS = ("GET", "HEAD")
# A page may say otherwise of the first two. There is no Access-Control-Allow-Origin.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Listener:
    """Serves routes at one address."""

    def __init__(self, names: Iterable[str], routes: Iterable[web.AbstractRouteDef]) -> None:
        """`names` are those that clients may ask for, beside addresses and localhost."""
        self._names = frozenset(name.lower().removesuffix(".") for name in names)
        self._routes = tuple(routes)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen there; raises EnvironmentFault where that cannot be."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(self._routes)
        app.on_response_prepare.append(_harden)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            raise EnvironmentFault(
                f"{endpoint.join(host, port)} cannot be listened on: {_why(error)}",
                hint="Set http.listen to another HOST:PORT, and restart the agent.",
            ) from None

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not hosts.answered(request.headers.getall("Host", ()), self._names):
            return _said(421, "This name is not in http.names of the agent's settings.")
        if request.method not in _METHODS:
            response = _said(405, "These pages are only read.")
            response.headers["Allow"] = ", ".join(_METHODS)
            return response
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _said(error.status, f"{error.reason}.")
        except Exception:
            _log.exception("page %s failed", request.path)
            return _said(500, "The agent made a mistake. Its log has the details.")


def _said(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "covey"
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program has that port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return (error.strerror or str(error)).lower()
