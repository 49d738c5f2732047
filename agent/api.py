"""The local API: HTTP with JSON on a unix socket, for the command line and the gateway.

Who may open the socket may ask: it is made with mode 0600 in a directory of the agent's. A second
one, for a gateway of another user's, answers what is read alone. Both only translate; what they
answer comes from the daemon through `Target`. Their client is `client.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from aiohttp import web

from agent.acl.service import CheckRequest
from agent.authority.wishes import (
    GrantWish,
    InviteWish,
    LeaveWish,
    MoveRootKeyWish,
    RenameWish,
    RevokeWish,
    RotateWish,
)
from agent.deploy.ringkey import MOST_RINGS
from agent.deploy.wish import MAX_NAME_CHARACTERS, EngineKind
from agent.engine.tail import LINES
from agent.errors import CoveyError, EnvironmentFault, MembershipError, UsageError, to_wire
from agent.placement.inputs import Objective
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

MAX_DIGITS = 16
# Modes of a socket and of its folder. Whoever reaches its folder may connect to the second one.
_OWNERS, _ANYBODYS = (0o600, 0o700), (0o666, 0o755)


class DeployRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/deployments, /v1/plan: what shall run.

    `model`: a bundled name, that of a model in any member's store (or its id), or a path here.
    `engine` says what spreads it over nodes: Covey's ring, or llama.cpp's RPC. `draft` is a draft
    model, named as `model` is; empty: none. `objective`: what the ring shall be good for; `nodes`
    exactly, or `least` at least; of those with a tag of `only` (if any), and none of `never`.
    `rings`: so many of that kind, on different nodes; null: as many as are best.
    """

    model: str
    name: str = ""
    nodes: int | None = None
    context: int = 0
    engine: EngineKind = "ring"
    draft: str = ""
    objective: Objective = "auto"
    least: int = 1
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    rings: Annotated[int, msgspec.Meta(ge=1, le=MOST_RINGS)] | None = 1


class PullRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/models/pull: a model that shall come into the store, and from where.

    `pinned` says whether it must stay when room is needed; null: as it is.
    """

    source: str
    name: str = ""
    sha256: str = ""
    pinned: bool | None = None


class VerifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/models/verify: read a model (empty: all) against its manifest.

    `repair` fetches what is damaged anew.
    """

    name: str = ""
    repair: bool = False


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/drain: this node is to run nothing, or may again (`off`).

    `once`: only until its agent ends, and not after that, too.
    """

    off: bool = False
    once: bool = False


class PingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/ping: a member's name, or the end of its node id."""

    peer: str


