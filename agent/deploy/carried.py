"""A head whose ring broke, carried over to the ring's next epoch with the answers that wait in it.

Made by `build.py` when an epoch ends, given to the next one by `rings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.engine.supervisor import Engine
from agent.identity.keys import NodeId

# A node that lost two stages within this is left out of the next plans, if they can be made so.
LOSSES_S = 60.0


@dataclass(frozen=True)
class Carried:
    """The head's process, and the nodes that may still have stages of its former epochs.

    `lost` is the node whose stage broke the ring, as far as the head knows.
    """

    engine: Engine
    asked: frozenset[NodeId]
    lost: NodeId | None = None


@dataclass
class Losses:
    """When each node lost a stage of one ring (monotonic seconds), the last two times."""

    _found: dict[NodeId, tuple[float, ...]] = field(default_factory=dict)

    def add(self, node: NodeId, now: float) -> None:
        """Note that a node's stage was lost."""
        self._found[node] = (*self._found.get(node, ()), now)[-2:]

    def since(self, moment: float) -> bool:
        """Say whether any node lost a stage after a moment."""
        return any(at > moment for times in self._found.values() for at in times)

    def repeated(self, now: float, came: Callable[[NodeId], float]) -> frozenset[NodeId]:
        """Return the nodes that lost two of late, and are not there anew since; `came` says when.

        One loss is no reason: a node whose engine was killed has its part on disk, and is the
        quickest to have it again.
        """
        return frozenset(
            node
            for node, times in self._found.items()
            if len(times) == 2 and now - times[0] < LOSSES_S and came(node) < times[1]
        )


def lost_node(nodes: Iterable[NodeId], stage: int) -> NodeId | None:
    """Return whose stage it is, of a ring's nodes in order; None for the head, or for none."""
    for index, node in enumerate(nodes):
        if index == stage and index:
            return node
    return None
