"""A hard NAT's birthday attempts: sockets that wait to be met, and WireGuard's way by such a port.

A shell. The path engine says when an attempt begins and ends and which way is to be opened;
`probing/birthday.py` holds the sockets, `probing/snat.py` the rules. A port that a rule uses stays
ours until the rule is gone. Used by `service.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from agent.errors import CoveyError
from agent.identity.keys import NodeId
from agent.paths.messages import Place, Probe
from agent.probing.birthday import Birthday, Hit
from agent.probing.snat import BirthdayPath, BirthdayRules

_log = logging.getLogger(__name__)

# The engine ends an attempt sooner; this is in case it forgets one.
_LIMIT_S = 60.0
_STOP_S = 2.0

Unseal = Callable[[NodeId, bytes], Probe | None]
"""Returns what a datagram says, if this peer sealed it for us."""
Met = Callable[[NodeId, Place, Probe, int], None]
"""Is told that a peer met the socket on a local port, from which place, and with what."""


class Birthdays:
    """All attempts of one node, at most one for each peer."""

    def __init__(self, rules: BirthdayRules, unseal: Unseal, met: Met) -> None:
        self._rules = rules
        self._unseal = unseal
        self._met = met
        self._attempts: dict[NodeId, asyncio.Task[None]] = {}
        self._hits: dict[NodeId, Hit] = {}
        self._ways: dict[Place, Hit] = {}
        self._turn = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Remove what a killed agent left. Raises EnvironmentFault."""
        await self._rules.start()

    async def stop(self) -> None:
        """End all attempts and ways."""
        for peer in list(self._attempts):
            self.end(peer)
        if self._changes:
            await asyncio.wait(self._changes, timeout=_STOP_S)
        await self._rules.stop()
        for hit in self._ways.values():
            hit.close()
        self._ways.clear()

    def begin(self, peer: NodeId, place: Place, count: int, opening: Callable[[], bytes]) -> None:
        """Open sockets towards a peer's place; `opening` makes what each round sends."""
        self.end(peer)
        attempt = asyncio.get_running_loop().create_task(
            self._attempt(peer, place, count, opening), name="birthday"
        )
        self._attempts[peer] = attempt

    def end(self, peer: NodeId) -> None:
        """End the attempt with a peer; a way that was opened stays."""
        attempt = self._attempts.pop(peer, None)
        if attempt is not None:
            attempt.cancel()
        hit = self._hits.pop(peer, None)
        if hit is not None and hit not in self._ways.values():
            hit.close()

    def send(self, peer: NodeId, local_port: int, datagram: bytes) -> None:
        """Answer the peer from the socket that it met."""
        hit = self._hits.get(peer)
        if hit is not None and hit.local_port == local_port:
            hit.send(datagram)

    def open_way(self, peer: NodeId, place: Place, local_port: int) -> None:
        """Have WireGuard's packets to the place leave from the port that the peer met."""
        hit = self._hits.get(peer)
        if hit is None or hit.local_port != local_port:
            return
        self._ways[place] = hit
        path = BirthdayPath(place, hit.local_address, local_port)
        self._change(self._rules.add(path), "opened")

    def close_way(self, place: Place) -> None:
        """Undo that."""
        hit = self._ways.pop(place, None)
        if hit is not None:
            self._change(self._rules.remove(place), "closed", then=hit)

    async def _attempt(
        self, peer: NodeId, place: Place, count: int, opening: Callable[[], bytes]
    ) -> None:
        said: dict[bytes, Probe] = {}

        def valid(_: Place, datagram: bytes) -> bool:
            probe = self._unseal(peer, datagram)
            if probe is not None:
                said[datagram] = probe
            return probe is not None

        try:
            sockets = Birthday(place, valid, count=count)
            sockets.open()
            hit = await sockets.hit(opening, _LIMIT_S)
        except CoveyError as error:
            _log.warning("no birthday attempt node=%s: %s", peer, error.line())
            return
        if hit is not None:
            _log.info("birthday hit node=%s place=%s local_port=%d", peer, hit.place,
                      hit.local_port)  # fmt: skip
            self._hits[peer] = hit
            self._met(peer, hit.place, said[hit.payload], hit.local_port)

    def _change(
        self, change: Coroutine[Any, Any, None], what: str, then: Hit | None = None
    ) -> None:
        """Change the rules, one change after another in the order in which they were asked for."""

        async def apply() -> None:
            async with self._turn:
                try:
                    await change
                except (CoveyError, ValueError) as error:
                    _log.warning("birthday path not %s: %s", what, error)
                if then is not None:
                    then.close()

        task = asyncio.get_running_loop().create_task(apply())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
