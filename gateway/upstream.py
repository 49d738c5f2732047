"""One attempt at one replica: send the request as it came, pass the answer on as it comes.

Those of a request in another API than OpenAI's go through its translation (`dialects/`).

A shell, used by `proxy.py`, which decides about the next attempt. What came of the attempt is
told to the router here. A task that is cancelled here (its client left) closes the connection to
the replica, which frees the ring.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import math
import socket
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.attached import KEY, METER, RECORD
from gateway.bodies import Content, content_of, read_most
from gateway.cut import cut
from gateway.dialects.translation import Garbled, Translation
from gateway.errors import ApiError
from gateway.observe import went_wrong
from gateway.routing import Attempt, Fault, Need, Picked, Replica, Router
from gateway.routing.tokens import TAIL_BYTES, usage
from gateway.translating import TranslatedContent, translate_headers
from gateway.usage import Meter
from gateway.wishes import PRIORITY

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.0
# OpenAI's own client waits ten minutes; a long prompt on a slow ring may take minutes.
SILENCE_TIMEOUT_S = 600.0
# A head's machine that is switched off closes nothing: TCP's probes find out, while it is silent
# anyway. A path that is replaced costs some seconds, so 17 s are never a fault of the path.
PROBE_AFTER_S, PROBE_EACH_S, PROBES = 5, 3, 4
# Shorter than any server keeps an idle connection, so that none is used as it is being closed.
IDLE_S = 15.0
# A client that reads nothing for so long is given up, and its replica is free again.
WRITE_TIMEOUT_S = 60.0
# With so little waiting to be sent, asyncio has not told anybody to wait (its low-water mark).
_UNWATCHED_BYTES = 16 * 2**10
# An error's body is read before another replica is tried; it is a sentence or two.
MAX_ERROR_BYTES = 2**20
NAME_HEADER = "x-covey-replica"
ROUTE_HEADER = "x-covey-route"
# It has no such endpoint; that says nothing of its health.
_LACKS = (404, 405, 501)
# aiohttp warns that one piece larger than this blocks the loop.
_ONE_PIECE_BYTES = 2**20

# RFC 9110 §7.6.1 (and its predecessors): these speak of one connection, not of the message.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Of the body: it is sent unpacked.
_REQUEST_DROPS = HOP_BY_HOP | {
    "host", "content-length", "content-encoding", "expect", "traceparent", "tracestate"
}  # fmt: skip
# A key of this gateway is nobody else's business; what is no key of its own passes.
# With keys there are strangers, and an urgent request would go before those of all others.
_KEYED_REQUEST_DROPS = _REQUEST_DROPS | {"authorization", "x-api-key", "api-key", PRIORITY}
_TIMEOUT = aiohttp.ClientTimeout(
    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
)


class AttemptFailedError(Exception):
    """Nothing has reached the client yet; `answer` is the replica's own error, if it gave one.

    `sent`: the request may have reached it.
    """

    def __init__(
        self, replica: Replica, reason: str, answer: web.Response | None = None, *,
        sent: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.replica = replica
        self.reason = reason
        self.answer = answer
        self.sent = sent


@dataclass(frozen=True)
class Ask:
    """A request as it is forwarded, what it needs, and until when its first byte has to be there.

    `until` is on the clock of time.monotonic, and may be infinite; `translation` is there for one
    in a dialect, and for one attempt only.
    """

    request: web.Request
    body: bytes
    need: Need
    until: float = math.inf
    priority: int = 0
    translation: Translation | None = None

    @property
    def model(self) -> str:
        """The model's name, as the body has it."""
        return self.need.model


