"""Write an answer to its client, who may read slowly, not at all, or have left.

A shell, used by `upstream.py`.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from gateway.cut import cut
from gateway.dialects.translation import Translation
from gateway.errors import ApiError

# A client that reads nothing for so long is given up, and its replica is free again.
WRITE_TIMEOUT_S = 60.0
# With so little waiting to be sent, asyncio has not told anybody to wait (its low-water mark).
_UNWATCHED_BYTES = 16 * 2**10


async def write(
    request: web.Request, response: web.StreamResponse, chunk: bytes, *, last: bool
) -> bool:
    """Write a chunk, and the end behind the `last`; False if the client has left or reads not."""
    try:
        if _takes(request.transport, len(chunk)):
            await _write_now(request, response, chunk, last)
        else:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await _write_now(request, response, chunk, last)
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
        return False
    return True


def _takes(transport: asyncio.Transport | None, count: int) -> bool:
    """Say whether so many bytes can be written without a wait, which would have to be bounded."""
    return transport is not None and transport.get_write_buffer_size() + count <= _UNWATCHED_BYTES


async def _write_now(
    request: web.Request, response: web.StreamResponse, chunk: bytes, last: bool
) -> None:
    if not response.prepared:
        await response.prepare(request)
    await (response.write_eof(chunk) if last else response.write(chunk))


async def break_off(
    request: web.Request, response: web.StreamResponse, error: ApiError,
    translation: Translation | None, *, between_events: bool,
) -> None:  # fmt: skip
    """End an answer that `error` broke so that nobody takes it for a whole one.

    `between_events`: what was written of it ends with a whole event, if it is a stream of them.
    """
    streams = response.content_type == "text/event-stream" and response.content_length is None
    if translation is not None:  # whose bytes are whole events always
        said = translation.broken(error.message, error.kind)
        await write(request, response, said, last=True)
    elif streams and between_events:
        event = b"data: %s\n\n" % msgspec.json.encode(error.body())
        await write(request, response, event, last=True)
    else:
        cut(request, framed=response.content_length is not None)
