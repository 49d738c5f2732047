"""Small real heads, scripted upstream servers, and the gateway before them, on the loopback."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import watch
from gateway.app import make_app
from gateway.config import Config
from gateway.errors import ApiError, NotRunning
from gateway.keys.store import Store
from gateway.routing import Replica


def _load(name: str, path: Path) -> ModuleType:
    """Load a module that is on no path; tests import it by `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# The scripted model of the head's tests: the same fake, the same real server.
_head = _load("scripted_head", Path(__file__).parents[1] / "serve" / "conftest.py")
serve = _head.serve
client_of = _head.client_of
scripted = _head.scripted
world = _load("bare_http", Path(__file__).parent / "bare_http.py").world


class ListedSource:
    """The agent, as far as the gateway sees it: a list, or a reason why there is none."""

    def __init__(self, replicas: Sequence[Replica] = (), missing: str = "") -> None:
        self.listed = list(replicas)
        self.wished = {model for replica in replicas for model in replica.models}
        self.missing = missing
        self.closed = False
        self.answers: dict[tuple[str, str], Any] = {}
        self.calls: list[tuple[str, str, Any]] = []

    async def replicas(self) -> list[Replica]:
        if self.missing:
            raise NotRunning(self.missing, hint="Start it with `agent up`.")
        return self.listed

    def deployed(self) -> frozenset[str]:
        return frozenset(self.wished)

    async def call(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        self.calls.append((method, path, body))
        answer = self.answers.get((method, path))
        if answer is None:
            raise ApiError(f"{method} {path} is not scripted", status=503)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        self.closed = True


async def _up(app: web.Application, runners: list[web.AppRunner]) -> str:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    runners.append(runner)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test need not wait a second for the next check."""
    monkeypatch.setattr(watch, "ROUND_S", 0.05)


@pytest.fixture
async def runners() -> AsyncIterator[list[web.AppRunner]]:
    started: list[web.AppRunner] = []
    yield started
    for runner in reversed(started):
        await runner.cleanup()


Upstream = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]
Gateway = Callable[..., Awaitable[str]]


@pytest.fixture
def upstream(runners: list[web.AppRunner]) -> Upstream:
    """Serve a handler for /v1 and /tokenize, with a model `m`, and return its URL."""

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        async def fine(_: web.Request) -> web.Response:
            return web.json_response({"status": "ok", "data": [{"id": "m"}]})

        app = web.Application(client_max_size=2**26)
        app.router.add_get("/health", fine)
        app.router.add_get("/v1/models", fine)
        app.router.add_post("/v1/{path:.*}", handler)
        app.router.add_post("/tokenize", handler)
        return await _up(app, runners)

    return start


@pytest.fixture
def gateway(runners: list[web.AppRunner]) -> Gateway:
    """Serve a gateway whose first round of checks is done, and return its URL."""

    async def start(
        *replicas: Replica, source: ListedSource | None = None, wait: bool = True,
        store: Store | None = None, **config: Any,
    ) -> str:  # fmt: skip
        source = source or ListedSource(replicas)
        settings = Config(**config)
        app = make_app(settings, lambda: source, store, require_keys=settings.require_keys or False)
        url = await _up(app, runners)
        if wait:
            async with aiohttp.ClientSession() as session:
                while True:
                    async with session.get(url + "/gateway/status") as answer:
                        status = await answer.json()
                    known = [r["reason"] != "not checked yet" for r in status["replicas"]]
                    if status["agent"] != "ok" or (
                        len(known) >= len(source.listed)
                        and all(known)
                        and all(r["models"] for r in status["replicas"])
                    ):
                        break
        return url

    return start


@pytest.fixture
def listed() -> type[ListedSource]:
    return ListedSource


@pytest.fixture
def head() -> Callable[..., Replica]:
    """Return a replica of the mesh with model `m`."""

    def make(name: str, url: str, model: str = "m", context: int = 256) -> Replica:
        return Replica(name, url, "mesh", (model,), context)

    return make
