"""The workers that are there, in the order in which they own a deployment. A core.

`live` comes from outside (presence); `Pulse` sees within a second or so who is silent. Those that
are draining come last, so that they own nothing while anyone else is there. Used by `owner.py`.
`now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Set

from agent.identity.keys import NodeId
from agent.ownership import rendezvous
from agent.ownership.lease import LEASE_S
from agent.ownership.pulse import Pulse

# So many next in rank hear an owner's beats: two nodes may die at once.
DEPUTIES = 2


class Ranking:
    """Who comes first, next, and who is silent, as this node sees it."""

    def __init__(self, own: NodeId, now: float) -> None:
        self._own = own
        self.pulse = Pulse()
        self.live: frozenset[NodeId] = frozenset()
        self.draining: frozenset[NodeId] = frozenset()
        self._present: frozenset[NodeId] = frozenset()
        self._stable_since = now
        self._orders: dict[str, tuple[NodeId, ...]] = {}

    def update(
        self, live: Collection[NodeId], now: float, draining: Collection[NodeId] = ()
    ) -> None:
        """Take in who is there, and which of them are draining; find out who fell silent."""
        self.pulse.lapse(now)
        # Who spoke just now is there, whatever presence knows yet.
        found = frozenset(live) | self.pulse.heard_within(LEASE_S, now)
        if found != self.live:
            for node in self.live - found:
                self.pulse.forget(node)
            self.live = found
            self._orders.clear()
        if frozenset(draining) != self.draining:
            self.draining = frozenset(draining)
            self._orders.clear()
            # Another one may be first now: nobody has told it yet what runs where.
            self._stable_since = now
        present = frozenset(node for node in found if not self.down(node, now))
        if present != self._present:
            self._present, self._stable_since = present, now

    def expect(self, nodes: Set[NodeId], now: float) -> None:
        """Say from whom something is expected each half second."""
        self.pulse.expect(nodes - {self._own}, now)

    def down(self, node: NodeId, now: float) -> bool:
        """Say whether a node counts as silent; this one never does."""
        return node != self._own and self.pulse.down(node, now)

    def usable(self, node: NodeId, now: float) -> bool:
        """Say whether a node is there and not silent."""
        return node in self.live and not self.down(node, now)

    def stable_for(self, now: float) -> float:
        """Return for how many seconds the same nodes have been there, in the same order."""
        return now - self._stable_since

    def order(self, name: str) -> tuple[NodeId, ...]:
        """Return all live workers in the order in which they own a deployment."""
        if name not in self._orders:
            order = rendezvous.order(name, self.live)
            self._orders[name] = tuple(sorted(order, key=lambda node: node in self.draining))
        return self._orders[name]

    def precedes(self, name: str, one: NodeId, other: NodeId) -> bool:
        """Say whether `one` comes before `other`, as far as this node knows who is draining."""
        if (one in self.draining) != (other in self.draining):
            return other in self.draining
        return rendezvous.above(name, one, other)

    def present(self, name: str, now: float) -> list[NodeId]:
        """Return those of `order` that are not silent."""
        return [node for node in self.order(name) if not self.down(node, now)]

    def deputies(self, name: str, now: float) -> list[NodeId]:
        """Return the next in rank after this node."""
        present = self.present(name, now)
        mine = present.index(self._own)
        return present[mine + 1 : mine + 1 + DEPUTIES]

    def above(self, name: str) -> tuple[NodeId, ...]:
        """Return the live workers that come before this node."""
        order = self.order(name)
        return order[: order.index(self._own)]

    def gone(self, node: NodeId) -> bool:
        """Say whether a node is lost for another reason than its silence: a hint, or presence."""
        return node not in self.live or self.pulse.hinted(node)

    def candidates(self, name: str, now: float) -> list[NodeId]:
        """Return who may come first: the first at all, and the first that is not silent."""
        return [*self.order(name)[:1], *self.present(name, now)[:1]]
