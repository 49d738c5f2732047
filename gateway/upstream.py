"""One attempt at one replica: send the request as it came, pass the answer on as it comes.

Those of a request in another API than OpenAI's go through its translation (`dialects/`).

A shell, used by `attempts.py` up to the first byte and by `proxy.py` from then on. What came of the
attempt is told to the router here. A task that is cancelled here (its client left, or another
replica was sooner) closes the connection to the replica, which frees the ring.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from gateway import headers
from gateway.ask import Ask, AttemptFailedError
from gateway.attached import KEY, METER, RECORD
from gateway.bodies import Content, content_of, read_most
from gateway.delivery import break_off, write
from gateway.dialects.port import Refused
from gateway.dialects.translation import Garbled
from gateway.errors import ApiError
from gateway.exchange import SILENCE_TIMEOUT_S, Answer, Exchanges
from gateway.observe import went_wrong
from gateway.routing import Fault, Picked, Replica, Router
from gateway.translating import TranslatedContent, translate_headers
from gateway.usage import Meter

_log = logging.getLogger(__name__)

# An error's body is read before another replica is tried; it is a sentence or two.
MAX_ERROR_BYTES = 2**20
# It has no such endpoint; that says nothing of its health.
_LACKS = (404, 405, 501)


@dataclass(eq=False, slots=True)
class Begun:
    """An attempt whose first bytes, `first`, are there; sent and there on time.monotonic's clock.

    Whoever has it passes it on or gives it up.
    """

    ask: Ask
    picked: Picked
    sent_at: float
    first_at: float
    answer: Answer
    content: Content
    first: bytes


class Upstream:
    """Attempts by the requests of `exchanges`; what came of them is told to `router`."""

    def __init__(self, router: Router, exchanges: Exchanges) -> None:
        self._router = router
        self._exchanges = exchanges

    async def begin(self, ask: Ask, picked: Picked) -> Begun:
        """Send the request and return when the first bytes of an answer are there.

        Raises AttemptFailedError, or ApiError where nobody else had better be tried.
        """
        replica = picked.replica
        sent_at = time.monotonic()
        status: int | str = "cancelled"
        record = ask.request[RECORD]
        record.replica = replica.name
        record.attempts += 1
        self._router.begin(replica.url, picked.attempt, sent_at)
        answer = None
        try:
            try:
                answer = await self._send(ask, replica)
                status = answer.status
                if headers.LOAD in answer.headers:
                    self._load(replica, answer)
                if answer.status >= 500:
                    raise await self._failed(ask, picked, answer)
                translation = ask.translation
                content: Content = (
                    TranslatedContent(answer, translation) if translation else content_of(answer)
                )
                first = await self._first(ask, picked, answer, content)
            except (aiohttp.ClientError, OSError) as error:
                status = type(error).__name__
                raise self._no_answer(replica, error) from error
            except Garbled as error:
                status = "garbled"
                self._router.fault(replica.url, Fault.ERROR, str(error), time.monotonic())
                raise AttemptFailedError(replica, str(error)) from error
        except BaseException:
            if answer is not None:
                answer.close()  # which keeps the connection of an error that was read to its end
            self._end(ask, picked, sent_at, status)
            raise
        now = time.monotonic()
        # A refusal is fast and so is counting, but they tell nothing of speed.
        if answer.status < 400 and (ask.translation is None or ask.translation.answers):
            self._router.first_byte(
                replica.url, now - sent_at, streamed=ask.need.streamed, now=now,
                attempt=picked.attempt,
            )  # fmt: skip
            # To learn takes a moment, in which the first byte had better be on its way.
            asyncio.get_running_loop().call_soon(self._router.settle)
        elif answer.status in _LACKS:
            self._router.lacks(replica.url, ask.need.kind, now)
        return Begun(ask, picked, sent_at, now, answer, content, first)

    async def pass_on(self, begun: Begun) -> web.StreamResponse:
        """Return the response when it has been passed on; raises nothing any more.

        One that broke off half-way is returned as well: it was ended so that the client sees it.
        """
        record = begun.ask.request[RECORD]
        record.replica, record.first_at = begun.picked.replica.name, begun.first_at
        try:
            return await self._pass_on(begun)
        finally:
            begun.answer.close()
            self._end(begun.ask, begun.picked, begun.sent_at, begun.answer.status)

    def give_up(self, begun: Begun) -> None:
        """End an attempt that nobody wants any more."""
        begun.answer.close()
        self._end(begun.ask, begun.picked, begun.sent_at, "cancelled")

    def _end(self, ask: Ask, picked: Picked, sent_at: float, status: int | str) -> None:
        now = time.monotonic()
        self._router.end(picked.replica.url, picked.attempt, now)
        # To write it takes a moment, in which the answer had better be on its way.
        asyncio.get_running_loop().call_soon(
            _log.info, "request path=%s model=%s replica=%s status=%s seconds=%.3f",
            ask.request.path, ask.model, picked.replica.name, status, now - sent_at,
        )  # fmt: skip

    async def _send(self, ask: Ask, replica: Replica) -> Answer:
        request = ask.request
        sent = headers.of_request(request.headers, request[RECORD].trace, keyed=KEY in request)
        path = request.rel_url.raw_path_qs
        if ask.translation is not None:
            path = ask.translation.path
            translate_headers(sent)
        return await self._exchanges.ask(replica.url, path, sent, ask.body)

    def _load(self, replica: Replica, answer: Answer) -> None:
        """Have the router know how many requests are at the replica, if that makes sense."""
        there = headers.load(answer.headers)
        if there is not None:
            self._router.told(replica.url, there, time.monotonic())

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

    async def _failed(self, ask: Ask, picked: Picked, answer: Answer) -> AttemptFailedError:
        replica = picked.replica
        reason = f"answered with status {answer.status}"
        wait_s = answer.headers.get("Retry-After", "")
        if answer.status in _LACKS:
            self._router.lacks(replica.url, ask.need.kind, time.monotonic())
        else:
            self._router.fault(
                replica.url,
                Fault.REFUSED if answer.status in (502, 503, 504) else Fault.ERROR,
                reason,
                time.monotonic(),
                float(wait_s) if wait_s.isdecimal() else 0.0,
            )
        try:
            body = await read_most(content_of(answer), MAX_ERROR_BYTES)
        except (aiohttp.ClientError, TimeoutError):
            return AttemptFailedError(replica, f"{reason} and broke off")
        if len(body) > MAX_ERROR_BYTES:  # its beginning is not its answer
            return AttemptFailedError(replica, f"{reason} and went on and on")
        told = headers.of_answer(answer.headers, picked)
        told.popall("Content-Length", None)
        if ask.translation is not None:
            body = ask.translation.error(answer.status, body)
            told["Content-Type"] = "application/json"
        refusal = web.Response(status=answer.status, reason=answer.reason, body=body, headers=told)
        return AttemptFailedError(replica, reason, refusal)

    async def _first(self, ask: Ask, picked: Picked, answer: Answer, content: Content) -> bytes:
        """Return the first bytes; some servers send their head long before they have a token."""
        try:
            return await content.readany()
        except Refused as refused:
            raise self._cannot(ask, picked, answer, refused) from refused

    def _cannot(
        self, ask: Ask, picked: Picked, answer: Answer, refused: Refused
    ) -> AttemptFailedError:
        """Return what to raise where a replica answered, but not what it was asked."""
        assert ask.translation is not None  # noqa: S101  # nobody else looks at its answer
        self._router.lacks(picked.replica.url, ask.need.kind, time.monotonic())
        told = headers.of_answer(answer.headers, picked)
        told.popall("Content-Length", None)
        told["Content-Type"] = "application/json"
        body = ask.translation.refused(refused)
        refusal = web.Response(status=refused.status, body=body, headers=told)
        return AttemptFailedError(picked.replica, refused.message, refusal)

    async def _pass_on(self, begun: Begun) -> web.StreamResponse:
        request, replica, answer = begun.ask.request, begun.picked.replica, begun.answer
        content, chunk = begun.content, begun.first
        told = headers.of_answer(answer.headers, begun.picked)
        at_once = answer.content_length == len(chunk) > 0
        encoding = answer.headers.get("Content-Encoding", "")
        if isinstance(content, TranslatedContent):
            at_once, encoding = not content.streamed, ""
            told.popall("Content-Length", None)
            told["Content-Type"] = content.type
        meter = request.get(METER)
        if meter is None:
            meter = request[METER] = Meter()
        meter.begin(encoding)
        meter.feed(chunk)
        if at_once:
            # It is there in whole: head and body leave in one piece, which saves a third of the
            # time that a small answer costs.
            told.popall("Content-Length", None)
            self._answered(begun, meter)
            return web.Response(
                status=answer.status, reason=answer.reason, headers=told, body=chunk
            )
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=told)
        # The end leaves with what is before it, where both are there.
        while await write(request, response, chunk, last=(last := not chunk or content.at_eof())):
            if last:
                self._answered(begun, meter)
                break
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = f"broke off its answer: {str(error) or type(error).__name__}"
                _log.warning("answer broke off replica=%s reason=%s", replica.name, reason)
                self._router.fault(replica.url, Fault.UNREACHABLE, reason, time.monotonic())
                went_wrong(request, "broken_off")
                await break_off(
                    request, response, ApiError(f"{replica.name} broke off its answer", status=502),
                    begun.ask.translation,
                    between_events=not encoding and meter.ends_with(b"\n\n"),
                )  # fmt: skip
                break
            meter.feed(chunk)
        else:
            went_wrong(request, "client_left")
        return response

    def _answered(self, begun: Begun, meter: Meter) -> None:
        """Have the router learn from an answer that came whole, when its end has been passed on."""
        now = time.monotonic()

        def learn() -> None:
            cost = meter.tokens()
            if cost is not None and begun.ask.translation is not None and not cost.cached:
                cost = cost._replace(cached=None)  # a dialect says 0 where the replica says nothing
            self._router.answered(begun.picked.attempt, cost, meter.events, now)

        if begun.answer.status < 400:
            asyncio.get_running_loop().call_soon(learn)
