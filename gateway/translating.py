"""A replica's answer as its client's dialect says it, read like the answer itself; headers.

A shell, used by `upstream.py`, which passes the bytes on without knowing what they are.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp
from multidict import CIMultiDict

from gateway.dialects.translation import Garbled, Translation
from gateway.exchange import Answer

# A body in one piece is held until it is translated; the largest are lists of embeddings.
MAX_ANSWER_BYTES = 64 * 2**20
# Read to its end, an answer leaves a connection for the next request; [DONE] is all but the end.
_REST_S = 0.5
# These speak of a body in the client's dialect, or mean something in that dialect only.
_DROPS = (
    "Accept",
    "Accept-Encoding",
    "Anthropic-Beta",
    "Anthropic-Dangerous-Direct-Browser-Access",
    "Anthropic-Version",
    "Content-Encoding",
    "X-Api-Key",
)


class TranslatedContent:
    """What is left to read of an answer, in the dialect."""

    def __init__(self, answer: Answer, translation: Translation) -> None:
        self._answer = answer
        self._translation = translation
        self.streamed = translation.streamed and answer.status < 400
        self.type = translation.content_type if self.streamed else "application/json"
        self._begun = False
        self._ended = False

    def at_eof(self) -> bool:
        """Say whether the end has been returned, or all that is before it."""
        return self._ended

    async def readany(self) -> bytes:
        """Return the next bytes for the client, nothing at the end.

        Raises Garbled before it has returned any, and what reading raises.
        """
        if self._ended:
            return b""
        if not self.streamed:
            self._ended = True
            return await self._whole()
        if not self._begun and self._answer.content_type == "application/json":
            raise Garbled("does not stream its answer")
        while not self._translation.over and (piece := await self._answer.content.readany()):
            if said := self._translation.push(piece):
                self._begun = True
                return said
        self._ended = True
        if self._translation.over:
            await self._skip_rest()
        elif not self._begun:
            raise Garbled("ended its answer before it began")
        return self._translation.close()

    async def _whole(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await self._answer.content.readany():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise Garbled(f"answers with more than {MAX_ANSWER_BYTES} bytes")
            pieces.append(piece)
        body = b"".join(pieces)
        if self._answer.status >= 400:
            return self._translation.error(self._answer.status, body)
        return self._translation.whole(body)

    async def _skip_rest(self) -> None:
        with suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(_REST_S):
                while await self._answer.content.readany():
                    pass


def translate_headers(headers: CIMultiDict[str]) -> None:
    """Make a client's `headers` those of OpenAI's request: JSON, and a key where OpenAI has it."""
    key = headers.get("X-Api-Key")
    for name in _DROPS:
        headers.popall(name, None)
    headers["Content-Type"] = "application/json"
    if key:
        headers.setdefault("Authorization", f"Bearer {key}")
