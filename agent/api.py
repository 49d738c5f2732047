"""The local API: HTTP with JSON on a unix socket, for the command line and the gateway.

Who may open the socket may ask: it is made with mode 0600 in a directory of the agent's. It only
translates; what it answers comes from the daemon through `Target`. Its client is `client.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import web

from agent.errors import CoveyError, EnvironmentFault, UsageError, to_wire

_log = logging.getLogger(__name__)


class InviteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/invite: what the ticket shall allow."""

    ttl_s: float = 3600.0
    uses: int = 1
    roles: tuple[str, ...] = ("worker",)
    tags: tuple[str, ...] = ()


class DeployRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/deployments: what shall run. `model` is a bundled name or a path on this node."""

    model: str
    name: str = ""
    nodes: int | None = None
    context: int = 0


class Target(Protocol):
    """What the daemon answers; every method returns what becomes JSON."""

    def status(self) -> dict[str, Any]:
        """Describe this node."""

    def peers(self) -> dict[str, Any]:
        """Describe the other members."""

    def replicas(self) -> dict[str, Any]:
        """List the heads that can be reached."""

    def deployments(self) -> dict[str, Any]:
        """Describe what runs by this node's wish."""

    async def invite(self, request: InviteRequest) -> dict[str, Any]:
        """Make a ticket."""

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        """Start a deployment with this node as head."""

    async def undeploy(self, name: str) -> dict[str, Any]:
        """End a deployment."""

    def request_stop(self) -> None:
        """Begin to shut down."""


class LocalApi:
    """Serves a Target on a unix socket."""

    def __init__(self, target: Target, socket: Path) -> None:
        self._target = target
        self._socket = socket
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen, replacing the socket that a killed agent left (the lock says that it is dead)."""
        app = web.Application(middlewares=[_errors])
        target = self._target
        app.router.add_get("/v1/status", _read(target.status))
        app.router.add_get("/v1/peers", _read(target.peers))
        app.router.add_get("/v1/replicas", _read(target.replicas))
        app.router.add_get("/v1/deployments", _read(target.deployments))
        app.router.add_post("/v1/invite", _write(target.invite, InviteRequest))
        app.router.add_post("/v1/deployments", _write(target.deploy, DeployRequest))
        app.router.add_delete("/v1/deployments/{name}", self._undeploy)
        app.router.add_post("/v1/down", self._down)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._socket.unlink(missing_ok=True)
            await web.UnixSite(self._runner, str(self._socket)).start()
            self._socket.chmod(0o600)
        except OSError as error:
            await self._runner.cleanup()
            self._runner = None
            raise EnvironmentFault(
                f"the local API cannot listen on {self._socket}: {error.strerror or error}",
                hint="Set node.socket to a path that this user may write, under 108 characters.",
            ) from None

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._socket.unlink(missing_ok=True)

    async def _undeploy(self, request: web.Request) -> web.Response:
        return _json(await self._target.undeploy(request.match_info["name"]))

    async def _down(self, request: web.Request) -> web.Response:
        self._target.request_stop()
        return _json({"stopping": True})


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(answer: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(answer), status=status, content_type="application/json"
    )


def _read(answer: Callable[[], dict[str, Any]]) -> _Handler:
    async def handler(request: web.Request) -> web.Response:
        return _json(answer())

    return handler


_Body = TypeVar("_Body", InviteRequest, DeployRequest)


def _write(answer: Callable[[_Body], Awaitable[dict[str, Any]]], kind: type[_Body]) -> _Handler:
    async def handler(request: web.Request) -> web.Response:
        try:
            body = msgspec.json.decode(await request.read() or b"{}", type=kind)
        except msgspec.DecodeError as error:
            raise UsageError(f"the request body is wrong: {error}") from None
        return _json(await answer(body))

    return handler


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Give every fault the one JSON form; what is our own mistake is logged whole."""
    try:
        return await handler(request)
    except CoveyError as error:
        return _json({"error": to_wire(error)}, error.http_status)
    except web.HTTPException as error:
        fault = UsageError(f"{request.method} {request.path}: {error.reason}")
        return _json({"error": to_wire(fault)}, error.status)
    except Exception:
        _log.exception("local API %s %s failed", request.method, request.path)
        mistake = CoveyError("the agent made a mistake.", hint="Its log has the details.")
        return _json({"error": to_wire(mistake)}, 500)
