"""How many requests a head is answering, asked of its HTTP server; for a head that is to end.

Used by `rings.py`.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import msgspec

_log = logging.getLogger(__name__)

_ASK_TIMEOUT_S = 5.0
_POLL_S = 0.5
# A request may just be coming in, or its last bytes be going out.
_IDLE_POLLS = 2
# A head that does not say how much it does (it is too busy, or has ended) is asked again so often.
_SILENT_POLLS = 6


class _Health(msgspec.Struct, frozen=True):
    running: int | None = None


async def running(url: str) -> int | None:
    """Return how many requests the head at `url` is answering; None if it does not say."""
    try:
        timeout = aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/health") as answer,
        ):
            return msgspec.json.decode(await answer.read(), type=_Health).running
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        _log.info("the head at %s does not say what it does: %r", url, error)
        return None


async def until_idle(url: str, within_s: float) -> bool:
    """Wait until the head at `url` answers nothing; False if it still does after `within_s`."""
    idle = silent = 0
    try:
        async with asyncio.timeout(within_s):
            while idle < _IDLE_POLLS and silent < _SILENT_POLLS:
                count = await running(url)
                idle = idle + 1 if count == 0 else 0
                silent = silent + 1 if count is None else 0
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return False
    return True
