"""One request to a replica and its answer, over aiohttp's connections, parser and writer.

A shell, used by `upstream.py`. aiohttp's own session makes, for each request, an object with all
that a request might need, a task that writes it and a response that keeps cookies and history: a
fifth of all that a request costs in the gateway, which sends bytes that it has and passes on bytes
as they come. What is hard stays aiohttp's: names, TLS, the pool, HTTP's framing, back-pressure.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

CONNECT_TIMEOUT_S = 3.0
# OpenAI's own client waits ten minutes; a long prompt on a slow ring may take minutes.
SILENCE_TIMEOUT_S = 600.0
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
# A larger body leaves by itself: joined with its head it would be copied.
_TOGETHER_BYTES = 64 * 2**10
# Replicas that come and go leave their places here, which are small, until others need them.
_MOST_PLACES = 256


class Answer:
    """An answer whose head is there; `content` is its body, as it came, whole or not."""

    def __init__(
        self, connection: Connection, link: ResponseHandler, status: int, reason: str,
        headers: CIMultiDictProxy[str], content: aiohttp.StreamReader,
    ) -> None:  # fmt: skip
        self.status, self.reason, self.headers, self.content = status, reason, headers, content
        self._connection = connection
        self._link = link
        content.on_eof(self._ended)

    @property
    def content_length(self) -> int | None:
        """What the head says of the body's length, None for nothing."""
        said = self.headers.get("Content-Length")
        return int(said) if said is not None else None

    @property
    def content_type(self) -> str:
        """The type without its parameters, empty for none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def was_reset(self) -> bool:
        """Whether its connection ended by an error, and not because the replica closed it."""
        return isinstance(self._link.exception(), aiohttp.ClientOSError)

    def close(self) -> None:
        """Have done with it: a connection on which more would come is closed."""
        self._connection.close()

    def _ended(self) -> None:
        """Leave the connection to others, though the body is not all read yet."""
        transport = self._link.transport
        if transport is not None and transport.get_write_buffer_size():
            self._connection.close()  # it answered without having read the request
        else:
            self._connection.release()


@dataclass(frozen=True)
class _Place:
    """Where a base URL leads: what aiohttp's connector asks for, and the beginning of paths."""

    request: ClientRequest
    host: str
    path: str


class Exchanges:
    """Requests over the connections of `connector`, which its owner closes.

    An answer that is silent for `silence_s` has failed.
    """

    def __init__(
        self, connector: aiohttp.TCPConnector, silence_s: float = SILENCE_TIMEOUT_S
    ) -> None:
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        self._place = lru_cache(_MOST_PLACES)(self._find)

    async def ask(self, base: str, path: str, headers: CIMultiDict[str], body: bytes) -> Answer:
        """POST a body to `path` (with its query, encoded) below a base URL; return the answer.

        `headers` are those to send but for the body's length, and are changed. Raises
        aiohttp.ClientError or OSError.
        """
        place = self._place(base)
        connection = await self._connect(place)
        try:
            return await self._exchange(connection, place, path, headers, body)
        except BaseException:
            connection.close()
            raise

    async def _connect(self, place: _Place) -> Connection:
        while True:
            try:
                connection = await self._connector.connect(place.request, [], _TIMEOUT)
            except TimeoutError as error:
                raise aiohttp.ConnectionTimeoutError(
                    f"Connection timeout to host {place.request.url}"
                ) from error
            # What a server says unasked on an idle connection is no answer to the next request.
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()

    async def _exchange(
        self, connection: Connection, place: _Place, path: str, headers: CIMultiDict[str],
        body: bytes,
    ) -> Answer:  # fmt: skip
        link = connection.protocol
        assert link is not None  # noqa: S101  # it has just been given to us
        link.set_response_params(
            read_until_eof=True, auto_decompress=False, read_timeout=self._silence_s
        )
        headers["Host"] = place.host
        headers["Content-Length"] = str(len(body))
        writer = StreamWriter(link, self._loop)
        await writer.write_headers(f"POST {place.path}{path} HTTP/1.1", headers)
        if len(body) > _TOGETHER_BYTES:
            writer.send_headers()
        # Nobody waits until all has left: a refusal may come before, and is heard.
        await writer.write(body, drain=False)
        link.start_timeout()
        message = None
        while message is None or (message.code < 200 and message.code != 101):
            try:
                message, content = await link.read()
            except HttpProcessingError as error:
                raise aiohttp.ClientPayloadError(
                    f"its answer is no HTTP: {error.message}"
                ) from error
        return Answer(connection, link, message.code, message.reason, message.headers, content)

    def _find(self, base: str) -> _Place:
        url = URL(base, encoded=True)
        request = ClientRequest("POST", url, loop=self._loop)
        return _Place(request, request.headers["Host"], url.raw_path.rstrip("/"))
