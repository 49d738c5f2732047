"""What a head's HTTP server says: how many requests it is answering, and whether it still lives.

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
# A head answers from memory, in a thread of its own. On a machine on which twenty processes wanted
# each CPU it took seconds; one that says nothing so often in a row stands still.
DEAF_ASKS, DEAF_ASK_S = 3, 20.0


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


async def until_deaf(url: str) -> None:
    """Wait until the head at `url` has answered nothing for DEAF_ASKS times DEAF_ASK_S.

    One that cannot be reached at all does not count: this node's overlay may be gone, not the head.
    """
    silent = 0
    while silent < DEAF_ASKS:
        silent = silent + 1 if await _is_deaf(url) else 0
        if not silent:
            await asyncio.sleep(DEAF_ASK_S)


async def _is_deaf(url: str) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=DEAF_ASK_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/health") as answer,
        ):
            await answer.read()
    except TimeoutError:
        return True
    except (aiohttp.ClientError, OSError) as error:
        _log.info("the head at %s cannot be asked whether it lives: %r", url, error)
    return False
