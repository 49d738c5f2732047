"""Waits until this appliance may restart: asks the nodes that share a ring with it. A shell.

The rule is in `rings.py`. Where no agent runs here, no ring can have a part here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp

from agent import endpoint
from agent.appliance import rings
from agent.appliance.rings import Mate, Standing, mates, why_wait
from agent.errors import NotRunning, PeerError, StateError

if TYPE_CHECKING:
    from agent.client import AgentClient

_PAUSE_S = 10.0
# A trial takes half an hour at most, three times.
LONGEST_S = 2 * 3600.0
_ASK_S = 10.0
_MAX_ANSWER_BYTES = 4096


async def wait(
    client: AgentClient, port: int, tell: Callable[[str], None], longest_s: float = LONGEST_S
) -> None:
    """Return once this node may restart; `tell` hears why it waits, whenever that changes.

    `port` is network.overlay_port. Raises StateError with the reason after `longest_s`.
    """
    told = ""
    until = time.monotonic() + longest_s
    while why := await look(client, port):
        if time.monotonic() >= until:
            raise StateError(
                f"this machine was not restarted: {why}",
                hint="Update it when that is over, or with --now; then rings may break.",
            )
        if why != told:
            told = why
            tell(why)
        await asyncio.sleep(_PAUSE_S)


async def look(client: AgentClient, port: int) -> str:
    """Return why this node may not restart now, "" when it may."""
    try:
        own = (await client.get("/v1/status"))["node"]
        shared = mates(own, (await client.get("/v1/deployments"))["deployments"])
        if not shared:
            return ""
        members = {peer["node"]: peer for peer in (await client.get("/v1/peers"))["peers"]}
    except NotRunning:
        return ""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as session:
        others = []
        for node, names in shared.items():
            member = members.get(node)
            standing: Standing = "away"
            if member is not None:
                standing = await _standing(session, endpoint.join(member["ipv6"], port))
            others.append(Mate(node, member["name"] if member else node, names, standing))
    return why_wait(own, others)


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