class Upstream:
    """Attempts over one `session`, which must not decompress and is closed by its owner."""

    def __init__(self, router: Router, session: aiohttp.ClientSession) -> None:
        self._router = router
        self._session = session

    async def attempt(self, ask: Ask, picked: Picked) -> web.StreamResponse:
        """Return the finished response; raises AttemptFailedError, or ApiError when it is too late.

        A response that broke off half-way is returned as well: it was ended so that the client
        sees it.
        """
        if ask.until == math.inf:
            return await self._attempt(ask, picked, None)
        bound = asyncio.timeout(max(ask.until - time.monotonic(), 0.0))
        try:
            async with bound:
                return await self._attempt(ask, picked, bound)
        except TimeoutError:
            if not bound.expired():
                raise
            raise ApiError(
                f"{picked.replica.name} did not answer before the request's deadline",
                status=504,
                reason="deadline",
            ) from None

    async def _attempt(
        self, ask: Ask, picked: Picked, bound: asyncio.Timeout | None
    ) -> web.StreamResponse:
        replica = picked.replica
        begun = time.monotonic()
        status: int | str = "cancelled"
        record = ask.request[RECORD]
        record.replica = replica.name
        record.attempts += 1
        self._router.begin(replica.url, picked.attempt, begun)
        try:
            try:
                upstream = await self._send(ask, replica)
            except (aiohttp.ClientError, OSError) as error:
                status = type(error).__name__
                raise self._no_answer(replica, error) from error
            async with upstream:
                status = upstream.status
                if upstream.status >= 500:
                    raise await self._failed(ask, picked, upstream)
                content: Content = (
                    TranslatedContent(upstream, ask.translation)
                    if ask.translation
                    else content_of(upstream)
                )
                try:
                    # Some servers send their status line long before they have a token.
                    first = await content.readany()
                except (aiohttp.ClientError, OSError) as error:
                    status = type(error).__name__
                    raise self._no_answer(replica, error) from error
                except Garbled as error:
                    status = "garbled"
                    self._router.fault(replica.url, Fault.ERROR, str(error), time.monotonic())
                    raise AttemptFailedError(replica, str(error)) from error
                if bound is not None:
                    if bound.expired():
                        await asyncio.sleep(0)  # where the cancellation that is on its way arrives
                    bound.reschedule(None)
                now = record.first_at = time.monotonic()
                # A refusal is fast and so is counting, but they tell nothing of speed.
                if upstream.status < 400 and (ask.translation is None or ask.translation.answers):
                    self._router.first_byte(
                        replica.url, now - begun, streamed=ask.need.streamed, now=now,
                        attempt=picked.attempt,
                    )  # fmt: skip
                    # To learn takes a moment, in which the first byte had better be on its way.
                    asyncio.get_running_loop().call_soon(self._router.settle)
                elif upstream.status in _LACKS:
                    self._router.lacks(replica.url, ask.need.kind, now)
                return await self._pass_on(ask, picked, upstream, content, first)
        finally:
            self._router.end(replica.url, picked.attempt, time.monotonic())
            _log.info(
                "request path=%s model=%s replica=%s status=%s seconds=%.3f",
                ask.request.path, ask.model, replica.name, status, time.monotonic() - begun,
            )  # fmt: skip

    async def _send(self, ask: Ask, replica: Replica) -> aiohttp.ClientResponse:
        body = ask.body
        path = ask.request.raw_path
        drops = _KEYED_REQUEST_DROPS if KEY in ask.request else _REQUEST_DROPS
        headers = forwarded(ask.request.headers, drops)
        trace = ask.request[RECORD].trace
        headers["traceparent"] = trace.traceparent
        if trace.state:
            headers["tracestate"] = trace.state
        if ask.translation is not None:
            path = ask.translation.path
            translate_headers(headers)
        return await self._session.request(
            ask.request.method,
            URL(replica.url + path, encoded=True),
            data=body if len(body) <= _ONE_PIECE_BYTES else io.BytesIO(body),
            headers=headers,
            allow_redirects=False,
            timeout=_TIMEOUT,
        )

    def _no_answer(self, replica: Replica, error: Exception) -> Exception:
        """Return what to raise when no answer came: worth another attempt, or out of time."""
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return ApiError(  # which is no replica's fault
                "The gateway has no file left for a connection to a replica",
                status=503,
                hint="Try again.",
                retry_after_s=1,
                reason="files",
            )
        said = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ServerDisconnectedError):  # it may say half a head
            said = "Server disconnected"
        reason = f"cannot be reached: {said}"
        self._router.fault(replica.url, Fault.UNREACHABLE, reason, time.monotonic())
        waited = isinstance(error, aiohttp.SocketTimeoutError)
        if waited and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return ApiError(
                f"{replica.name} did not answer within {SILENCE_TIMEOUT_S:.0f} s", status=504,
                reason="silence",
            )  # fmt: skip
        sent = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return AttemptFailedError(replica, reason, sent=sent)

    async def _failed(
        self, ask: Ask, picked: Picked, upstream: aiohttp.ClientResponse
    ) -> AttemptFailedError:
        replica = picked.replica
        reason = f"answered with status {upstream.status}"
        wait_s = upstream.headers.get("Retry-After", "")
        if upstream.status in _LACKS:
            self._router.lacks(replica.url, ask.need.kind, time.monotonic())
        else:
            self._router.fault(
                replica.url,
                Fault.REFUSED if upstream.status in (502, 503, 504) else Fault.ERROR,
                reason,
                time.monotonic(),
                float(wait_s) if wait_s.isdecimal() else 0.0,
            )
        try:
            body = await read_most(content_of(upstream), MAX_ERROR_BYTES)
        except (aiohttp.ClientError, TimeoutError):
            return AttemptFailedError(replica, f"{reason} and broke off")
        if len(body) > MAX_ERROR_BYTES:  # its beginning is not its answer
            return AttemptFailedError(replica, f"{reason} and went on and on")
        headers = _answer_headers(picked, upstream)
        headers.popall("Content-Length", None)
        if ask.translation is not None:
            body = ask.translation.error(upstream.status, body)
            headers["Content-Type"] = "application/json"
        answer = web.Response(
            status=upstream.status, reason=upstream.reason, body=body, headers=headers
        )
        return AttemptFailedError(replica, reason, answer)

    async def _pass_on(
        self,
        ask: Ask,
        picked: Picked,
        upstream: aiohttp.ClientResponse,
        content: Content,
        chunk: bytes,
    ) -> web.StreamResponse:
        """Return the response, `chunk` being the first of the answer; raises nothing any more."""
        request, replica = ask.request, picked.replica
        headers = _answer_headers(picked, upstream)
        status, reason = upstream.status, upstream.reason
        at_once = upstream.content_length == len(chunk) > 0
        encoding = upstream.headers.get("Content-Encoding", "")
        if isinstance(content, TranslatedContent):
            at_once, encoding = not content.streamed, ""
            headers.popall("Content-Length", None)
            headers["Content-Type"] = content.type
        meter = request.get(METER)
        if meter is None:
            meter = request[METER] = Meter()
        meter.begin(encoding)
        meter.feed(chunk)
        if at_once:
            # It is there in whole: head and body leave in one piece, which saves a third of the
            # time that a small answer costs.
            headers.popall("Content-Length", None)
            self._answered(picked.attempt, status, chunk, 1)
            return web.Response(status=status, reason=reason, headers=headers, body=chunk)
        response = web.StreamResponse(status=status, reason=reason, headers=headers)
        end, chunks = b"", 0
        while await _write(request, response, chunk):
            if not chunk:
                self._answered(picked.attempt, status, end, chunks)
                break
            end = (end + chunk)[-TAIL_BYTES:] if len(chunk) < TAIL_BYTES else chunk[-TAIL_BYTES:]
            chunks += 1
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = f"broke off its answer: {str(error) or type(error).__name__}"
                _log.warning("answer broke off replica=%s reason=%s", replica.name, reason)
                self._router.fault(replica.url, Fault.UNREACHABLE, reason, time.monotonic())
                went_wrong(request, "broken_off")
                await _break_off(ask, response, replica, end[-2:])
                break
            meter.feed(chunk)
        else:
            went_wrong(request, "client_left")
        return response

    def _answered(self, attempt: Attempt, status: int, end: bytes, chunks: int) -> None:
        """Have the router learn from an answer that came whole, when its end has been passed on."""
        now = time.monotonic()

        def learn() -> None:
            self._router.answered(attempt, usage(end), chunks, now)

        if status < 400:
            asyncio.get_running_loop().call_soon(learn)


