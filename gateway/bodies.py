"""Read what replicas answer: whole where it is needed so, and never half of it for the whole.

A shell, used by `upstream.py`, `watch.py` and `otlp.py`.
"""

from __future__ import annotations

from typing import Protocol

import aiohttp

from gateway.exchange import Answer


class Content(Protocol):
    """What is left to read of an answer."""

    async def readany(self) -> bytes:
        """Return the next bytes, nothing at the end; raises aiohttp.ClientError."""

    def at_eof(self) -> bool:
        """Say whether it is known that nothing follows."""


class _UntilClosed:
    """The content of an answer that only its connection's end ends.

    To aiohttp a reset is such an end too.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def readany(self) -> bytes:
        piece = await self._answer.content.readany()
        if not piece and self._answer.was_reset:
            raise aiohttp.ClientPayloadError("the connection was reset")
        return piece

    def at_eof(self) -> bool:
        return False  # how it ended is told with the end


def content_of(answer: Answer) -> Content:
    """Return what is left to read of an answer."""
    framed = answer.content_length is not None or "Transfer-Encoding" in answer.headers
    return answer.content if framed else _UntilClosed(answer)


async def read_most(content: Content, most: int) -> bytes:
    """Return the body, however many pieces it comes in; more than `most` bytes if it goes on.

    StreamReader.read(n) returns what is there, which may be the first piece of many.
    """
    pieces: list[bytes] = []
    size = 0
    while size <= most and (piece := await content.readany()):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
