"""Where an update comes from: a file, an HTTP server, a member of the mesh. A shell.

All of them yield the update's bytes in order, from a start on. A transfer that breaks goes on where
it was, three times without progress at most. Nothing is trusted: who takes the bytes verifies them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from agent.errors import PeerError, UsageError
from agent.models.fetch import SLOW_AFTER_S, SLOW_BYTES_S
from agent.models.origins import BrokenError, HttpOrigin, RefusedError, session
from agent.models.transfer import ATTEMPTS, BACKOFF_S

_CHUNK_BYTES = 1 << 18
# What has to come before a break does not count: so the tries are bounded by the update's size.
_PROGRESS_BYTES = 1 << 22
_LONGEST_REST_S = 10.0
_STAYS = "The version that runs stays."


def is_url(text: str) -> bool:
    """Say whether a source is a URL, and no path."""
    return text.startswith(("http://", "https://"))


async def file(path: Path, start: int = 0) -> AsyncGenerator[bytes, None]:
    """Yield a file's bytes; raises UsageError for one that cannot be read."""
    try:
        with path.open("rb") as opened:
            opened.seek(start)
            while chunk := await asyncio.to_thread(opened.read, _CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise UsageError(
            f"the update {path} cannot be read: {error.strerror}",
            hint="Name the file that `image/sign` made, or its URL.",
        ) from None


async def url(
    address: str, name: str = "", start: int = 0, backoff_s: float = BACKOFF_S
) -> AsyncGenerator[bytes, None]:
    """Yield what lies at an http or https URL from a byte on; `name` is who has it, for people.

    Raises PeerError that says why it was given up.
    """
    async with session() as asking:
        origin = HttpOrigin(asking, address, networks=(), name=name)
        async for chunk in _through(origin, start, backoff_s):
            yield chunk


async def _through(origin: HttpOrigin, start: int, backoff_s: float) -> AsyncIterator[bytes]:
    at, size, failures, counted_at = start, 0, 0, start
    while True:
        try:
            if not size:
                size = (await origin.probe()).tag.size
            async for chunk in _from(origin, at, size):
                at += len(chunk)
                yield chunk
            return
        except RefusedError as error:
            raise PeerError(
                f"{origin.name} does not give the update: {error}", hint=_STAYS
            ) from None
        except BrokenError as error:
            failures = 1 if at - counted_at >= _PROGRESS_BYTES else failures + 1
            counted_at = at
            if failures >= ATTEMPTS:
                raise PeerError(
                    f"{origin.name} failed {failures} times at byte {at}, the last time: {error}",
                    hint=f"{_STAYS} Update again when the source is better; what came is kept.",
                ) from None
            await asyncio.sleep(max(backoff_s * failures, min(error.rest_s, _LONGEST_REST_S)))


async def _from(origin: HttpOrigin, start: int, size: int) -> AsyncIterator[bytes]:
    """Yield bytes [start, size). Raises BrokenError or RefusedError."""
    if start == size:
        return
    async with origin.open(start, size) as stream:
        began, came = time.monotonic(), 0
        while stream.at < size:
            before = stream.at
            chunk = await stream.chunk(size - before)
            came += len(chunk)
            took_s = time.monotonic() - began
            if took_s > SLOW_AFTER_S and came < SLOW_BYTES_S * took_s:
                raise BrokenError(f"it sends less than {SLOW_BYTES_S} bytes/s")
            # A server that cannot begin in between gives again what is there.
            if stream.at > start:
                yield chunk[max(0, start - before) :]
