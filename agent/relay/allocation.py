"""Which pairs of members a relay serves: ports, expiry, quota, and who is turned away. A core.

    Allocate   a pair that is new gets two ports; one that is there is renewed, whoever asks
    Refresh    renews; Release removes at once; either node of the pair may do both
    removed    on expiry, when a node is no member any more, when a quota is spent, and to make room

An allocation counts against those who asked for it, never against a peer that did not, and bytes
against the node that sent them: nobody can use up what is another's. When all ports are taken, a
node gets those of whoever holds most, if that one holds at least two more than it does itself: a
few members cannot keep the others out. Ports come back into use last, so that what is still sent
to an old pair meets a closed port.

The caller passes the asker's verified identity. Quotas are by the day in UTC, and what was used
outlives the allocation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from agent.errors import EnvironmentFault, MembershipError, UsageError
from agent.identity.keys import NodeId
from agent.relay.messages import ID_BYTES
from agent.relay.pairs import Pair, Seat

DAY_S = 86400.0
# A port that another program holds is tried again after this.
UNUSABLE_S = 600.0

Nodes = tuple[NodeId, NodeId]


@dataclass(frozen=True)
class Limits:
    """What a relay gives. Defaults: generous for token traffic, small beside an uplink's month.

    `pair_bytes_day`, `node_bytes_day`: per pair, and per node over all of its pairs.
    `rate_bytes_s`: for each side of a pair. `pairs_per_node`: that one node has asked for.
    """

    ports: range = range(51840, 52040)
    lifetime_s: float = 120.0
    pair_bytes_day: int = 200 * 10**9
    node_bytes_day: int = 500 * 10**9
    rate_bytes_s: int = 125_000_000
    pairs_per_node: int = 32

    def __post_init__(self) -> None:
        """Raise UsageError for limits under which nobody could be served."""
        if len(self.ports) < 2 or self.ports[0] < 1 or self.ports[-1] > 65535:
            raise UsageError(
                f"ports {self.ports.start}-{self.ports.stop - 1} are no range for a relay",
                hint="A pair needs two ports between 1 and 65535.",
            )
        least = min(self.lifetime_s, self.pair_bytes_day, self.node_bytes_day, self.rate_bytes_s,
                    self.pairs_per_node)  # fmt: skip
        if least <= 0:
            raise UsageError("a relay's limits must be more than 0")


@dataclass
class Allocation:
    """One pair. `nodes` are in order of their keys; `ports`, `seats` and `sent` go by the same."""

    pair: Pair
    nodes: Nodes
    expires_at: float
    used_at: float
    askers: set[NodeId] = field(default_factory=set)
    seats: list[Seat | None] = field(default_factory=lambda: [None, None])
    sent: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def id(self) -> bytes:
        """The id that both nodes know it by."""
        return self.pair.id

    def side(self, node: NodeId) -> int:
        """Return 0 or 1; raises ValueError for a node that is not of the pair."""
        return self.nodes.index(node)


@dataclass(frozen=True)
class Removed:
    """An allocation that is no more, and why, as a clause."""

    allocation: Allocation
    reason: str


class Allocations:
    """All pairs of one relay. Times are unix seconds."""

    def __init__(self, own: NodeId, limits: Limits, random: Random) -> None:
        self._own = own
        self._limits = limits
        self._random = random
        self._free = deque(limits.ports)
        self._unusable: dict[int, float] = {}
        self._by_id: dict[bytes, Allocation] = {}
        self._by_nodes: dict[Nodes, Allocation] = {}
        self._members: frozenset[NodeId] = frozenset()
        self._removed: list[Removed] = []
        self._day = 0
        self.sent_bytes = 0  # of all pairs that there were
        self._pair_used: dict[Nodes, int] = {}
        self._node_used: dict[NodeId, int] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> list[Allocation]:
        """Return all allocations, oldest first."""
        return list(self._by_id.values())

    def get(self, identity: bytes) -> Allocation | None:
        """Return an allocation by its id."""
        return self._by_id.get(identity)

    def take_removed(self) -> list[Removed]:
        """Return what was removed since the last call."""
        removed, self._removed = self._removed, []
        return removed

    # ------------------------------------------------------- what nodes ask

    def allocate(self, asker: NodeId, peer: NodeId, now: float) -> Allocation:
        """Return the pair's allocation, made if there is none, renewed if there is.

        Raises MembershipError, UsageError, or EnvironmentFault when the relay is full or a quota
        is spent.
        """
        if self._own in (asker, peer) or asker == peer:
            raise UsageError("a relay serves two other nodes", hint="Send to this node directly.")
        for node in (asker, peer):
            if node not in self._members:
                raise MembershipError(f"{node} is no member of this mesh")
        self.expire(now)
        nodes = (min(asker, peer), max(asker, peer))
        self._check_quota(nodes, now)
        found = self._by_nodes.get(nodes)
        held = self._held(asker)
        if (found is None or asker not in found.askers) and held >= self._limits.pairs_per_node:
            raise EnvironmentFault(
                f"this relay serves a node at most {held} pairs",
                hint="Release one, or use another relay.",
            )
        if found is None:
            found = self._make(asker, nodes, now)
        found.askers.add(asker)
        found.expires_at = now + self._limits.lifetime_s
        return found

    def refresh(self, asker: NodeId, identity: bytes, now: float) -> Allocation:
        """Renew an allocation. Raises UsageError when the asker has none of that id."""
        self.expire(now)
        found = self._of(asker, identity)
        self._check_quota(found.nodes, now)
        found.expires_at = now + self._limits.lifetime_s
        return found

    def release(self, asker: NodeId, identity: bytes) -> None:
        """Remove an allocation. Raises UsageError when the asker has none of that id."""
        self._remove(self._of(asker, identity), f"{asker.short} released it")

    def left_bytes(self, allocation: Allocation, now: float) -> int:
        """Return how much the pair may still send today."""
        self._turn_day(now)
        used = self._pair_used.get(allocation.nodes, 0)
        left = [self._limits.pair_bytes_day - used]
        left += [self._limits.node_bytes_day - self._node_used.get(n, 0) for n in allocation.nodes]
        return max(0, min(left))

    # ------------------------------------------------------- what the relay sees

    def seat(self, identity: bytes, side: int, seat: Seat, now: float) -> Allocation | None:
        """Note where a side proved to be; None when the allocation is gone."""
        found = self._by_id.get(identity)
        if found is not None:
            found.seats[side] = seat
            found.used_at = now
        return found

    def count(self, identity: bytes, sent: tuple[int, int], now: float) -> None:
        """Add bytes that each side sent; pairs whose quota this spends are removed."""
        found = self._by_id.get(identity)
        if found is None or not any(sent):
            return
        self._turn_day(now)
        found.used_at = now
        self.sent_bytes += sum(sent)
        self._pair_used[found.nodes] = self._pair_used.get(found.nodes, 0) + sum(sent)
        for side, node in enumerate(found.nodes):
            found.sent[side] += sent[side]
            self._node_used[node] = self._node_used.get(node, 0) + sent[side]
            if self._node_used[node] >= self._limits.node_bytes_day:
                for each in [a for a in self._by_id.values() if node in a.nodes]:
                    self._remove(each, f"{node.short} has used up today's quota")
        if found.id in self._by_id and self._pair_used[found.nodes] >= self._limits.pair_bytes_day:
            self._remove(found, "the pair has used up today's quota")

    def expire(self, now: float) -> None:
        """Remove what was not refreshed in time."""
        for found in [each for each in self._by_id.values() if each.expires_at <= now]:
            self._remove(found, "it was not refreshed")
        for port in [port for port, until in self._unusable.items() if until <= now]:
            del self._unusable[port]
            self._free.append(port)

    def next_expiry(self) -> float | None:
        """Return when the next allocation expires."""
        return min((each.expires_at for each in self._by_id.values()), default=None)

    def set_members(self, members: Iterable[NodeId]) -> None:
        """Replace who is a member; the pairs of those who are none any more are removed."""
        self._members = frozenset(members)
        for found in list(self._by_id.values()):
            gone = [node for node in found.nodes if node not in self._members]
            if gone:
                self._remove(found, f"{gone[0].short} is no member any more")

    def unusable(self, allocation: Allocation, port: int, now: float) -> None:
        """Take a port out of use for UNUSABLE_S, another program holds it; the pair is removed."""
        self._remove(allocation, f"another program holds port {port}")
        if port in self._free:
            self._free.remove(port)
            self._unusable[port] = now + UNUSABLE_S

    # ------------------------------------------------------------------ inside

    def _make(self, asker: NodeId, nodes: Nodes, now: float) -> Allocation:
        if len(self._free) < 2:
            self._make_room(asker)
        identity = self._random.randbytes(ID_BYTES)
        while identity in self._by_id:
            identity = self._random.randbytes(ID_BYTES)
        ports = (self._free.popleft(), self._free.popleft())
        pair = Pair(identity, ports, self._limits.rate_bytes_s)
        made = Allocation(pair, nodes, now + self._limits.lifetime_s, now)
        self._by_id[identity] = self._by_nodes[nodes] = made
        return made

    def _make_room(self, asker: NodeId) -> None:
        """Remove the least used pair of whoever holds most. Raises EnvironmentFault."""
        held: dict[NodeId, int] = {}
        for each in self._by_id.values():
            for node in each.askers:
                held[node] = held.get(node, 0) + 1
        most = max(held, key=lambda node: (held[node], node), default=asker)
        if held.get(most, 0) < held.get(asker, 0) + 2:
            raise EnvironmentFault(
                f"all {len(self._limits.ports)} ports of this relay are in use",
                hint="Use another relay, or give this one a wider range.",
            )
        oldest = min(
            (each for each in self._by_id.values() if most in each.askers),
            key=lambda each: (each.used_at, each.id),
        )
        self._remove(oldest, f"{most.short} held {held[most]} pairs, and others need ports")

    def _of(self, asker: NodeId, identity: bytes) -> Allocation:
        found = self._by_id.get(identity)
        if found is None or asker not in found.nodes:
            raise UsageError("no such allocation here", hint="Allocate again.")
        return found

    def _held(self, asker: NodeId) -> int:
        return sum(asker in each.askers for each in self._by_id.values())

    def _check_quota(self, nodes: Nodes, now: float) -> None:
        self._turn_day(now)
        spent = self._pair_used.get(nodes, 0) >= self._limits.pair_bytes_day
        who = "this pair"
        for node in nodes:
            if self._node_used.get(node, 0) >= self._limits.node_bytes_day:
                spent, who = True, str(node)
        if spent:
            raise EnvironmentFault(
                f"{who} has used up what this relay forwards in a day",
                hint="Use another relay, or wait until midnight UTC.",
            )

    def _turn_day(self, now: float) -> None:
        day = int(now // DAY_S)
        if day != self._day:
            self._day = day
            self._pair_used.clear()
            self._node_used.clear()

    def _remove(self, found: Allocation, reason: str) -> None:
        del self._by_id[found.id]
        del self._by_nodes[found.nodes]
        self._free.extend(found.pair.ports)
        self._removed.append(Removed(found, reason))
