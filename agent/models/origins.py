"""Where a model's bytes come from: an HTTP server (a hub, a member) or a file on this node.

An origin opens a stream of bytes [start, end). It takes care that all of them are of one file: what
the first answer said of it (ETag, Last-Modified, length) must stay as it is. Used by `fetch.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urljoin

import aiohttp

from agent import endpoint
from agent.errors import UsageError, one_line
from agent.models.manifest import is_hash
from agent.models.wanted import Networks, check_redirect, shown
from agent.proxies import proxy_for

# A source that sends nothing for so long has failed this time.
SILENCE_S = 15.0
MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16}|\*)")
# A header that the hub's own answer carries before it leads on to where the file lies.
_HUB_SHA256, _HUB_SIZE = "X-Linked-Etag", "X-Linked-Size"
# Statuses below 500 that pass by themselves; any other is the answer.
_PASSING = frozenset({408, 425, 429})


class BrokenError(Exception):
    """The source failed this time; `rest_s` is how long it asks to be spared."""

    def __init__(self, why: str, rest_s: float = 0.0) -> None:
        super().__init__(why)
        self.rest_s = rest_s


class RefusedError(Exception):
    """The source will not give this file, however often it is asked."""


@dataclass(frozen=True)
class Tag:
    """What a source says of the file it has now; "" where it says nothing."""

    size: int
    etag: str = ""
    modified: str = ""

    def differs(self, other: Tag) -> str:
        """Return in what `other` is another file, "" where nothing shows it."""
        if self.size != other.size:
            return f"it had {self.size} bytes, and has {other.size}"
        if self.etag and other.etag:
            return "" if self.etag == other.etag else "its ETag is another one"
        if self.modified and other.modified and self.modified != other.modified:
            return "its Last-Modified is another one"
        return ""

    @property
    def origin(self) -> str:
        """What tells this file from another one of the same source; "" where nothing would."""
        said = self.etag or self.modified
        return f"{self.size} {said}" if said else ""

    @property
    def strong(self) -> str:
        """What may stand in If-Range; "" for nothing."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return "" if self.etag else self.modified


class Stream:
    """Bytes of a file from `at` on; `sequential` where the source cannot begin elsewhere."""

    def __init__(
        self, at: int, read: Callable[[int], Awaitable[bytes]], *, sequential: bool = False
    ) -> None:
        self.at = at
        self.sequential = sequential
        self._read = read

    async def chunk(self, limit: int) -> bytes:
        """Return some bytes, at most `limit`; raises BrokenError where there are no more."""
        raw = await self._read(min(limit, _CHUNK_BYTES))
        if not raw:
            raise BrokenError(f"it ended at byte {self.at}")
        self.at += len(raw)
        return raw


class Origin(Protocol):
    """One source of a file."""

    name: str
    tier: int

    def open(self, start: int, end: int) -> AbstractAsyncContextManager[Stream]:
        """Open bytes [start, end). Raises BrokenError or RefusedError."""


@dataclass(frozen=True)
class Found:
    """What a source said when it was asked first; `sha256` (hex) where it says that."""

    tag: Tag
    sha256: str = ""


