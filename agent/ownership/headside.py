"""What a head node says about ownership: it answers claims, and tells who comes first that it runs.

A core, and one half of `owner.py`. A ring is never stopped here because its owner is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from agent.identity.keys import NodeId
from agent.ownership.lease import Granted, LeaseBook, Refused
from agent.ownership.messages import Claim, Grant, Here, Item, Refuse, Release, Report

# A head whose owner is not the one who comes first says so this often.
HERE_INTERVAL_S = 0.5
NOT_HERE = Report()


class HeadSide:
    """The leases that this node grants, and the rings that it runs."""

    def __init__(self, leases: LeaseBook) -> None:
        self.leases = leases
        self.running: Mapping[str, Report] = {}
        self._next_here = float("-inf")

    def on_claim(self, peer: NodeId, claim: Claim, now: float) -> Item | None:
        """Return the answer to a claim, if it gets one."""
        report = self.running.get(claim.name, NOT_HERE)
        answer = self.leases.claim(claim.name, peer, claim.number, claim.after, now)
        match answer:
            case Granted(token):
                return Grant(claim.name, token, claim.number, claim.sent_us, report)
            case Refused(holder, age_s, left_s):
                return Refuse(claim.name, claim.number, holder, _us(age_s), _us(left_s), report)
            case None:
                return None

    def on_release(self, release: Release) -> None:
        """Take a token back."""
        self.leases.release(release.name, release.token)

    def due(
        self, now: float, first: Callable[[str], Sequence[NodeId]]
    ) -> list[tuple[NodeId, Here]]:
        """Return whom to tell of a ring here; `first(name)` are those who may come first."""
        if now < self._next_here:
            return []
        found = []
        for name, report in self.running.items():
            candidates = first(name)
            holder = self.leases.holder(name, now)
            if holder is not None and candidates and holder.owner_id == candidates[0]:
                continue
            found += [(node, Here(name, report)) for node in dict.fromkeys(candidates)]
        if found:
            self._next_here = now + HERE_INTERVAL_S
        return found

    def wake(self, now: float) -> float:
        """Return when `due` may have something."""
        return max(self._next_here, now + HERE_INTERVAL_S) if self.running else float("inf")


def _us(seconds: float) -> int:
    return max(0, int(seconds * 1e6))
