"""From a client's request to an answer: read it, let the router choose, try, and try elsewhere.

A shell, used by `app.py`; attempts are `attempts.py` and `upstream.py`. Another replica is tried
only while the client has not got a byte: when there was no connection or the answer was a 5xx, and
once beside the first one, which is late (`hedging.py`). When a model's only head is lost, or its
ring is being replaced, its requests wait here for the next one:

| a request | then |
|---|---|
| had an answer's first byte passed on | the stream ends with an error, whatever comes next |
| was sent to a head that is gone, or says 503 as its ring is replaced | it goes to the next one |
| comes while there is no head, of a model that answered of late | the same |
| was refused by a head that is ready (too many wait there) | the refusal is the answer |
| shows a picture where no replica of the model is said to see | 400 |
| finds all places taken (`admission.py`) | it waits for its turn; 429 or 503 if that is too long |
| is predicted to be answered after its deadline, or that passes | 503 or 504 |
| lost `MAX_ATTEMPTS` heads, or waits for longer than `wait_s` | 503 |
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from random import Random

import msgspec
from aiohttp import web

from gateway.ask import Ask, AttemptFailedError
from gateway.attached import BODY, KEY, RECORD
from gateway.attempts import Attempts
from gateway.dialects.port import Dialect, Refused
from gateway.dialects.translation import Translation
from gateway.errors import ApiError
from gateway.gate import Gate
from gateway.hedging import Hedge, budget
from gateway.modalities import shown
from gateway.retries import RETRIES_MOST, RETRIES_SHARE, Budget, backoff_s
from gateway.routing import (
    NoneUsable,
    Picked,
    Replica,
    Router,
    Shown,
    TextOnly,
    UnknownModel,
)
from gateway.upstream import Upstream
from gateway.watch import Watch
from gateway.wishes import Fields, client, wishes

_log = logging.getLogger(__name__)

# It might be the request itself that a head dies of: it does not go through all of them.
MAX_ATTEMPTS = 3
# Each holds its body, 16 MiB at most, and a client.
MAX_WAITING = 256
# A waiting request looks at least so often; what it waits for is mostly told.
_LOOK_S = 0.5
RETRY_AFTER_MOST_S = 30
# An agent that starts takes a few seconds until it serves its socket.
RETRY_AFTER_AGENT_S = 5
# Longer bodies are translated in a thread: 256 KiB take about 2 ms, a pause nobody sees.
_INLINE_BYTES = 256 * 2**10


_decode = msgspec.json.Decoder(Fields).decode

_Refusal = UnknownModel | NoneUsable | TextOnly


class Proxy:
    """Serves the requests whose JSON body names a model."""

    def __init__(
        self, router: Router, watch: Watch, upstream: Upstream, gate: Gate, *,
        wait_s: float, per_replica: int, hedge_percent: float,
    ) -> None:  # fmt: skip
        self._router = router
        self._watch = watch
        self._upstream = upstream
        self._attempts = Attempts(router, upstream)
        self._gate = gate
        self.wait_s = wait_s
        self._per_replica = per_replica
        self._waiting = 0
        self._retries = Budget(RETRIES_SHARE, RETRIES_MOST)
        self._hedges = budget(hedge_percent)
        self._random = Random()  # noqa: S311  # a wait, not a secret

    async def handle(
        self, request: web.Request, dialect: Dialect | None = None
    ) -> web.StreamResponse:
        """Serve one request, of OpenAI's or in a dialect.

        Raises ApiError for what the gateway answers itself.
        """
        body = request[BODY]
        ask = await _translated(request, body, dialect) if dialect else _ask(request, body)
        record = request[RECORD]
        record.model, record.streamed, record.body = ask.model, ask.need.streamed, body
        self._retries.request()
        self._hedges.request()
        key = request.get(KEY)
        who = client(request.headers, request.remote) if key is None else key.id
        weight = 1.0 if key is None else key.weight
        limit = partial(self._limit, ask.model)
        place = await self._gate.enter(ask.model, who, ask.priority, ask.until, limit, weight)
        try:
            return await self._serve(ask, body, dialect)
        finally:
            self._gate.leave(ask.model, place, limit)

    @property
    def waiting(self) -> dict[str, int]:
        """How many requests wait, by what for."""
        return {"place": self._gate.waiting, "head": self._waiting}

    def hedge(self, percent: float) -> None:
        """Have at most so many of a hundred requests sent to a second replica; 0: none."""
        self._hedges.share = percent / 100

    def _limit(self, model: str) -> int:
        """Return how many requests of a model may run now; while it has no replica, a replica's."""
        return self._per_replica * max(self._router.usable_count(model, time.monotonic()), 1)

    async def _serve(self, ask: Ask, body: bytes, dialect: Dialect | None) -> web.StreamResponse:
        tried: set[str] = set()
        failed: AttemptFailedError | None = None
        refused: Replica | None = None
        sent, looked, deadline = 0, False, ask.until
        hedged = False
        again = partial(_again, ask, body, dialect)
        while sent < MAX_ATTEMPTS:
            chosen = self._router.pick(ask.need, time.monotonic(), frozenset(tried))
            if isinstance(chosen, Picked):
                _in_time(ask, chosen)
                if failed is not None and failed.answer is not None and not self._retries.take():
                    break
                hedge = None if hedged else self._hedge(chosen, tried)
                try:
                    begun = await self._attempts.begin(ask, chosen, hedge, again)
                except AttemptFailedError as error:
                    failed = error
                else:
                    return await self._upstream.pass_on(begun)
                ask = await again()
                sent += failed.sent
                tried.add(chosen.replica.url)
                if hedge is not None and hedge.second is not None:
                    hedged = True
                    sent += 1
                    tried.add(hedge.second.replica.url)
                _log.warning(
                    "attempt failed model=%s replica=%s reason=%s",
                    ask.model, failed.replica.name, failed.reason,
                )  # fmt: skip
                if failed.answer is not None and failed.answer.status == 503:
                    refused = failed.replica
                if failed.sent:
                    await asyncio.sleep(backoff_s(sent - 1, self._random))
                continue
            if refused is None and not looked and isinstance(chosen, NoneUsable) and chosen.doubted:
                refused = chosen.doubted[0]  # another request, a moment ago
            if refused is not None:
                # Its ring may be replaced just now, or it has too much to do.
                await self._watch.look(refused)
                refused, looked = None, True
                continue
            deadline = min(deadline, time.monotonic() + self.wait_s)
            if not self._may_wait(chosen, deadline):
                if time.monotonic() >= ask.until:
                    raise ApiError(
                        "The request's deadline has passed", status=504, reason="deadline"
                    )
                if failed is None:
                    raise self.refusal(ask.model, chosen)
                break
            await self._wait(deadline)
            tried.clear()
        assert failed is not None  # noqa: S101  # the loop ends only after a failed attempt
        if failed.answer is not None:
            return failed.answer
        raise ApiError(
            f"No replica of {ask.model!r} answers ({failed.replica.name} {failed.reason})",
            status=503,
            hint="Try again.",
            retry_after_s=1,
            reason="no_answer",
        )

    def _hedge(self, chosen: Picked, tried: Iterable[str]) -> Hedge | None:
        """Return what may send a request to a second replica; None: there is none, or no wish."""
        if chosen.attempt.others_s is None or not self._hedges.share:
            return None
        return Hedge(
            self._router, self._hedges, chosen.attempt, frozenset(tried), self._per_replica,
            partial(self._gate.free, chosen.attempt.need.model),
        )  # fmt: skip

    def _may_wait(self, outcome: _Refusal, deadline: float) -> bool:
        awaited = isinstance(outcome, NoneUsable) and outcome.awaited
        return awaited and self._waiting < MAX_WAITING and time.monotonic() < deadline

    async def _wait(self, deadline: float) -> None:
        """Wait until there may be another head."""
        self._waiting += 1
        try:
            await self._watch.news(min(_LOOK_S, max(0.0, deadline - time.monotonic())))
        finally:
            self._waiting -= 1

    def refusal(self, model: str, outcome: _Refusal) -> ApiError:
        """Return why no replica can be chosen for `model`."""
        missing = self._watch.agent_missing
        if isinstance(outcome, TextOnly):
            where, type_ = outcome.shown
            return ApiError(
                f"`{where}` is of type {type_!r}, but {model!r} reads text only here", status=400,
                hint="Send it as text, or leave it out.", param=where, code="unsupported_content",
            )  # fmt: skip
        if isinstance(outcome, NoneUsable):
            return ApiError(
                f"No replica of {model!r} is ready ({'; '.join(outcome.reasons)})",
                status=503,
                hint="Try again later.",
                retry_after_s=min(math.ceil(outcome.retry_after_s), RETRY_AFTER_MOST_S),
                reason="none_ready",
            )
        if not self._watch.first_round_done.is_set():
            return ApiError(
                "The gateway is starting", status=503, retry_after_s=1, reason="none_ready"
            )
        if missing and not outcome.known:
            return ApiError(
                f"No model is known: {missing}", status=503, retry_after_s=RETRY_AFTER_AGENT_S,
                reason="none_ready",
            )  # fmt: skip
        known = ", ".join(outcome.known) or "no model yet"
        return ApiError(
            f"The model {model!r} does not exist here; there is {known}",
            status=404,
            hint=f"The mesh's models are not known: {missing}" if missing else "",
            param="model",
            code="model_not_found",
        )


