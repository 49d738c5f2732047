"""Stage files over the overlay: a head offers them by SHA-256, a node fetches and checks them.

The server binds to the overlay address only, so WireGuard has already said who asks. A transfer
resumes where it broke off, is verified as a whole, and ends after three failures with the
source's name: it never loops.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp
from aiohttp import web

from agent.errors import EnvironmentFault, PeerError

_log = logging.getLogger(__name__)

ATTEMPTS = 3
# A source that sends nothing for so long is given up for this attempt.
SILENCE_S = 15.0
_CHUNK_BYTES = 1 << 20


class BlobServer:
    """Serves the files that this node offers on its overlay address: GET /stage/SHA256."""

    def __init__(self) -> None:
        self._offered: dict[str, Path] = {}
        self._runner: web.AppRunner | None = None

    def offer(self, sha256: str, path: Path) -> None:
        """Let members fetch `path` under its hash."""
        self._offered[sha256] = path

    async def start(self, host: str, port: int, routes: Iterable[web.RouteDef] = ()) -> None:
        """Listen on `host`:`port`; raises EnvironmentFault when that is taken.

        `routes` are what else members get there.
        """
        app = web.Application()
        app.add_routes(routes)
        app.router.add_get("/stage/{sha256}", self._send)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            raise EnvironmentFault(
                f"TCP port {port} on the overlay address {host} cannot be used: {error.strerror}",
                hint="Set network.overlay_port to a free one.",
            ) from None

    async def stop(self) -> None:
        """Stop listening and end transfers."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _send(self, request: web.Request) -> web.StreamResponse:
        path = self._offered.get(request.match_info["sha256"])
        if path is None:
            raise web.HTTPNotFound(text="no such stage here\n")
        return web.FileResponse(path)


async def fetch(
    url: str, target: Path, size: int, sha256: str, progress: Callable[[int], None]
) -> None:
    """Fetch `url` to `target` (`size` bytes with that SHA-256), resuming a partial file.

    `progress` gets the bytes that are there. Raises PeerError after three failed attempts.
    """
    if target.exists() and target.stat().st_size == size:
        progress(size)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    reason = ""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    ) as session:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await _resume(session, url, partial, size, progress)
                if await asyncio.to_thread(_sha256, partial) == sha256:
                    partial.rename(target)
                    return
                partial.unlink()
                reason = "what came does not have the announced SHA-256"
            except (TimeoutError, aiohttp.ClientError, OSError, _RefusedError) as error:
                reason = str(error) or type(error).__name__
            _log.warning("fetch url=%s attempt=%d failed: %s", url, attempt, reason)
            await asyncio.sleep(0.2 * attempt)
    raise PeerError(
        f"{url} failed {ATTEMPTS} times, the last time because {reason}",
        hint="The part that came is kept and resumed at the next try.",
    )


class _RefusedError(Exception):
    """The source answered, but not with the bytes that were asked for."""


async def _resume(
    session: aiohttp.ClientSession,
    url: str,
    partial: Path,
    size: int,
    progress: Callable[[int], None],
) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have > size:
        partial.unlink()
        have = 0
    if have < size:
        async with session.get(url, headers={"Range": f"bytes={have}-"}) as response:
            if response.status == 200:
                have = 0  # the source ignores ranges: start over
            elif response.status != 206:
                raise _RefusedError(f"it answered {response.status}")
            with partial.open("ab" if have else "wb") as file:
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    have += len(chunk)
                    if have > size:
                        raise _RefusedError(f"it sends more than the announced {size} bytes")
                    file.write(chunk)
                    progress(have)
                file.flush()
                os.fsync(file.fileno())
    if have != size:
        raise _RefusedError(f"it ended after {have} of {size} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
