"""What an owner keeps in mind of one deployment: its leases at head nodes, and the head it means.

A core, and one half of `owner.py`. A ring of the same deployment at another node than `main` (left
from a split) is a surplus: its lease is taken as well, so that it can be ended, and given back when
nothing runs there any more.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.identity.keys import NodeId
from agent.ownership import rendezvous
from agent.ownership.lease import LEASE_S, Token
from agent.ownership.messages import Claim, Grant, Report

# An owner stops to act this much before the grantor's LEASE_S, counted from when it sent the claim:
# the two clocks may differ by 5 % in rate.
OWN_LEASE_S = 0.9 * LEASE_S
RENEW_S = 0.5
RETRY_S = 0.2


class Phase(enum.IntEnum):
    """How a ring is, as far as ownership minds."""

    NONE = 0
    BUILDING = 1
    READY = 2
    WAITING = 3
    FAILED = 4


@dataclass(frozen=True)
class Want:
    """A deployment that shall be: which node had best be its head, or must be; or shall not be.

    `heads`: who may be a new head, the best first; none of them yet where it is empty, and any node
    where it is None. What runs goes on wherever it is.
    `avoid` are nodes that would not have it begin there: they have another ring of the same model.
    """

    name: str
    prefer: NodeId | None = None
    only: NodeId | None = None
    removed: bool = False
    heads: tuple[NodeId, ...] | None = None
    avoid: frozenset[NodeId] = frozenset()


@dataclass
class Hold:
    """A lease, had or wanted, at one head node."""

    number: int
    since: float
    token: Token | None = None
    until: float = float("-inf")
    report: Report = field(default_factory=Report)
    reported_at: float = float("-inf")
    next_claim: float = float("-inf")

    def valid(self, now: float) -> bool:
        """Whether this node may act on it."""
        return self.token is not None and now < self.until

    def claim(self, name: str, after: int, now: float) -> Claim:
        """Return the claim to send now, and set when to say it again."""
        self.next_claim = now + (RENEW_S if self.valid(now) else RETRY_S)
        seen = max(after, self.token.epoch if self.token else 0)
        return Claim(name, self.number, seen, int(now * 1e6))

    def granted(self, grant: Grant, now: float) -> None:
        """Take in a grant of this claim; one that was overtaken by a later one changes nothing."""
        if self.token is not None and grant.token.epoch < self.token.epoch:
            return
        if not self.valid(now):
            self.next_claim = now + RENEW_S
        self.token = grant.token
        self.until = max(self.until, min(grant.sent_us / 1e6, now) + OWN_LEASE_S)
        self.report, self.reported_at = grant.report, now

    def lost(self, number: int) -> None:
        """Begin anew: someone else has the lease."""
        self.number, self.token, self.until = number, None, float("-inf")


@dataclass
class Duty:
    """This node coordinates the deployment, or tries to."""

    since: float
    holds: dict[NodeId, Hold] = field(default_factory=dict)
    main: NodeId | None = None
    deputies: tuple[NodeId, ...] = ()
    rivals: set[NodeId] = field(default_factory=set)
    next_beat: float = float("-inf")
    lost: NodeId | None = None
    lost_at: float = float("-inf")

    def token(self, now: float) -> Token | None:
        """Return the token for the head that is meant, while its lease is valid."""
        hold = self.holds.get(self.main) if self.main else None
        return hold.token if hold is not None and hold.valid(now) else None


def best_running(
    want: Want, running: Mapping[NodeId, Phase], usable: Callable[[NodeId], bool]
) -> NodeId | None:
    """Return which of the nodes where the deployment runs shall go on; the same on every node.

    One that answers before one that is being built, then the preferred one, then by rank.
    """
    nodes = [node for node in running if usable(node)]
    return max(
        nodes,
        key=lambda node: (
            running[node] is Phase.READY, node == want.prefer, rendezvous.weight(want.name, node),
        ),
        default=None,
    )  # fmt: skip


def new_head(
    want: Want, own: NodeId, usable: Callable[[NodeId], bool], others: Sequence[NodeId] = ()
) -> NodeId | None:
    """Return where to start a deployment that runs nowhere; None if no node may be its head now.

    `others` are the nodes to try where this one is to be avoided, in order.
    """
    if want.only is not None:
        return want.only if usable(want.only) else None
    wished = [] if want.prefer is None else [want.prefer]
    if want.heads is not None:
        tried = [*(node for node in wished if node in want.heads), *want.heads]
    else:
        tried = [*wished, own, *(others if own in want.avoid else ())]
    return next((node for node in tried if usable(node)), None)
