"""Keep the router's list of replicas and their health true: ask the agent, check each replica.

A shell around `routing.Router`, run as one task by `app.py`. Heads of the mesh are asked for
`/health`; outside servers, which need not have that, for `/v1/models`, which is needed anyway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec

from gateway.bodies import read_most
from gateway.errors import NotRunning
from gateway.modalities import seeing
from gateway.routing import Replica, Router

_log = logging.getLogger(__name__)

ROUND_S = 1.0
# A head answers /health from memory; over a relayed path of 300 ms that is well under a second.
CHECK_TIMEOUT_S = 3.0
# A list of models is small; whatever answers more than this is no OpenAI server.
MAX_ANSWER_BYTES = 2**20


class Source(Protocol):
    """Where the replicas of the mesh come from (`AgentSource`, or a test's)."""

    async def replicas(self) -> list[Replica]:
        """Return them; raises NotRunning when the agent cannot say."""

    def deployed(self) -> frozenset[str]:
        """Return the models that shall run, with a head or without, as of the last answer."""

    async def call(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        """Return what the agent answers on its local API within so long; raises ApiError."""

    async def aclose(self) -> None:
        """Close the connection."""


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class _Health(msgspec.Struct, frozen=True):
    status: str = ""
    reason: str = ""
    running: int | None = None


_decode_health = msgspec.json.Decoder(_Health).decode


@dataclass(frozen=True)
class _Found:
    """What a replica tells: an outside server its models, and which of them see; a head its load.

    `models` None: of a head, whose models the agent knows; `running`: requests that are there.
    """

    models: tuple[str, ...] | None = None
    seeing: frozenset[str] = frozenset()
    running: int | None = None


class _UnhealthyError(Exception):
    """A replica says that it cannot serve."""


class Watch:
    """Rounds of asking and checking. `source` None: there are only the `named` outside servers."""

    def __init__(
        self,
        router: Router,
        session: aiohttp.ClientSession,
        source: Source | None,
        named: Iterable[Replica],
    ) -> None:
        self._router = router
        self._session = session
        self._source = source
        self._agent_state: str | None = ""
        self._news = asyncio.Event()
        self.first_round_done = asyncio.Event()
        self._looks: dict[str, asyncio.Task[None]] = {}
        router.update("named", named, time.monotonic())

    @property
    def agent_missing(self) -> str | None:
        """Why the agent does not say what the mesh has; None if it does or is not asked."""
        return self._agent_state or None

    @property
    def asks_agent(self) -> bool:
        """Whether the mesh's replicas are used as well."""
        return self._source is not None

    async def news(self, timeout_s: float) -> None:
        """Wait until replicas may have come or be ready, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()

    async def run(self) -> None:
        """Do a round a second until cancelled."""
        while True:
            try:
                await self.round()
            except Exception:  # a fault of ours; without rounds the gateway would go blind
                _log.exception("a round of checks failed")
            self.first_round_done.set()
            await asyncio.sleep(ROUND_S)

    async def round(self) -> None:
        """Ask the agent once, and check each replica once."""
        await self._ask_agent()
        async with asyncio.TaskGroup() as group:
            for replica in self._router.replicas():
                group.create_task(self.check(replica))

    async def _ask_agent(self) -> None:
        if self._source is None:
            return
        try:
            replicas = await self._source.replicas()
        except NotRunning as error:
            # What was known stays: the heads may well go on without this node's agent.
            if not self._agent_state:
                _log.warning("waiting for the agent: %s", error.line())
            self._agent_state = error.line()
            return
        if self._agent_state:
            _log.info("the agent answers")
        self._agent_state = None
        self._router.deployed(self._source.deployed())
        for change in self._router.update("mesh", replicas, time.monotonic()):
            _log.info(change)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def look(self, replica: Replica) -> None:
        """As `check`; all who ask while one is on its way wait for that one."""
        task = self._looks.get(replica.url)
        if task is None:
            task = self._looks[replica.url] = asyncio.create_task(self.check(replica))
            task.add_done_callback(lambda _: self._looks.pop(replica.url))
        await asyncio.shield(task)

    async def check(self, replica: Replica) -> None:
        """Ask a replica whether it is ready, and tell the router."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                found = await self._ask(replica)
        except TimeoutError:
            reason = f"no answer within {CHECK_TIMEOUT_S:.0f} s"
        except _UnhealthyError as error:
            reason = str(error)
        except (aiohttp.ClientError, OSError) as error:
            reason = f"cannot be reached: {str(error) or type(error).__name__}"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            reason = f"does not answer as an OpenAI server does: {error}"
        else:
            now = time.monotonic()
            if self._router.check_passed(replica.url, found.models, now, now - begun, found.seeing):
                models = found.models or replica.models
                _log.info("ready replica=%s models=%s", replica.name, models)
            if found.running is not None:
                self._router.told(replica.url, found.running, now)
            self._tell()
            return
        if self._router.check_failed(replica.url, reason):
            _log.warning("not ready replica=%s reason=%s", replica.name, reason)

    async def _ask(self, replica: Replica) -> _Found:
        """Return what a replica tells of itself. Raises what says that it cannot serve."""
        named = replica.source == "named"
        url = replica.url + ("/v1/models" if named else "/health")
        async with self._session.get(url, allow_redirects=False) as answer:
            body = await read_most(answer.content, MAX_ANSWER_BYTES)
            if answer.status != 200:
                raise _UnhealthyError(_said(answer.status, body))
            if not named:
                return _Found(running=_health(body).running)
            models = msgspec.json.decode(body, type=_Models).data
            return _Found(tuple(model.id for model in models), seeing(body))


def _health(body: bytes) -> _Health:
    """Return what a head says of itself, nothing where that makes no sense."""
    try:
        return _decode_health(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Health()


def _said(status: int, body: bytes) -> str:
    health = _health(body)
    said = ": ".join(part for part in (health.status, health.reason) if part)
    return said or f"answers with status {status}"
