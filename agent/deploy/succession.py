"""Who may be the head of a deployment of stored models, in which order; for its owner and deputies.

| known of the model                              | may be head                                    |
|-------------------------------------------------|------------------------------------------------|
| nobody that is there has it                     | no node: it waits                              |
| nodes that have it fit as heads                 | those, by placement                            |
| others have it, and no node that has it can be  | any worker, which fetches what a head needs    |

A head that is lost is followed by the next of the order at once; then the order is made anew. The
owner may be lost with it, so its deputies have an order as well. Used by `deployments.py`. What it
costs: two questions to each member when a worker came or went, and every LOOK_INTERVAL_S, or more
often while there is no head.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.deploy.asked import asked
from agent.deploy.mesh import Mesh
from agent.deploy.messages import RingHere
from agent.deploy.planning import Own, Planning
from agent.deploy.ringkey import split
from agent.deploy.stored import Stored
from agent.deploy.wish import Wish
from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeId

_log = logging.getLogger(__name__)

# When a worker came or went it is looked at once; this is for who pulled or removed the model.
LOOK_INTERVAL_S = 120.0
# A ring without a head waits for nothing but a better order.
_HEADLESS_S = 10.0
# While nobody has the model, or something went wrong.
_AGAIN_S = 3.0
# An owner that fell silent has no deputies for a moment: what those know is for then.
_KEPT_S = 15.0
_POLL_S = 0.5

Owned = Callable[[], Iterable[tuple[Wish, str, str]]]
"""Returns the wishes that this node owns or is to own next, by ring: its key and id ("": none)."""


@dataclass
class _Order:
    """What is known of one ring: who may be head, and when and from what that was found."""

    wish: Wish
    key: str
    heads: tuple[NodeId, ...] = ()
    error: CoveyError | None = None
    seen: frozenset[NodeId] | None = None  # the workers that were there
    due: float = 0.0
    wanted_at: float = 0.0  # when this node last had to know
    refusing: frozenset[NodeId] = frozenset()  # who would not be head, for it is in another ring
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Succession:
    """The order of heads of each deployment of stored models that this node owns, now or next."""

    def __init__(
        self, mesh: Mesh, own: Callable[[], Awaitable[Own]], owned: Owned, stored: Stored,
        models: Path, changed: Callable[[], None],
        here: Callable[[str], Sequence[RingHere]] = lambda _: (),
    ) -> None:  # fmt: skip
        """`own` returns this node as plans take it, `models` is the store's folder.

        `here` returns the rings of a deployment that have part of this node.
        """
        self._mesh = mesh
        self._own = own
        self._owned = owned
        self._stored = stored
        self._models = models
        self._changed = changed
        self._here = here
        self._orders: dict[str, _Order] = {}
        self._news = asyncio.Event()

    def heads(self, wish: Wish, key: str) -> tuple[NodeId, ...] | None:
        """Return who may be a ring's new head, the best first; None: any node, of what all have."""
        if not wish.stored_ids or wish.source:
            return None
        order = self._orders.get(key)
        return order.heads if order is not None and order.wish == wish else ()

    def error(self, name: str) -> CoveyError | None:
        """Return why no node may be its head, as far as this node owns and knows it."""
        order = self._orders.get(name)
        return order.error if order is not None else None

    def look_soon(self) -> None:
        """Hear that wishes changed, or who is to run nothing."""
        for order in self._orders.values():
            order.due = 0.0
        self._news.set()

    def refused(self, key: str, nodes: frozenset[NodeId]) -> None:
        """Hear which nodes would not be a ring's head, since another ring has them.

        Its order was made before that began there. It is made anew though nobody may own the ring
        for a moment: who owned it had nobody left to be its head.
        """
        order = self._orders.get(key)
        if order is not None and not nodes.isdisjoint(order.heads):
            order.refusing, order.due = nodes, 0.0
            self._news.set()

    async def follow(self) -> None:
        """Keep the orders up to date; runs until it is cancelled."""
        try:
            while True:
                self._news.clear()
                self._begin()
                try:
                    async with asyncio.timeout(_POLL_S):
                        await self._news.wait()
                except TimeoutError:
                    pass
        finally:
            tasks = [order.task for order in self._orders.values() if order.task is not None]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    # ------------------------------------------------------------------ inside

    def _begin(self) -> None:
        """Begin to look where that is due; forget what this node does not own."""
        owned = {
            key: (wish, ring) for wish, key, ring in self._owned()
            if wish.stored_ids and not wish.source
        }  # fmt: skip
        for name in list(self._orders):
            order = self._orders[name]
            forgotten = name not in owned and time.monotonic() - order.wanted_at > _KEPT_S
            if forgotten or (name in owned and owned[name][0] != order.wish):
                if order.task is not None:
                    order.task.cancel()
                del self._orders[name]
        again = {
            name: (order.wish, "") for name, order in self._orders.items()
            if order.refusing and name not in owned
        }  # fmt: skip
        for name, (wish, ring) in (owned | again).items():
            order = self._orders.setdefault(name, _Order(wish, name))
            order.wanted_at = time.monotonic()
            busy = order.task is not None and not order.task.done()
            if not busy and (time.monotonic() >= order.due or self._workers() != order.seen):
                pause_s = LOOK_INTERVAL_S if ring else _HEADLESS_S
                order.seen, order.due = self._workers(), time.monotonic() + pause_s
                order.task = asyncio.create_task(self._look(order, ring), name=f"heads of {name}")

    def _workers(self) -> frozenset[NodeId]:
        live = {worker.node_id for worker in self._mesh.live_workers(time.time())}
        return frozenset(live - self._mesh.draining())

    async def _look(self, order: _Order, ring: str) -> None:
        before = order.heads, order.error
        try:
            order.heads, order.error = await self._found(order, ring), None
            if order.refusing.isdisjoint(order.heads):
                order.refusing = frozenset()
            # Other rings of its deployment have all nodes, or do not say yet which.
            if not order.heads or order.refusing:
                order.due = time.monotonic() + _AGAIN_S
        except CoveyError as error:
            order.due = time.monotonic() + _AGAIN_S
            if order.error is None or order.error.message != error.message:
                _log.warning("deployment name=%s has no head: %s", order.key, error.line())
                order.error = error
            order.heads = ()
        if (order.heads, order.error) != before:
            _log.info("deployment name=%s heads=%s", order.key,
                      " ".join(map(str, order.heads)))  # fmt: skip
            self._changed()

    async def _found(self, order: _Order, ring: str) -> tuple[NodeId, ...]:
        """Return who may be head; raises PeerError where nobody has a model, and other errors."""
        wish = order.wish
        own = await self._own()
        node = NodeId.parse(own.node.node)
        models = {wish.model_id: wish.model, wish.draft_id: wish.draft}
        others = await asyncio.gather(*map(self._stored.holders, wish.stored_ids))
        holders = []
        for model_id, found in zip(wish.stored_ids, others, strict=True):
            here = {node} if self._stored.path(model_id) is not None else frozenset()
            holders.append(found | here)
            if not holders[-1]:
                name = models[model_id]
                raise PeerError(
                    f"no member that is there has the model {name} ({model_id[:12]}…)",
                    hint="It goes on when one that has it is back; `agent pull` brings it again.",
                )
        wanted = await asked(wish, self._models, self._stored)
        planning = Planning(
            wish, own, self._mesh, lambda *_: None, fewer=True, ring=ring,
            number=split(order.key)[1],
        )  # fmt: skip
        rings = self._here(wish.name) if wish.rings > 1 else ()
        return tuple(await planning.succession(wanted.needs, wanted.context, holders, rings))