class Target(Protocol):
    """What the daemon answers; every method returns what becomes JSON."""

    async def status(self) -> dict[str, Any]:
        """Describe this node."""

    async def peers(self) -> dict[str, Any]:
        """Describe the other members: how they are reached, and how they do."""

    async def netcheck(self) -> dict[str, Any]:
        """Check what this node's network lets through."""

    async def ping(self, request: PingRequest) -> dict[str, Any]:
        """Ask a member whether it is there, and say how it is reached."""

    async def members(self) -> dict[str, Any]:
        """Describe all who are or were members."""

    async def replicas(self) -> dict[str, Any]:
        """List the heads that can be reached."""

    async def deployments(self) -> dict[str, Any]:
        """Describe what the mesh runs."""

    async def drained(self) -> dict[str, Any]:
        """Say whether this node drains, and what runs on it still."""

    async def catalogue(self, name: str) -> dict[str, Any]:
        """Describe the models that Covey knows, or the one named, and what fits the mesh."""

    async def logs(self, name: str, node: str, lines: int) -> dict[str, Any]:
        """Describe what engines said last: of a deployment (or all), on one node (or all of it)."""

    async def events(self, after: int) -> dict[str, Any]:
        """List what happened after an event's number."""

    async def overview(self) -> dict[str, Any]:
        """Describe the mesh in one piece, for the dashboard."""

    async def shelf(self) -> dict[str, Any]:
        """Describe the models that there are and could be, for the dashboard."""

    async def acl(self) -> dict[str, Any]:
        """Describe the ACL in force."""

    async def check_acl(self, request: CheckRequest) -> dict[str, Any]:
        """Say whether and why one member may reach another's port."""

    async def invite(self, wish: InviteWish) -> dict[str, Any]:
        """Make a ticket."""

    async def revoke(self, wish: RevokeWish) -> dict[str, Any]:
        """Put a node out of the mesh."""

    async def rename(self, wish: RenameWish) -> dict[str, Any]:
        """Give a node another name."""

    async def grant(self, wish: GrantWish) -> dict[str, Any]:
        """Give a node roles and tags."""

    async def rotate(self, wish: RotateWish) -> dict[str, Any]:
        """Change the network key."""

    async def leave(self, wish: LeaveWish) -> dict[str, Any]:
        """Take this node out of the mesh, and stop."""

    async def move_root_key(self, wish: MoveRootKeyWish) -> dict[str, Any]:
        """Move the root key to a file."""

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        """Say that a model shall run."""

    async def drain(self, request: DrainRequest) -> dict[str, Any]:
        """Have this node drain, or take that back."""

    async def plan(self, request: DeployRequest) -> dict[str, Any]:
        """Say how a model would run; nothing moves."""

    async def undeploy(self, name: str) -> dict[str, Any]:
        """End a deployment."""

    async def models(self) -> dict[str, Any]:
        """Describe the models here and at other members."""

    async def model_jobs(self) -> dict[str, Any]:
        """Describe what the model store is doing, and what it did last."""

    async def pull(self, request: PullRequest) -> dict[str, Any]:
        """Begin to fetch a model, or tell how far that is."""

    async def cancel_pull(self, name: str) -> dict[str, Any]:
        """End a pull and throw away what came."""

    async def verify_models(self, request: VerifyRequest) -> dict[str, Any]:
        """Begin to read models against their manifests."""

    async def remove_model(self, name: str) -> dict[str, Any]:
        """Remove a model from the store."""

    def request_stop(self) -> None:
        """Begin to shut down."""


