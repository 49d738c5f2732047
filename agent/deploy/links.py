"""How fast this node's links to other members are: what is known, and transfers to learn it.

A transfer goes over the overlay to the other agent's HTTP server (`routes`), which throws it away.
Each is four times as large as the one before until one takes a while, so that a fast link is asked
5.3 MiB and a slow one little; empty ones show how long nothing takes. Nobody is asked for more than
is due (`agent/placement/measured.py`): when a plan asks, or at rest between the nodes of a ring
(`measuring.py`). What came of it is kept in the state directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from agent import endpoint
from agent.deploy.messages import LINKS_MAX, LinkFacts
from agent.errors import PeerError, StateError, UsageError
from agent.identity import privatefile
from agent.identity.keys import NodeId
from agent.placement.measured import Heard, LinkBook, Measured, Transfer
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

_PATH = "/measure"
_FIRST_BYTES, _LAST_BYTES = 64 << 10, 4 << 20
_CHUNK_BYTES = 64 << 10
# A transfer that takes so long tells enough: TCP has found its pace by then on most links.
_ENOUGH_S = 0.5
# A link on which 64 KiB take longer is slow enough to know.
_AT_MOST_S = 4.0
_TURNS = 3
# A path to who was asleep takes some RTTs, by birthday some seconds.
_PATH_LIMIT_S = 4.0
_POLL_S = 0.1
# How long a node measures its links to those that a plan asks for; its answer comes then.
MEASURE_LIMIT_S = 15.0


@dataclass(frozen=True)
class Around:
    """What the daemon knows of the members around: all that are connected, and the path to one.

    `path`: None where WireGuard does not reach it; `need` has a path looked for; `traffic` is what
    WireGuard carries to and from it in bytes a second, None where nobody looked.
    """

    nodes: Callable[[], Iterable[NodeId]] = tuple
    path: Callable[[NodeId], Heard | None] = lambda _: None
    need: Callable[[NodeId], Any] = lambda _: None
    traffic: Callable[[NodeId], float | None] = lambda _: None


NOBODY = Around()


class Links:
    """The links from this node to others. `address` gives a node's overlay address."""

    def __init__(
        self, file: Path, port: int, address: Callable[[NodeId], str], around: Around
    ) -> None:
        self._file = file
        self._port = port
        self._address = address
        self._around = around
        self._book = LinkBook()
        self._measuring = asyncio.Lock()
        self._taking = False

    # ------------------------------------------------------------------ what is known

    def restore(self) -> None:
        """Read what was kept; what cannot be read is measured again."""
        try:
            raw = privatefile.read(self._file, "file of links") or b"{}"
            kept = msgspec.json.decode(raw, type=dict[str, list[Transfer]])
            self._book.restore({NodeId.parse(node): found for node, found in kept.items()})
        except (StateError, UsageError, *UNREADABLE) as error:
            _log.warning("links are measured anew, since %s cannot be used: %s", self._file, error)

    def known(self) -> dict[NodeId, Measured]:
        """Return what is known of the links to all who are connected."""
        now, found = time.time(), {}
        for node in self._around.nodes():
            heard = self._around.path(node)
            link = None if heard is None else self._book.link(node, heard, now)
            if link is not None:
                found[node] = link
        return found

    def facts(self) -> tuple[LinkFacts, ...]:
        """Return the same for others; those of known bandwidth first where there are too many."""
        links = sorted(self.known().items(), key=lambda pair: (pair[1].bytes_s is None, pair[0]))
        return tuple(
            LinkFacts(str(node), link.rtt_s, link.jitter_s, link.loss, link.bytes_s or 0.0)
            for node, link in links[:LINKS_MAX]
        )

    def describe(self, node: NodeId) -> dict[str, Any]:
        """Describe the bandwidth to a node for the local API."""
        heard = self._around.path(node)
        link = None if heard is None else self._book.link(node, heard, time.time())
        return {"link_bytes_s": link.bytes_s if link else None}

    def due(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Return to which of these a transfer is due."""
        ways = {}
        for node in nodes:
            heard = self._around.path(node)
            ways[node] = heard.way if heard else ""
        return self._book.due(ways, time.time())

    def keep(self, nodes: Iterable[NodeId]) -> None:
        """Forget all but these members."""
        self._book.keep(nodes)

    # ------------------------------------------------------------------ measuring

    async def measure(self, nodes: Iterable[NodeId], limit_s: float) -> None:
        """Measure the links to those of these nodes that are due, within a time; never raises.

        One after the other, and one caller after the other: two transfers would share the line.
        """
        wanted = tuple(nodes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s), self._measuring:
                for node in self.due(wanted):
                    await self._measure(node)

    async def _measure(self, node: NodeId) -> None:
        self._book.tried(node, time.time())
        heard = await self._reached(node)
        if heard is None:
            _log.info("the link to %s is not measured: it cannot be reached", node)
            return
        try:
            bytes_s, turn_s = await transfer(endpoint.join(self._address(node), self._port))
        except PeerError as error:
            _log.info("the link to %s is not measured: %s", node, error.line())
            return
        after = self._around.path(node)
        if after is None or after.way != heard.way:
            return  # it went by two paths
        _log.info("the link to %s by %s carries %.1f Mbit/s", node, heard.way, 8e-6 * bytes_s)
        self._book.carried(node, Transfer(heard.way, bytes_s, turn_s, time.time()))
        kept = {str(one): found for one, found in self._book.transfers().items()}
        try:
            privatefile.replace(self._file, msgspec.json.encode(kept) + b"\n")
        except StateError as error:
            _log.warning("the links are not kept: %s", error.line())

    async def _reached(self, node: NodeId) -> Heard | None:
        """Return the path to a node, looked for if there is none."""
        self._around.need(node)
        deadline = time.monotonic() + _PATH_LIMIT_S
        while True:
            heard = self._around.path(node)
            if heard is not None or time.monotonic() > deadline:
                return heard
            await asyncio.sleep(_POLL_S)

    # ------------------------------------------------------------------ the other side

    def routes(self) -> list[web.RouteDef]:
        """Return what others ask of this node, for the HTTP server on the overlay."""
        return [web.post(_PATH, self._take)]

    async def _take(self, request: web.Request) -> web.Response:
        """Read what comes and forget it: one transfer at a time, and none larger than is sent."""
        if self._taking:
            raise web.HTTPServiceUnavailable(text="another transfer is under way\n")
        self._taking, taken = True, 0
        try:
            async with asyncio.timeout(2 * _AT_MOST_S):
                async for chunk in request.content.iter_any():
                    taken += len(chunk)
                    if taken > _LAST_BYTES:
                        raise web.HTTPRequestEntityTooLarge(_LAST_BYTES, taken)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the transfer took too long\n") from None
        finally:
            self._taking = False
        return web.Response(status=204)


async def transfer(place: str) -> tuple[float, float]:
    """Send to HOST:PORT; return bytes a second, and the fastest turn with nothing (s).

    Raises PeerError when the other side does not answer, or not as it should.
    """
    url = f"http://{place}{_PATH}"
    connector = aiohttp.TCPConnector(limit=1)
    bounds = aiohttp.ClientTimeout(total=_AT_MOST_S)
    async with aiohttp.ClientSession(connector=connector, timeout=bounds) as session:
        turn_s = min([await _sent_s(session, url, 0) for _ in range(_TURNS)])
        bytes_s, size = _FIRST_BYTES / _AT_MOST_S, _FIRST_BYTES
        while size <= _LAST_BYTES:
            try:
                took_s = await _sent_s(session, url, size)
            except TimeoutError:
                break
            bytes_s = size / max(took_s - turn_s, 1e-6)
            if took_s > _ENOUGH_S:
                break
            size *= 4
    return bytes_s, turn_s


async def _sent_s(session: aiohttp.ClientSession, url: str, size: int) -> float:
    """Return how long so many bytes took; TimeoutError after _AT_MOST_S where there are any."""
    began = time.perf_counter()
    try:
        async with session.post(url, data=_zeros(size) if size else None) as response:
            if response.status != 204:
                raise PeerError(f"{url} answered {response.status} to a transfer")
            return time.perf_counter() - began
    except TimeoutError:
        if size:
            raise
        raise PeerError(f"{url} did not answer within {_AT_MOST_S:.0f} s") from None
    except aiohttp.ClientError as error:
        raise PeerError(f"a transfer to {url} broke off: {error}") from None


async def _zeros(size: int) -> AsyncIterator[bytes]:
    chunk = bytes(min(size, _CHUNK_BYTES))
    for _ in range(size // len(chunk)):
        yield chunk


def from_facts(links: Iterable[LinkFacts]) -> Mapping[str, Measured]:
    """Return a node's links by node id (text), as its facts say them."""
    return {
        link.node: Measured(link.rtt_s, link.jitter_s, link.loss, link.bytes_s or None)
        for link in links
    }
