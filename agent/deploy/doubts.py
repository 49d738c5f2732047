"""Which members may have died a moment ago: whoever plans hardly waits for their answers. A core.

A doubt is a hint: the last link to a member went, or presence suspects it. Links are closed for
want of use as well, so a doubt that nothing confirms is over soon; who is really gone is no worker
that is there any more, by presence.
"""

from __future__ import annotations

from agent.identity.keys import NodeId

# Presence knows by then; a head's successor is chosen and plans within it.
DOUBT_S = 10.0


class Doubts:
    """Who is doubted; `now` in seconds of a clock that does not go back."""

    def __init__(self) -> None:
        self._since: dict[NodeId, float] = {}

    def suspect(self, node: NodeId, now: float) -> None:
        """Take a hint that a member may have died."""
        self._since[node] = now

    def trust(self, node: NodeId) -> None:
        """Take note that a member is there."""
        self._since.pop(node, None)

    def nodes(self, now: float) -> frozenset[NodeId]:
        """Return who is doubted now."""
        self._since = {node: at for node, at in self._since.items() if now - at < DOUBT_S}
        return frozenset(self._since)