async def _write(request: web.Request, response: web.StreamResponse, chunk: bytes) -> bool:
    """Write a chunk, or the end for an empty one; False if the client has left or does not read."""
    try:
        if _takes(request.transport, len(chunk)):
            await _write_now(request, response, chunk)
        else:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await _write_now(request, response, chunk)
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
        return False
    return True


def _takes(transport: asyncio.Transport | None, count: int) -> bool:
    """Say whether so many bytes can be written without a wait, which would have to be bounded."""
    return transport is not None and transport.get_write_buffer_size() + count <= _UNWATCHED_BYTES


async def _write_now(request: web.Request, response: web.StreamResponse, chunk: bytes) -> None:
    if not response.prepared:
        await response.prepare(request)
    await (response.write(chunk) if chunk else response.write_eof())


async def _break_off(ask: Ask, response: web.StreamResponse, replica: Replica, end: bytes) -> None:
    """End a broken answer so that nobody takes it for a whole one."""
    request = ask.request
    between_events = (
        response.content_type == "text/event-stream"
        and "Content-Encoding" not in response.headers
        and end == b"\n\n"
    )
    error = ApiError(f"{replica.name} broke off its answer", status=502)
    if ask.translation is not None:  # whose bytes are whole events always
        if await _write(request, response, ask.translation.broken(error.message, error.kind)):
            await _write(request, response, b"")
    elif between_events and response.content_length is None:
        event = b"data: %s\n\n" % msgspec.json.encode(error.body())
        if await _write(request, response, event):
            await _write(request, response, b"")
    else:
        cut(request, framed=response.content_length is not None)


def connector() -> aiohttp.TCPConnector:
    """Return what makes the connections to replicas."""
    # The router's choice bounds the connections to a replica, not the connector.
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, socket_factory=_socket)


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket whose peer is known to be gone although it said nothing."""
    made = socket.socket(*info[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EACH_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    lost_ms = 1000 * (PROBE_AFTER_S + PROBES * PROBE_EACH_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, lost_ms)
    return made


def forwarded(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """Return `headers` without the dropped ones (lower case) and those that `Connection` names."""
    if "Connection" in headers:
        named = ",".join(headers.getall("Connection"))
        dropped = dropped | {name.strip().lower() for name in named.split(",")}
    return CIMultiDict(
        [(name, value) for name, value in headers.items() if name.lower() not in dropped]
    )


def _answer_headers(picked: Picked, upstream: aiohttp.ClientResponse) -> CIMultiDict[str]:
    headers = forwarded(upstream.headers, HOP_BY_HOP)
    headers[NAME_HEADER] = picked.replica.name
    headers[ROUTE_HEADER] = picked.route
    return headers