async def _again(ask: Ask, body: bytes, dialect: Dialect | None) -> Ask:
    """Return the request for another attempt; a translation begins with a replica's answer."""
    if dialect is None:
        return ask
    again = await _translated(ask.request, body, dialect)
    return replace(ask, body=again.body, translation=again.translation)


async def _translated(request: web.Request, body: bytes, dialect: Dialect) -> Ask:
    make = partial(Translation, dialect, body, time.time())
    try:
        translation = make() if len(body) <= _INLINE_BYTES else await asyncio.to_thread(make)
    except Refused as refused:
        raise ApiError(
            refused.message,
            status=refused.status,
            param=refused.param,
            code=refused.code,
            retry_after_s=RETRY_AFTER_AGENT_S if refused.status == 503 else None,
        ) from refused
    try:
        fields = _decode(translation.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fields = Fields()  # it names its model elsewhere
    fields = msgspec.structs.replace(fields, model=translation.model, stream=translation.streamed)
    return _asked(
        request, translation.body, translation.path, fields, translation.shown, translation
    )


def _ask(request: web.Request, body: bytes) -> Ask:
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"The request's body is not a JSON object: {error}", status=400) from error
    if not isinstance(fields.model, str) or not fields.model:
        raise ApiError("The request names no model", status=400, hint="Set `model`.", param="model")
    return _asked(request, body, request.path, fields, shown(fields.messages))


def _asked(
    request: web.Request, body: bytes, path: str, fields: Fields, seen: Shown | None,
    translation: Translation | None = None,
) -> Ask:  # fmt: skip
    found = wishes(request.headers, path, fields, seen)
    until = math.inf if found.deadline_s is None else time.monotonic() + found.deadline_s
    return Ask(request, body, found.need, until, found.priority, translation)


def _in_time(ask: Ask, chosen: Picked) -> None:
    """Raise ApiError where the deadline has passed, or passes by all that is predicted."""
    left_s = ask.until - time.monotonic()
    if left_s <= 0:
        raise ApiError("The request's deadline has passed", status=504, reason="deadline")
    if chosen.soonest_s is not None and chosen.soonest_s > left_s:
        predicted_s = chosen.attempt.expected_s
        raise ApiError(
            f"The deadline cannot be met: {left_s:.2f} s are left, and the first byte is predicted"
            f" after {predicted_s:.2f} s",
            status=503,
            hint="Give it longer with x-covey-deadline-ms, or come again when less is going on.",
            retry_after_s=max(math.ceil(predicted_s - left_s), 1),
            reason="deadline",
        )
