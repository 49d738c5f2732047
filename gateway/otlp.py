"""Spans as OpenTelemetry's collectors take them (OTLP over HTTP, as JSON), and what sends them.

A shell, used by `observe.py`. Spans wait in memory and leave in batches, from a task of its own:
a collector that is slow or away costs spans, never requests, and those that are lost are counted.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from gateway.bodies import read_most
from gateway.metrics import PROVIDER
from gateway.record import MOST_LETTERS, Record

_log = logging.getLogger(__name__)

PATH = "/v1/traces"
# OpenTelemetry's own defaults: of a batch, of what waits, of a request's time.
BATCH = 512
MOST_WAITING = 2048
TIMEOUT_S = 10.0
FLUSH_S = 1.0
# The statuses that OTLP calls worth another try, and how long and how often that is tried.
_AGAIN = (429, 502, 503, 504)
RETRY_FIRST_S, RETRY_MOST_S, TRIES = 1.0, 30.0, 5
# What is left at the end gets one try.
CLOSE_S = 2.0
_SERVER, _ERROR = 2, 2  # SPAN_KIND_SERVER, STATUS_CODE_ERROR
_MAX_ANSWER_BYTES = 2**16


class _AwayError(Exception):
    """The collector did not take a batch, and may later; `wait_s` as it asked, 0: it did not."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Exporter:
    """Sends spans to `endpoint`, a URL without or with /v1/traces; `version` is the gateway's.

    Each is an instance of the service of its own, as OpenTelemetry wants of each process.
    """

    def __init__(self, endpoint: str, version: str, session: aiohttp.ClientSession) -> None:
        self._url = endpoint.rstrip("/").removesuffix(PATH) + PATH
        self._version = version
        self._instance = str(uuid4())
        self._session = session
        self._spans: list[Record] = []
        self._full = asyncio.Event()
        self._away = False
        self.dropped = 0

    def add(self, record: Record) -> None:
        """Have the span of a request that has ended exported."""
        if len(self._spans) >= MOST_WAITING:
            self.dropped += 1
            return
        self._spans.append(record)
        if len(self._spans) >= BATCH:
            self._full.set()

    async def run(self) -> None:
        """Send batches until cancelled; then what is left, within `CLOSE_S`."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_S):
                        await self._full.wait()
                await self._send_batch()
        finally:
            with suppress(TimeoutError, _AwayError):
                async with asyncio.timeout(CLOSE_S):
                    while self._spans:
                        await self._post(self._spans[:BATCH])
                        del self._spans[:BATCH]

    async def _send_batch(self) -> None:
        batch = self._spans[:BATCH]
        for tried in range(TRIES):
            if not batch:
                break
            try:
                await self._post(batch)
                self._away = False
                break
            except _AwayError as away:
                if not self._away:
                    _log.warning("no spans are taken, trying on: %s", away)
                self._away = True
                if tried + 1 < TRIES:
                    wait_s = max(away.wait_s, RETRY_FIRST_S * 2**tried)
                    await asyncio.sleep(min(wait_s, RETRY_MOST_S))
        else:
            self.dropped += len(batch)
        # Only now: one that was cancelled meanwhile still has them to send.
        del self._spans[: len(batch)]
        if len(self._spans) < BATCH:
            self._full.clear()

    async def _post(self, batch: list[Record]) -> None:
        """Send a batch; raises _AwayError where it may be sent again."""
        body = msgspec.json.encode(request(batch, self._version, self._instance))
        try:
            async with self._session.post(
                self._url, data=body, headers={"Content-Type": "application/json"},
                allow_redirects=False, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as answer:  # fmt: skip
                said = await read_most(answer.content, _MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            raise _AwayError(str(error) or type(error).__name__) from error
        if answer.status in _AGAIN:
            wait_s = answer.headers.get("Retry-After", "")
            raise _AwayError(
                f"it answers with status {answer.status}",
                float(wait_s) if wait_s.isdecimal() else 0.0,
            )
        rejected = len(batch) if answer.status != 200 else _rejected(said)
        if rejected:
            self.dropped += rejected
            _log.warning("spans were rejected status=%s spans=%s", answer.status, rejected)


class _Partial(msgspec.Struct, frozen=True, rename="camel"):
    rejected_spans: int | str = 0


class _Said(msgspec.Struct, frozen=True, rename="camel"):
    partial_success: _Partial = _Partial()


def _rejected(said: bytes) -> int:
    """Return how many spans of a batch that was taken were not."""
    try:
        return int(msgspec.json.decode(said or b"{}", type=_Said).partial_success.rejected_spans)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0


def request(records: list[Record], version: str, instance: str) -> dict[str, Any]:
    """Return OTLP's ExportTraceServiceRequest."""
    resource = {
        "service.name": "covey-gateway",
        "service.version": version,
        "service.instance.id": instance,
    }
    spans = [span(record) for record in records]
    scope = {"name": "covey.gateway", "version": version}
    traced = [{"scope": scope, "spans": spans}]
    entry = {"resource": {"attributes": _attributes(resource)}, "scopeSpans": traced}
    return {"resourceSpans": [entry]}


def span(record: Record) -> dict[str, Any]:
    """Return a request's span, with the attributes of the GenAI conventions and no text of it."""
    trace = record.trace
    model = record.model[:MOST_LETTERS]
    made: dict[str, Any] = {
        "traceId": trace.trace,
        "spanId": trace.span,
        "flags": trace.flags,
        "name": f"{record.operation} {model}".strip(),
        "kind": _SERVER,
        # 64 bits are text in the JSON of protocol buffers.
        "startTimeUnixNano": str(record.unix_ns),
        "endTimeUnixNano": str(record.unix_ns + int(record.seconds * 1e9)),
        "attributes": _attributes(
            {
                "gen_ai.operation.name": record.operation,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": model or None,
                "gen_ai.usage.input_tokens": record.prompt,
                "gen_ai.usage.output_tokens": record.completion,
                "error.type": record.error or None,
                "http.response.status_code": record.status,
                "covey.replica": record.replica or None,
                "covey.attempts": record.attempts,
                "covey.streamed": record.streamed,
                "covey.first_byte_s": record.first_s,
            }
        ),
        # What a client did is no error of the server's span.
        "status": {"code": _ERROR} if record.failed else {},
    }
    if trace.parent:
        made["parentSpanId"] = trace.parent
    if trace.state:
        made["traceState"] = trace.state
    return made


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": k, "value": _value(v)} for k, v in values.items() if v is not None]


def _value(value: bool | int | float | str) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"stringValue": value}
