"""The middleware that notes every request: for metrics, for the access log, for its span.

A shell, used by `app.py`, and the outermost of its middlewares: it sees what is really answered.
What it does costs a request nothing before its answer has left, but for a few dozen bytes of
randomness.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from importlib.metadata import version

import aiohttp
import msgspec
from aiohttp import web

from gateway import together
from gateway.access_log import AccessLog
from gateway.attached import KEY, METER, RECORD
from gateway.config import Config
from gateway.errors import ApiError
from gateway.metrics import CONTENT_TYPE, Metrics, Now
from gateway.otlp import Exporter
from gateway.recent import Recent
from gateway.record import LEFT_STATUS, MOST_LETTERS, OPERATIONS, Record
from gateway.routing import Router
from gateway.together import Sheet
from gateway.tracing import context
from gateway.worker import Worker

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Of a longer body that is to be in the access log, this much is.
PROMPT_BYTES = 256 * 2**10
# How long a disk gets at the end for what waits.
CLOSE_S = 5.0


class Observer:
    """Notes requests; `live` holds what writes and sends as long as the application runs."""

    def __init__(self, config: Config, router: Router, worker: Worker | None = None) -> None:
        self._config = config
        self._router = router
        self._worker = worker
        self.metrics = Metrics()
        self.recent = Recent()
        self._log: AccessLog | None = None
        self._exporter: Exporter | None = None
        self._dropped_before: dict[str, int] = {}
        before = worker.before() if worker is not None else None
        if before is not None:  # counters of Prometheus do not go back
            self.metrics.add(before.counted)
            self._dropped_before = before.dropped

    @asynccontextmanager
    async def live(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        """Open the access log, and send spans over `session`; raises EnvironmentFault."""
        config = self._config
        alone = self._worker.alone if self._worker is not None else nullcontext
        log = self._log = AccessLog(config.access_log, alone) if config.access_log else None
        sending = None
        if config.otlp_endpoint:
            self._exporter = Exporter(config.otlp_endpoint, version("covey"), session)
            sending = asyncio.create_task(self._exporter.run())
        try:
            yield
        finally:
            if sending is not None:
                sending.cancel()
                with suppress(asyncio.CancelledError):
                    await sending
            if log is not None:
                await asyncio.to_thread(log.close, CLOSE_S)

    def reopen(self) -> None:
        """Go on in a new access log of the same name."""
        if self._log is not None:
            self._log.reopen()

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Leave a record in the request for those who serve it, and count it at its end."""
        headers = request.headers
        record = request[RECORD] = Record(
            OPERATIONS.get(request.path, "") if request.method == "POST" else "",
            context(
                headers.getall("traceparent", ()), headers.getall("tracestate", ()),
                export=self._exporter is not None, entropy=os.urandom,
            ),
            time.monotonic(), time.time_ns(),
        )  # fmt: skip
        response = None
        self.metrics.in_flight += bool(record.operation)
        if record.operation:
            self.recent.begin(record)
        try:
            response = await handler(request)
            return response
        except asyncio.CancelledError:
            record.error = record.error or "cancelled"
            raise
        finally:
            self.metrics.in_flight -= bool(record.operation)
            record.ended = time.monotonic()
            # The answer had better be on its way before it is counted.
            asyncio.get_running_loop().call_soon(self._ended, request, record, response)

    async def began(self, request: web.Request, response: web.StreamResponse) -> None:
        """Note the status that leaves; a signal of aiohttp's."""
        record = request.get(RECORD)
        if record is not None:  # there is none where the head of a request made no sense
            record.status = response.status

    def dropped(self) -> dict[str, int]:
        """Return what was not written, as in `metrics.Now`."""
        here = {
            "access_log_lines": self._log.dropped if self._log else 0,
            "spans": self._exporter.dropped if self._exporter else 0,
        }
        return together.total([here, self._dropped_before])

    def exposition(self, sheets: Sequence[Sheet]) -> web.Response:
        """Return the answer of GET /metrics, of all processes' sheets together."""
        metrics = Metrics()
        for sheet in sheets:
            metrics.add(sheet.counted)
            metrics.in_flight += sheet.in_flight
        replicas = together.replicas(sheets)
        state = Now(
            waiting=together.total(sheet.waiting for sheet in sheets),
            replicas=replicas,
            models=together.models(replicas),
            dropped=together.total(sheet.dropped for sheet in sheets),
            software=version("covey"),
        )
        return web.Response(body=metrics.exposition(state), headers={"Content-Type": CONTENT_TYPE})

    def _ended(
        self, request: web.Request, record: Record, response: web.StreamResponse | None
    ) -> None:
        meter = request.get(METER)
        if meter is not None:  # a stream that was cut does not know its length
            record.sent_bytes = meter.fed
        if response is not None:
            record.status = record.status or response.status
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                record.sent_bytes = len(response.body)
            if record.status >= 400 and not record.error:
                record.error = str(record.status)
        record.status = record.status or LEFT_STATUS
        counted = meter.tokens() if meter is not None and record.operation else None
        if counted is not None:
            record.prompt, record.completion = counted.prompt, counted.completion
        self.metrics.ended(record, known=self._router.knows(record.model))
        self.recent.end(record)
        if self._log is not None:
            self._log.write(self._line(request, record))
        if self._exporter is not None and record.operation and record.trace.exported:
            record.body = b""
            self._exporter.add(record)

    def _line(self, request: web.Request, record: Record) -> bytes:
        """Return the access log's line; the path is without its query, which may hold secrets."""
        key = request.get(KEY)
        line = {
            "time": record.unix_ns / 1e9,
            "trace": record.trace.trace,
            "id": record.trace.span,
            "client": request.remote,
            "key": key.name if key is not None else None,
            "method": request.method,
            "path": request.path,
            "model": record.model[:MOST_LETTERS] or None,
            "replica": record.replica or None,
            "status": record.status,
            "error": record.error or None,
            "duration_s": round(record.seconds, 6),
            "first_byte_s": None if record.first_s is None else round(record.first_s, 6),
            "attempts": record.attempts,
            "hedge": record.hedge or None,
            "tokens_in": record.prompt,
            "tokens_out": record.completion,
            "bytes": record.sent_bytes,
        }
        if self._config.access_log_prompts and record.body:
            line["request"] = record.body[:PROMPT_BYTES].decode(errors="replace")
        return msgspec.json.encode(line)


def refused(request: web.Request, error: ApiError) -> None:
    """Note that the gateway itself answers a request with an error."""
    record = request.get(RECORD)
    if record is not None:
        record.error = error.reason
        record.refused = True


def went_wrong(request: web.Request, what: str) -> None:
    """Note what became of an answer that had begun."""
    record = request.get(RECORD)
    if record is not None:
        record.error = what
