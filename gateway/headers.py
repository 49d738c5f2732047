"""Which headers of a request and of an answer pass, and which the gateway adds.

A core, used by `upstream.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.routing import Picked
from gateway.tracing import Context
from gateway.wishes import PRIORITY

NAME = "x-covey-replica"
ROUTE = "x-covey-route"
# How many requests are at a head, the answered one among them (agent/engine/serve/about.py).
LOAD = "x-covey-load"

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
_ANSWER_DROPS = HOP_BY_HOP | {LOAD}  # it is between heads and gateways
# Of the body: it is sent unpacked.
_REQUEST_DROPS = HOP_BY_HOP | {
    "host", "content-length", "content-encoding", "expect", "traceparent", "tracestate"
}  # fmt: skip
# A key of this gateway is nobody else's business; what is no key of its own passes.
# With keys there are strangers, and an urgent request would go before those of all others.
_KEYED_REQUEST_DROPS = _REQUEST_DROPS | {"authorization", "x-api-key", "api-key", PRIORITY}


def of_request(headers: CIMultiDictProxy[str], trace: Context, *, keyed: bool) -> CIMultiDict[str]:
    """Return what a replica gets of a request's `headers`; `keyed`: it came with a key of ours."""
    made = forwarded(headers, _KEYED_REQUEST_DROPS if keyed else _REQUEST_DROPS)
    made["traceparent"] = trace.traceparent
    if trace.state:
        made["tracestate"] = trace.state
    return made


def of_answer(headers: CIMultiDictProxy[str], picked: Picked) -> CIMultiDict[str]:
    """Return what a client gets of an answer's `headers`, with whose answer it is and why."""
    made = forwarded(headers, _ANSWER_DROPS)
    made[NAME] = picked.replica.name
    made[ROUTE] = picked.route
    return made


def load(headers: Mapping[str, str]) -> int | None:
    """Return how many requests an answer says are at its replica, None where it does not say."""
    text = headers.get(LOAD, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def forwarded(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """Return `headers` without the dropped ones (lower case) and those that `Connection` names.

    Values are fit to be sent: what is not UTF-8 is Latin-1, as it was once, and goes on as UTF-8.
    """
    if "Connection" in headers:
        named = ",".join(headers.getall("Connection"))
        dropped = dropped | {name.strip().lower() for name in named.split(",")}
    return CIMultiDict(
        [
            (name, value if value.isascii() else _utf8(value))
            for name, value in headers.items()
            if name.lower() not in dropped
        ]
    )


def _utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # aiohttp has the bytes as surrogates, and cannot send them
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value
