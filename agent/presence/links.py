"""To whom a node keeps links: at least three, so that gossip reaches everyone. A core.

Every node links to its successor among the living, on the circle of all node ids' hashes, and to
the two others that it weighs highest. The successors alone connect everyone; the others, which are
chosen as if at random, make the ways short (some log N) and survive many deaths at once. Whoever
chose this node links to it, so most have about six. When a node dies or appears, only its
neighbours change theirs.

A member to whom no link comes about is passed over for a while, for the next in line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from agent.identity.keys import NodeId

LINKS = 3
# A link to a live member takes 10 ms on a LAN and some seconds over slow networks.
PATIENCE_S = 10.0
PASSED_OVER_S = 60.0


class LinkChooser:
    """Chooses this node's links. `now` is monotonic seconds."""

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._wanted_since: dict[NodeId, float] = {}
        self._passed_over: dict[NodeId, float] = {}

    def choose(
        self, alive: Iterable[NodeId], linked: frozenset[NodeId], now: float
    ) -> tuple[NodeId, ...]:
        """Return whom to keep links to; `linked` are those with a link now, whoever made it."""
        others = {node for node in alive if node != self._own}
        for node, since in list(self._wanted_since.items()):
            if node not in others:
                del self._wanted_since[node]
            elif node in linked:
                self._wanted_since[node] = now
            elif now - since > PATIENCE_S:
                del self._wanted_since[node]
                self._passed_over[node] = now + PASSED_OVER_S
        for node, until in list(self._passed_over.items()):
            if until <= now or node in linked or node not in others:
                del self._passed_over[node]
        # With too few others left, those passed over are tried again: nothing is lost by it. Who
        # slept through a change of the network key gets nobody's link before it has the new key.
        candidates = others - self._passed_over.keys()
        again = sorted(others - candidates, key=lambda node: self._passed_over[node])
        candidates.update(again[: max(0, LINKS - len(candidates))])
        chosen = choice(self._own, candidates)
        self._wanted_since = {node: self._wanted_since.get(node, now) for node in chosen}
        return chosen


def choice(own: NodeId, others: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """Return the links of `own` among `others`: its successor first, then by weight."""
    place = _hash(own.ed25519)
    ordered = sorted(others, key=lambda node: _hash(node.ed25519))
    if not ordered:
        return ()
    successor = next((n for n in ordered if _hash(n.ed25519) > place), ordered[0])
    rest = sorted(
        (node for node in ordered if node != successor),
        key=lambda node: _hash(own.ed25519 + node.ed25519),
        reverse=True,
    )
    return (successor, *rest[: LINKS - 1])


@lru_cache(maxsize=65536)
def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