class HttpOrigin:
    """A file at an HTTP server; `tier` 0 for a member, 1 for what is asked after members."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, networks: Networks, tier: int = 1,
        name: str = "", tag: Tag | None = None,
    ) -> None:  # fmt: skip
        self.name = name or shown(url)
        self.tier = tier
        self.tag = tag
        self._session = session
        self._url = url
        self._networks = networks
        self._hub: dict[str, str] = {}

    async def probe(self) -> Found:
        """Ask for the first byte, to learn of the file. Raises BrokenError or RefusedError."""
        async with self._answer(0, 1) as response:
            tag = self._tag(response)
            if tag is None:
                raise RefusedError("it does not say how long the file is")
            self._check(tag)
            linked = self._hub.get(_HUB_SHA256, "") or tag.etag
            sha256 = linked.removeprefix("W/").strip('"').lower()
            return Found(tag, sha256 if is_hash(sha256) else "")

    @asynccontextmanager
    async def open(self, start: int, end: int) -> AsyncIterator[Stream]:
        """Open bytes [start, end), or the whole where ranges are ignored."""
        async with self._answer(start, end) as response:
            tag = self._tag(response)
            if tag is not None:
                self._check(tag)
            at = 0
            if response.status == 206:
                found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                at = int(found[1]) if found else -1
                if found is None or at != start or int(found[2]) >= end:
                    raise BrokenError(f"it sends other bytes than {start} to {end}")
            yield Stream(at, response.content.read, sequential=response.status == 200)

    def _check(self, tag: Tag) -> None:
        if self.tag is not None and (why := self.tag.differs(tag)):
            raise RefusedError(f"its file was changed meanwhile: {why}")
        if self.tag is None or not self.tag.origin:
            self.tag = tag

    def _tag(self, response: aiohttp.ClientResponse) -> Tag | None:
        headers = response.headers
        size = headers.get("Content-Length", "")
        if response.status == 206:
            size = headers.get("Content-Range", "").rpartition("/")[2]
        if not (size.isascii() and size.isdigit() and len(size) < 17):
            return None
        return Tag(int(size), headers.get("ETag", ""), headers.get("Last-Modified", ""))

    @asynccontextmanager
    async def _answer(self, start: int, end: int) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, follow where it leads, and give the answer if it has the bytes."""
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if self.tag is not None and self.tag.strong:
            headers["If-Range"] = self.tag.strong
        url = self._url
        try:
            for _ in range(MAX_REDIRECTS + 1):
                proxy = proxy_for(url)
                async with self._session.get(
                    url, headers=headers, allow_redirects=False,
                    proxy=proxy.url, proxy_headers=proxy.headers,
                ) as response:  # fmt: skip
                    if response.status in (301, 302, 303, 307, 308):
                        self._hub |= {
                            key: response.headers[key]
                            for key in (_HUB_SHA256, _HUB_SIZE)
                            if key in response.headers
                        }
                        target = urljoin(url, response.headers.get("Location", ""))
                        url = check_redirect(url, target, self._networks)
                        continue
                    self._refuse(response)
                    yield response
                    return
        except UsageError as error:
            raise RefusedError(error.message) from None
        except TimeoutError:
            raise BrokenError("it is silent") from None
        except aiohttp.ClientHttpProxyError as error:
            kind = BrokenError if error.status >= 500 else RefusedError
            raise kind(f"the proxy answered {error.status}: {one_line(error.message)}") from None
        except aiohttp.ClientConnectorError as error:
            raise BrokenError(_unreached(error)) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise BrokenError(one_line(str(error)) or type(error).__name__) from None
        raise RefusedError(f"it leads on more than {MAX_REDIRECTS} times")

    def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise for an answer that does not have the bytes."""
        status = response.status
        if status in (200, 206):
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise RefusedError("it sends the file packed")
            return
        answered = f"it answered {status}"
        if status >= 500 or status in _PASSING:
            after = response.headers.get("Retry-After", "")
            wait_s = float(after) if after.isascii() and after.isdigit() and len(after) < 9 else 0.0
            raise BrokenError(answered, wait_s)
        if status == 416 and self.tag is not None:
            answered += ": its file is shorter now"
        raise RefusedError(answered)


class FileOrigin:
    """A file on this node, to be copied."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.tier = 1
        self._path = path
        self.tag = self._look()

    def _look(self) -> Tag:
        """Return which file it is; raises UsageError where there is none."""
        try:
            status = self._path.stat()
            if not self._path.is_file():
                raise UsageError(f"{self._path} is no file")
        except OSError as error:
            raise UsageError(f"cannot read the model {self._path}: {error.strerror}") from None
        return Tag(status.st_size, f'"{status.st_ino}-{status.st_mtime_ns}"')

    @asynccontextmanager
    async def open(self, start: int, end: int) -> AsyncIterator[Stream]:
        """Open bytes [start, end)."""
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise RefusedError(f"it cannot be read: {error.strerror}") from None
        with file:
            if why := self.tag.differs(self._look()):
                raise RefusedError(f"the file was changed meanwhile: {why}")
            file.seek(start)
            yield Stream(start, lambda limit: asyncio.to_thread(_read, file, limit))


def _read(file: BinaryIO, limit: int) -> bytes:
    try:
        return file.read(limit)
    except OSError as error:
        raise BrokenError(f"reading failed: {error.strerror}") from None


def session(silence_s: float = SILENCE_S) -> aiohttp.ClientSession:
    """Return what HTTP origins ask with: bounded waits, bytes as they are, no cookies kept."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=silence_s, sock_read=silence_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "covey"},
    )


def _unreached(error: aiohttp.ClientConnectorError) -> str:
    """Say in a person's words why there is no connection."""
    place = endpoint.join(error.host, error.port or 0)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or "it is for another name"
        return f"the certificate of {place} is not trusted: {one_line(why)}"
    cause = error.os_error
    if isinstance(cause, ssl.SSLError):
        return f"{place} speaks no TLS: {one_line(cause.reason or str(cause))}"
    if isinstance(cause, socket.gaierror):
        return f"the name {error.host} leads nowhere: {cause.strerror}"
    return f"{place} is not reached: {os.strerror(cause.errno) if cause.errno else cause}"
