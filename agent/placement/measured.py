"""What was measured of devices and links, how far it can be believed, and what is due. A core.

    of a link     from                                    believed
    ---------     ----                                    --------
    round trip    pings over the path in use              while that is the path
    loss          those of them that had no answer        while that is the path
    bandwidth     a transfer of a few MiB                 for LINK_FRESH_S, of the path it went by

A path is told apart by its `way`, a text. `now` is unix seconds, since figures outlive the agent.
Shells: `agent/deploy/links.py` and `agent/deploy/measuring.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from agent.identity.keys import NodeId

# Drivers, kernels and neighbours on a host change; memory and cores hardly do.
DEVICE_FRESH_S = 7 * 86_400.0
# What was measured on a busy machine is too low, and is tried again this much later.
DEVICE_BUSY_S = 600.0
# One that failed may have lacked memory.
DEVICE_FAILED_S = 3_600.0
# A machine is quiet while this share of its CPUs runs at most.
QUIET_LOAD = 0.25
# Providers change the bandwidth of a line rarely, neighbours and Wi-Fi by the hour.
LINK_FRESH_S = 86_400.0
# Nobody is asked for transfers more often, whether they succeed, and however paths change.
LINK_AGAIN_S = 120.0
# Ways to a node of which a transfer is remembered.
_WAYS = 8
# As TCP smooths round trips (RFC 6298): an eighth of the new one, a quarter of its deviation.
_RTT_WEIGHT, _JITTER_WEIGHT = 1 / 8, 1 / 4
# So many of the last pings tell the loss.
_LOSS_PINGS = 64
# Who was silent for longer than this was away; its missing answers were not lost on the way.
_AWAY_S = 10.0


def device_due(at: float | None, now: float, *, busy: bool) -> bool:
    """Say whether devices shall be measured (again) when the machine is quiet.

    `at`: when they were (unix seconds), None: never; `busy`: on a busy machine.
    """
    if at is None:
        return True
    # A clock that was set back must not keep a figure for ever.
    return not 0 <= now - at < (DEVICE_BUSY_S if busy else DEVICE_FRESH_S)


def quiet(load: float, cpus: int) -> bool:
    """Say whether a machine with so many CPUs is quiet, by its load of the last minute."""
    return load <= QUIET_LOAD * cpus


@dataclass(frozen=True)
class Measured:
    """One direction of a link: round trip and its jitter (s), loss as a share, bytes a second.

    `bytes_s` None: not measured, or not to be believed any more.
    """

    rtt_s: float
    jitter_s: float
    loss: float
    bytes_s: float | None


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a transfer by a way came to, in bytes a second, at `at` (unix seconds); kept in files."""

    way: Annotated[str, msgspec.Meta(max_length=200)]
    bytes_s: Annotated[float, msgspec.Meta(gt=0, le=1e18)]
    at: float


@dataclass
class _Link:
    way: str = ""
    rtt_s: float | None = None
    jitter_s: float = 0.0
    pings: int = 0
    lost: float = 0.0  # share of them, the newer the more
    answered_at: float = float("-inf")
    missed: int = 0  # since the last answer
    tried_at: float = float("-inf")
    transfers: dict[str, Transfer] = field(default_factory=dict)

    def transfer(self, now: float) -> Transfer | None:
        """Return the transfer by the present way that is to be believed."""
        found = self.transfers.get(self.way)
        # A clock that was set back must not keep a figure for ever.
        return found if found is not None and 0 <= now - found.at < LINK_FRESH_S else None


class LinkBook:
    """The links from this node to others."""

    def __init__(self) -> None:
        self._links: dict[NodeId, _Link] = {}

    def by(self, node: NodeId, way: str) -> None:
        """Hear by which way a node is reached now; another than before begins anew."""
        link = self._links.setdefault(node, _Link(way))
        if link.way != way:
            self._links[node] = _Link(way, tried_at=link.tried_at, transfers=link.transfers)

    def answered(self, node: NodeId, rtt_s: float, now: float) -> None:
        """Note a ping's answer."""
        link = self._links.setdefault(node, _Link())
        if link.rtt_s is None:
            link.rtt_s = rtt_s
        else:
            link.jitter_s += (abs(rtt_s - link.rtt_s) - link.jitter_s) * _JITTER_WEIGHT
            link.rtt_s += (rtt_s - link.rtt_s) * _RTT_WEIGHT
        if link.missed and now - link.answered_at <= _AWAY_S:
            for _ in range(link.missed):
                self._count(link, 1.0)
        self._count(link, 0.0)
        link.missed, link.answered_at = 0, now

    def missed(self, node: NodeId) -> None:
        """Note a ping without an answer; it counts as lost if the node is heard soon again."""
        link = self._links.get(node)
        if link is not None:
            link.missed += 1

    def tried(self, node: NodeId, now: float) -> None:
        """Note that a transfer to a node begins: the next is some time off, whatever comes of it."""
        self._links.setdefault(node, _Link()).tried_at = now

    def carried(self, node: NodeId, bytes_s: float, now: float) -> None:
        """Note what a transfer to a node came to, by its present way."""
        link = self._links.setdefault(node, _Link())
        link.transfers.pop(link.way, None)
        link.transfers[link.way] = Transfer(link.way, bytes_s, now)
        for way in list(link.transfers)[:-_WAYS]:
            del link.transfers[way]

    def keep(self, nodes: Iterable[NodeId]) -> None:
        """Forget everyone but these, who are members."""
        for node in self._links.keys() - set(nodes):
            del self._links[node]

    def due(self, nodes: Iterable[NodeId], now: float) -> list[NodeId]:
        """Return those of `nodes` to whom a transfer is due, the one longest untried first."""
        found = []
        for node in set(nodes):
            link = self._links.get(node, _Link())
            if link.transfer(now) is None and not 0 <= now - link.tried_at < LINK_AGAIN_S:
                found.append((link.tried_at, node))
        return [node for _, node in sorted(found)]

    def link(self, node: NodeId, now: float) -> Measured | None:
        """Return what is known of the link to a node; None where no ping was answered."""
        link = self._links.get(node)
        if link is None or link.rtt_s is None:
            return None
        transfer = link.transfer(now)
        bytes_s = None if transfer is None else transfer.bytes_s
        return Measured(link.rtt_s, link.jitter_s, link.lost, bytes_s)

    def links(self, now: float) -> dict[NodeId, Measured]:
        """Return all known links: those with a bandwidth first, then by how lately they answered."""
        found = {node: known for node in self._links if (known := self.link(node, now))}
        order = sorted(
            found, key=lambda node: (found[node].bytes_s is None,
                                     -self._links[node].answered_at, node)
        )  # fmt: skip
        return {node: found[node] for node in order}

    def transfers(self) -> dict[NodeId, tuple[Transfer, ...]]:
        """Return all transfers, to be kept."""
        return {
            node: tuple(link.transfers.values())
            for node, link in sorted(self._links.items())
            if link.transfers
        }

    def restore(self, kept: Mapping[NodeId, Sequence[Transfer]]) -> None:
        """Take in what was kept."""
        for node, transfers in kept.items():
            link = self._links.setdefault(node, _Link())
            link.transfers |= {transfer.way: transfer for transfer in transfers[-_WAYS:]}

    @staticmethod
    def _count(link: _Link, lost: float) -> None:
        """Take one ping into the loss: a mean at first, then one that forgets."""
        link.pings = min(link.pings + 1, _LOSS_PINGS)
        link.lost += (lost - link.lost) / link.pings
