"""How the gateway stands: GET /health, /metrics and /gateway/status, for all its workers together.

A shell over `together.py`, used by `app.py`. Whichever worker is asked, all are told of.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from gateway import together
from gateway.answers import json_answer
from gateway.errors import ApiError
from gateway.keys.accounts import Accounts
from gateway.keys.guard import Guard
from gateway.observe import Observer
from gateway.proxy import RETRY_AFTER_AGENT_S
from gateway.routing import Router
from gateway.together import Entry, Sheet
from gateway.watch import Watch
from gateway.worker import Worker


class Standing:
    """The handlers; `live` gives them what needs a running loop. `guard` None: no keys."""

    _watch: Watch
    _waiting: Callable[[], dict[str, int]]

    def __init__(
        self,
        router: Router,
        observer: Observer,
        accounts: Accounts | None,
        guard: Guard | None,
        worker: Worker | None,
    ) -> None:
        self._router = router
        self._observer = observer
        self._accounts = accounts
        self._guard = guard
        self._worker = worker

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Serve them all."""
        routes.add_get("/health", self.health)
        routes.add_get("/metrics", self.metrics)
        routes.add_get("/gateway/status", self.status)

    @asynccontextmanager
    async def live(
        self, watch: Watch, waiting: Callable[[], dict[str, int]]
    ) -> AsyncIterator[None]:
        """Let the other workers know as long as the application runs; `waiting` as in `Now`."""
        self._watch, self._waiting = watch, waiting
        if self._worker is None:
            yield
            return
        self._worker.tell(self._sheet())
        telling = asyncio.create_task(self._worker.tell_on(self._sheet, self._hear))
        try:
            yield
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling
            self._worker.tell(self._sheet())  # with all that was counted

    def replicas(self) -> list[Entry]:
        """Return what is known of each replica, as `Router.view`."""
        return together.replicas(self.sheets())

    def sheets(self) -> list[Sheet]:
        """Return how all workers stand, this one first."""
        own = self._sheet()
        return [own] if self._worker is None else self._worker.told(own)

    async def health(self, _: web.Request) -> web.Response:
        """Tell whether any model can be used."""
        models = together.models(self.replicas())
        usable = [model["id"] for model in models if model["usable"]]
        if usable:
            return json_answer({"status": "ok", "models": usable})
        reason = self._watch.agent_missing or "No replica is ready."
        error = ApiError(reason, status=503, retry_after_s=RETRY_AFTER_AGENT_S)
        return json_answer({"status": "unavailable", "reason": reason, **error.body()}, error)

    async def metrics(self, _: web.Request) -> web.Response:
        """Tell Prometheus what was counted."""
        return self._observer.exposition(self.sheets())

    async def status(self, request: web.Request) -> web.Response:
        """Tell `gateway status` everything; other machines do not see where the replicas are."""
        if not _from_this_machine(request):
            raise ApiError("/gateway/status is for this machine only", status=403)
        sheets = self.sheets()
        keys = None
        if self._guard is not None and self._accounts is not None:
            keys = {"required": self._guard.required, **self._accounts.view()}
            keys["unreported"] = sum(sheet.unreported for sheet in sheets)
        told: Entry = {
            "strategy": self._router.strategy,
            "agent": "not asked"
            if not self._watch.asks_agent
            else self._watch.agent_missing or "ok",
            "keys": keys,
            "replicas": together.replicas(sheets),
        }
        if self._worker is not None:
            pids = sorted(sheet.pid for sheet in sheets if sheet.pid)
            told["workers"] = {"wanted": self._worker.workers, "pids": pids}
        return json_answer(told)

    def _sheet(self) -> Sheet:
        """Return what this process tells of itself."""
        metrics = self._observer.metrics
        return Sheet(
            pid=os.getpid(),
            counted=metrics.counted(),
            dropped=self._observer.dropped(),
            in_flight=metrics.in_flight,
            waiting=self._waiting(),
            replicas=self._router.view(time.monotonic()),
            gateway=self._accounts.gateway if self._accounts else "",
            unreported=self._accounts.unreported if self._accounts else 0,
            minutes=self._accounts.minutes() if self._accounts else {},
            live=self._observer.recent.running(),
            past=self._observer.recent.ended(),
        )

    def _hear(self, others: Sequence[Sheet]) -> None:
        if self._accounts is not None:
            self._accounts.elsewhere(sheet.minutes for sheet in others)


def _from_this_machine(request: web.Request) -> bool:
    try:
        return not request.remote or ipaddress.ip_address(request.remote).is_loopback
    except ValueError:
        return False