class LocalApi:
    """Serves a Target on a unix socket; what is only read on `reading`, too, if that is given."""

    def __init__(self, target: Target, socket: Path, reading: Path | None = None) -> None:
        self._target = target
        self._socket = socket
        self._reading = reading
        self._listening: list[tuple[web.AppRunner, Path]] = []

    async def start(self) -> None:
        """Listen, replacing the sockets that a killed agent left (the lock says that it is dead).

        Raises EnvironmentFault, and then listens nowhere.
        """
        try:
            await self._listen(self._socket, _OWNERS, [*self._reads(), *self._writes()])
            if self._reading is not None:
                only = [*self._reads(orders=False), *_refusals(self._socket)]
                await self._listen(self._reading, _ANYBODYS, only)
        except EnvironmentFault:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening and remove the sockets."""
        while self._listening:
            runner, socket = self._listening.pop()
            await runner.cleanup()
            socket.unlink(missing_ok=True)

    async def _listen(
        self, socket: Path, modes: tuple[int, int], routes: Iterable[web.RouteDef]
    ) -> None:
        app = web.Application(middlewares=[_errors])
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            socket.parent.mkdir(mode=modes[1], parents=True, exist_ok=True)
            socket.unlink(missing_ok=True)
            await web.UnixSite(runner, str(socket)).start()
            socket.chmod(modes[0])
        except OSError as error:
            await runner.cleanup()
            setting = "node.socket" if socket == self._socket else "node.gateway_socket"
            raise EnvironmentFault(
                f"the local API cannot listen on {socket}: {error.strerror or error}",
                hint=f"Set {setting} to a path that this user may write, under 108 characters.",
            ) from None
        self._listening.append((runner, socket))

    def _reads(self, *, orders: bool = True) -> list[web.RouteDef]:
        """Return what changes nothing; `orders`: beside what does."""
        target = self._target

        async def overview() -> dict[str, Any]:
            return {**await target.overview(), "takes_orders": orders}

        plain = (
            ("status", target.status),
            ("peers", target.peers),
            ("members", target.members),
            ("netcheck", target.netcheck),
            ("replicas", target.replicas),
            ("deployments", target.deployments),
            ("overview", overview),
            ("shelf", target.shelf),
            ("acl", target.acl),
            ("drain", target.drained),
            ("models", target.models),
            ("models/jobs", target.model_jobs),
        )
        return [
            *(web.get(f"/v1/{path}", _read(read)) for path, read in plain),
            web.get("/v1/events", self._events),
            web.get("/v1/logs", self._logs),
            web.get("/v1/catalogue", self._catalogue),
            web.get("/v1/catalogue/{name}", self._catalogue),
        ]

    def _writes(self) -> list[web.RouteDef]:
        target = self._target
        return [
            web.post("/v1/acl/check", _write(target.check_acl, CheckRequest)),
            web.post("/v1/ping", _write(target.ping, PingRequest)),
            web.post("/v1/invite", _write(target.invite, InviteWish)),
            web.post("/v1/revoke", _write(target.revoke, RevokeWish)),
            web.post("/v1/rename", _write(target.rename, RenameWish)),
            web.post("/v1/grant", _write(target.grant, GrantWish)),
            web.post("/v1/rotate", _write(target.rotate, RotateWish)),
            web.post("/v1/leave", _write(target.leave, LeaveWish)),
            web.post("/v1/root-key/move", _write(target.move_root_key, MoveRootKeyWish)),
            web.post("/v1/drain", _write(target.drain, DrainRequest)),
            web.post("/v1/deployments", _write(target.deploy, DeployRequest)),
            web.post("/v1/plan", _write(target.plan, DeployRequest)),
            web.post("/v1/models/pull", _write(target.pull, PullRequest)),
            web.post("/v1/models/verify", _write(target.verify_models, VerifyRequest)),
            web.delete("/v1/deployments/{name}", _delete(target.undeploy)),
            web.delete("/v1/models/{name}", _delete(target.remove_model)),
            web.delete("/v1/pulls/{name}", _delete(target.cancel_pull)),
            web.post("/v1/down", self._down),
        ]

    async def _events(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdecimal() and len(after) < MAX_DIGITS):
            raise UsageError(f"after={after[:40]!r} is no event's number")
        return _json(await self._target.events(int(after)))

    async def _logs(self, request: web.Request) -> web.Response:
        text = request.query.get("lines", str(LINES))
        lines = int(text) if text.isascii() and text.isdecimal() and len(text) < MAX_DIGITS else 0
        if not 1 <= lines <= LINES:
            raise UsageError(f"lines={text[:40]!r} is not 1 to {LINES}")
        name, node = request.query.get("name", ""), request.query.get("node", "")
        if len(name) > MAX_NAME_CHARACTERS:
            raise UsageError(f"{name[:80]!r} is not deployed in this mesh")
        return _json(await self._target.logs(name, node, lines))

    async def _catalogue(self, request: web.Request) -> web.Response:
        return _json(await self._target.catalogue(request.match_info.get("name", "")))

    async def _down(self, request: web.Request) -> web.Response:
        self._target.request_stop()
        return _json({"stopping": True})


def _refusals(socket: Path) -> list[web.RouteDef]:
    """Return what answers to orders on a socket that takes none, beside the agent's own."""

    async def refuse(request: web.Request) -> web.Response:
        if request.method == "GET":
            raise web.HTTPNotFound
        raise MembershipError(
            "this socket of the agent (node.gateway_socket) takes no orders: it is for reading.",
            hint=f"Give the order on the agent's machine, as who may use {socket}.",
        )

    return [web.route("*", "/{path:.*}", refuse)]


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(answer: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(answer), status=status, content_type="application/json"
    )


def _read(answer: Callable[[], Awaitable[dict[str, Any]]]) -> _Handler:
    async def handler(request: web.Request) -> web.Response:
        return _json(await answer())

    return handler


def _delete(answer: Callable[[str], Awaitable[dict[str, Any]]]) -> _Handler:
    async def handler(request: web.Request) -> web.Response:
        return _json(await answer(request.match_info["name"]))

    return handler


_Body = TypeVar("_Body", bound=msgspec.Struct)


def _write(answer: Callable[[_Body], Awaitable[dict[str, Any]]], kind: type[_Body]) -> _Handler:
    async def handler(request: web.Request) -> web.Response:
        try:
            body = msgspec.json.decode(await request.read() or b"{}", type=kind)
        except UNREADABLE as error:
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
