"""Restarts this appliance when its turn has come: asks those that share a ring with it. A shell.

The rule is in `rings.py`. Where no agent runs here, no ring can have a part here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal

import aiohttp

from agent import endpoint
from agent.appliance import door, rings
from agent.appliance.rings import Mate, Standing, Turn, mates, why_wait
from agent.errors import NotRunning, PeerError, StateError

if TYPE_CHECKING:
    from agent.client import AgentClient

Tell = Callable[[str], None]
"""Hears why it waits, whenever that changes."""

_PAUSE_S = 10.0
# While it says that it is leaving: the others wait for it.
_SHORT_PAUSE_S = 1.0
# A trial takes half an hour at most, three times.
LONGEST_S = 2 * 3600.0
_ASK_S = 10.0
_MAX_ANSWER_BYTES = 4096


async def wait(client: AgentClient, port: int, tell: Tell, longest_s: float = LONGEST_S) -> None:
    """Return once this node may ask for its turn, before there is something to restart into.

    `port` is network.overlay_port. Raises StateError with the reason after `longest_s`.
    """
    patience = _Patience(tell, longest_s)
    while why := await look(client, port):
        await patience.rest(why, _PAUSE_S)


async def restart(
    client: AgentClient, port: int, do: Literal["back", "restart"], tell: Tell,
    longest_s: float = LONGEST_S,
) -> dict[str, Any]:  # fmt: skip
    """Have the updater restart this machine once its turn has come; return its answer.

    Raises StateError with the reason after `longest_s`, and what `door.ask` raises.
    """
    patience = _Patience(tell, longest_s)
    turn = Turn()
    async with AsyncExitStack() as said:
        while True:
            leaving = turn.leaving
            why = turn.look(*await _look(client, port))
            if why is None:
                return await door.ask(do, restart=True)
            if turn.leaving and not leaving:
                await said.enter_async_context(door.leaving())
            elif leaving and not turn.leaving:
                await said.aclose()
            if why:
                await patience.rest(why, _SHORT_PAUSE_S if turn.leaving else _PAUSE_S)


class _Patience:
    """How long one waits, and what is told meanwhile."""

    def __init__(self, tell: Tell, longest_s: float) -> None:
        self._tell = tell
        self._until = time.monotonic() + longest_s
        self._told = ""

    async def rest(self, why: str, pause_s: float) -> None:
        """Wait a little; raises StateError with the reason when that was long enough."""
        if time.monotonic() >= self._until:
            raise StateError(
                f"this machine was not restarted: {why}",
                hint="Update it when that is over, or with --now; then rings may break.",
            )
        if why != self._told:
            self._told = why
            self._tell(why)
        await asyncio.sleep(pause_s)


async def look(client: AgentClient, port: int) -> str:
    """Return why this node may not restart now, "" when it may ask for its turn."""
    return why_wait(*await _look(client, port))


async def _look(client: AgentClient, port: int) -> tuple[str, list[Mate]]:
    """Return this node's id, and how those that share a ring with it stand."""
    try:
        own = (await client.get("/v1/status"))["node"]
        shared = mates(own, (await client.get("/v1/deployments"))["deployments"])
        if not shared:
            return own, []
        members = {peer["node"]: peer for peer in (await client.get("/v1/peers"))["peers"]}
    except NotRunning:
        return "", []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as session:
        others = []
        for node, names in shared.items():
            member = members.get(node)
            standing: Standing = "away"
            if member is not None:
                standing = await _standing(session, endpoint.join(member["ipv6"], port))
            others.append(Mate(node, member["name"] if member else node, names, standing))
    return own, others


async def address_of(client: AgentClient, name: str, port: int) -> str:
    """Return the URL of a member's update; raises PeerError where nobody is called so."""
    peers = (await client.get("/v1/peers"))["peers"]
    found = next((peer for peer in peers if name in (peer["name"], peer["node"])), None)
    if found is None:
        raise PeerError(
            f"no other member is called {name}", hint="`agent peers` shows who there is."
        )
    return f"http://{endpoint.join(found['ipv6'], port)}/appliance/update"


async def _standing(session: aiohttp.ClientSession, host: str) -> Standing:
    """Ask a member's agent; a machine that is no appliance has no trials."""
    try:
        async with session.get(f"http://{host}/appliance", allow_redirects=False) as response:
            if response.status == 404:
                return "good"
            return rings.standing(await response.content.read(_MAX_ANSWER_BYTES))
    except (TimeoutError, aiohttp.ClientError, OSError):
        return "away"
