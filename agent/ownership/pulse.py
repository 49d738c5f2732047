"""Who counts as silent: heard too long ago although expected, or suspected. A core.

    a node is   when                                                       until
    ---------   ----                                                       -----
    down        it was to be heard, and was not for SILENCE_S              heard, or FORGET_S
    down        the same, HINTED_S after a hint that it died (lost link)   heard, or FORGET_S
    down        there was a hint, and it has no reason to be heard from    heard, or FORGET_S
    up          otherwise: no evidence is no verdict

Only a node that has a reason to send something each half second is expected. Whether a member is
there at all is for presence to say; this decides within a second and errs on the quick side, which
costs a refused claim and nothing more. `now` is monotonic seconds. Used by `ranking.py`.
"""

from __future__ import annotations

from collections.abc import Set

from agent.identity.keys import NodeId

# Beats come each 0.5 s, so two were lost.
SILENCE_S = 1.2
# One beat after the hint should have come by then: links are also closed for want of use.
HINTED_S = 0.6
# By then presence has seen it too, or it was a mistake.
FORGET_S = 5.0


class Pulse:
    """What was heard of the other nodes, and when."""

    def __init__(self) -> None:
        self._heard: dict[NodeId, float] = {}
        self._expected: dict[NodeId, float] = {}
        self._down: dict[NodeId, float] = {}
        self._hints: dict[NodeId, float] = {}

    def hear(self, node: NodeId, at: float) -> None:
        """Note a sign of life; what came before the node was found down proves nothing."""
        self._heard[node] = max(at, self._heard.get(node, at))
        if self._hints.get(node, at) < at:
            del self._hints[node]
        if self._down.get(node, at) < at and node not in self._hints:
            del self._down[node]

    def suspect(self, node: NodeId, now: float) -> None:
        """Take a hint that a node died; only what comes from now on counts against it."""
        self._hints[node] = now
        if node not in self._expected:
            self._down.setdefault(node, now)

    def hinted(self, node: NodeId) -> bool:
        """Say whether a node is down, and there was a hint as well."""
        return node in self._down and node in self._hints

    def forget(self, node: NodeId) -> None:
        """Drop everything: it left, or something better is known."""
        for table in (self._heard, self._expected, self._down, self._hints):
            table.pop(node, None)

    def expect(self, nodes: Set[NodeId], now: float) -> None:
        """Say from whom something is expected each half second from now on; replaces the last."""
        self._expected = {node: self._expected.get(node, now) for node in nodes}

    def lapse(self, now: float) -> None:
        """Find those down that were expected and silent for too long."""
        for node in self._expected:
            if now >= self._deadline(node) and node not in self._down:
                self._down[node] = now

    def down(self, node: NodeId, now: float) -> bool:
        """Say whether a node counts as silent."""
        since = self._down.get(node)
        if since is not None and now - since > FORGET_S:
            # A new chance: if it is still expected, it has SILENCE_S from now.
            del self._down[node]
            self._hints.pop(node, None)
            if node in self._expected:
                self._expected[node] = now
            return False
        return since is not None

    def heard_within(self, seconds: float, now: float) -> set[NodeId]:
        """Return the nodes heard in the last `seconds` and not down since."""
        return {n for n, at in self._heard.items() if now - at <= seconds and n not in self._down}

    def next_deadline(self) -> float:
        """Return when the next expected node becomes down if it stays silent; inf if none will."""
        waiting = (self._deadline(node) for node in self._expected if node not in self._down)
        return min(waiting, default=float("inf"))

    def _deadline(self, node: NodeId) -> float:
        since = self._expected[node]
        silent = max(since, self._heard.get(node, since)) + SILENCE_S
        hint = self._hints.get(node)
        return silent if hint is None else min(silent, hint + HINTED_S)
