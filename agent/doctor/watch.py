"""The same checks from within the agent, now and then; faults stand among its health items.

So `agent status`, gossip and events tell of it without anybody asking. A shell; started by the
daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from agent.config import Config
from agent.doctor import look
from agent.doctor.checks import CODES, examine
from agent.doctor.facts import Facts, agent_of
from agent.health import Health

_log = logging.getLogger(__name__)

# The first look waits until a node that starts has found the others. One takes some 50 ms of the
# CPU, mostly for the interfaces and `nft`.
FIRST_S = 90.0
INTERVAL_S = 180.0

Ask = Callable[[], Awaitable[dict[str, Any]]]


class Watch:
    """Looks again and again, and keeps health items with the codes of the checks."""

    def __init__(self, settings: Config, status: Ask, peers: Ask, health: Health) -> None:
        """`status` and `peers` answer as the local API does."""
        self._settings = settings
        self._status = status
        self._peers = peers
        self._health = health

    async def run(self, first_s: float = FIRST_S, interval_s: float = INTERVAL_S) -> None:
        """Look until cancelled; what goes wrong with that is logged, and tried again."""
        await asyncio.sleep(first_s)
        while True:
            try:
                agent = agent_of(await self._status(), await self._peers())
                tell(await asyncio.to_thread(look.facts, self._settings, agent), self._health)
            except Exception:
                _log.exception("looking at this node failed")
            await asyncio.sleep(interval_s)


def tell(facts: Facts, health: Health) -> None:
    """Make the faults that follow from `facts` the health items with the checks' codes."""
    found = {item.code: item for item in examine(facts) if item.fault}
    for code in CODES - found.keys():
        health.clear(code)
    for item in found.values():
        health.set(item)
