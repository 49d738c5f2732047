"""Keep a connection to each node that is wanted, over the best address that works; drop spare ones.

trio, imported in the control plane's thread only. Who is wanted, and at which addresses, is the
daemon's decision (at least three links a node, over the overlay once that is up); `links.py` dials.

A better address is tried beside the connection there is, after UPGRADE_FIRST_S and then ever less
often, or at once when the addresses change. If it answers, the new connection takes over and the
old one is closed when nothing goes on in it. A worse one never takes over, so nothing flaps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from random import Random

import trio

from agent.control.links import Link, Links
from agent.control.redial import Backoff, rank
from agent.control.troubles import Trouble
from agent.errors import PeerError
from agent.identity.keys import NodeId

log = logging.getLogger(__name__)

# Dialling all addresses of a peer: they are tried side by side.
DIAL_LIMIT_S = 10.0
UPGRADE_FIRST_S = 10.0
UPGRADE_LIMIT_S = 5.0
UPGRADE_MAX_S = 300.0
# A connection that another one has replaced, or that is not wanted any more, is closed once it was
# idle for this long, and in the end although it is not: a handler may take 60 s.
RETIRE_IDLE_S = 1.0
RETIRE_LIMIT_S = 75.0
# More connections to one peer than this help nobody.
MAX_PER_PEER = 4
# A connection that we dialled for a request and nobody wants any more is closed after this. To dial
# again takes some 10 ms; to keep it costs gossip on both sides.
IDLE_LIMIT_S = 20.0
SWEEP_S = 10.0
MAX_ADDRESSES = 16


class _Wanted:
    """One node that is kept, and its addresses, best first."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self.scope = trio.CancelScope()
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Keeper:
    """Keeps what is wanted; one task for each node that is."""

    def __init__(self, links: Links, own: NodeId, chance: Random) -> None:
        self._links = links
        self._own = own
        self._chance = chance
        self._wanted: dict[NodeId, _Wanted] = {}
        self._retiring: set[Link] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, nursery: trio.Nursery) -> None:
        """Work in `nursery` until cancelled."""
        self._nursery = nursery
        for node, wanted in self._wanted.items():
            nursery.start_soon(self._keep, node, wanted)
        while True:
            await trio.sleep(SWEEP_S)
            self._sweep()

    def keep(self, wanted: Mapping[NodeId, Sequence[str]]) -> None:
        """Replace who is wanted."""
        for node in self._wanted.keys() - wanted.keys():
            self._wanted.pop(node).scope.cancel()
            for link in self._links.to(node):
                if link.outbound:
                    self._retire(link, lambda link: link.node not in self._wanted)
        for node, addresses in wanted.items():
            best = tuple(addresses)[:MAX_ADDRESSES]
            known = self._wanted.get(node)
            if known is None and node != self._own:
                known = self._wanted[node] = _Wanted(best)
                if self._nursery is not None:
                    self._nursery.start_soon(self._keep, node, known)
            elif known is not None and known.addresses != best:
                known.addresses = best
                known.wake()

    def links_changed(self) -> None:
        """Look at what there is now: redial what ended, retire what was replaced."""
        for node, wanted in self._wanted.items():
            if not self._links.to(node):
                wanted.wake()
        for node in {link.node for link in self._links.all()}:
            self._settle(node)

    # One node that is wanted.

    async def _keep(self, node: NodeId, wanted: _Wanted) -> None:
        backoff = Backoff(self._chance)
        with wanted.scope:
            while True:
                link = self._links.kept(node) or await self._dial(node, wanted)
                if link is None:
                    pause_s = backoff.failed()
                else:
                    began = trio.current_time()
                    await self._stay(node, wanted)
                    pause_s = backoff.ended(trio.current_time() - began)
                addresses = wanted.addresses
                with trio.move_on_after(pause_s):
                    while wanted.addresses == addresses:
                        await wanted.changed.wait()
                    backoff.reset()

    async def _dial(self, node: NodeId, wanted: _Wanted) -> Link | None:
        if not wanted.addresses:
            return None
        with trio.move_on_after(DIAL_LIMIT_S):
            try:
                return await self._links.connect(node, wanted.addresses, {})
            except PeerError as error:
                log.debug("cannot keep a link, node=%s: %s", node, error.message)
        return None

    async def _stay(self, node: NodeId, wanted: _Wanted) -> None:
        """Return when there is no link to the node any more; look for a better one until then."""
        pause_s = UPGRADE_FIRST_S
        while (link := self._links.kept(node)) is not None:
            addresses = wanted.addresses
            with trio.move_on_after(pause_s * self._chance.uniform(0.8, 1.2)) as waiting:
                await wanted.changed.wait()
            link = self._links.kept(node)
            if link is None:
                return
            if wanted.addresses != addresses:
                pause_s = UPGRADE_FIRST_S
            elif not waiting.cancelled_caught:
                continue
            better = wanted.addresses[: rank(link.dialled or link.tcp.address, wanted.addresses)]
            if better:
                await self._upgrade(node, better)
            pause_s = min(UPGRADE_MAX_S, pause_s * 2)

    async def _upgrade(self, node: NodeId, better: Sequence[str]) -> None:
        troubles: dict[str, Trouble] = {}
        with trio.move_on_after(UPGRADE_LIMIT_S):
            try:
                link = await self._links.dial(node, better, troubles)
            except PeerError as error:
                log.debug("no better link, node=%s: %s", node, error.message)
            else:
                log.info("link moved, node=%s, address=%s", node, link.dialled)

    # Several links to one node, and links that nobody wants.

    def _settle(self, node: NodeId) -> None:
        links = sorted(self._links.to(node), key=lambda each: each.opened_at)
        stays = self._links.kept(node)
        spare = [each for each in links if each is not stays]
        for link in spare[: max(0, len(links) - MAX_PER_PEER)]:
            self._links.drop(link)
        if self._own < node:
            for link in spare:
                self._retire(link, lambda link: self._links.kept(link.node) is not link)

    def _retire(self, link: Link, spare: Callable[[Link], bool]) -> None:
        """Close a link when nothing goes on in it, unless it is needed again meanwhile."""
        if self._nursery is not None and link.alive and link not in self._retiring:
            self._retiring.add(link)
            self._nursery.start_soon(self._close_when_idle, link, spare)

    async def _close_when_idle(self, link: Link, spare: Callable[[Link], bool]) -> None:
        try:
            link.busy_at = trio.current_time()
            end = link.busy_at + RETIRE_LIMIT_S
            while link.alive and spare(link):
                now = trio.current_time()
                if (not link.busy and now - link.busy_at >= RETIRE_IDLE_S) or now > end:
                    self._links.give_up(link)
                    return
                await trio.sleep(RETIRE_IDLE_S / 2)
        finally:
            self._retiring.discard(link)

    def _sweep(self) -> None:
        for link in self._links.all():
            unwanted = link.outbound and link.node not in self._wanted
            if unwanted and not link.busy and trio.current_time() - link.busy_at > IDLE_LIMIT_S:
                self._links.give_up(link)
