"""What was measured of devices and links, how long it is believed, and what is due. A core.

    of a link     from                                     believed
    ---------     ----                                     --------
    round trip    the path engine's pings, else a turn     while that is the path in use
    loss          of the transfer                          while that is the path in use
    bandwidth     a transfer of a few MiB                  LINK_FRESH_S, of the path that it went by

A path is told apart by its `way`, a text. `now` is unix seconds, since figures outlive the agent.
Shells: `agent/deploy/links.py` and `agent/deploy/measuring.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from agent.identity.keys import NodeId

# Drivers, kernels and neighbours on a host change; memory and cores hardly do.
DEVICE_FRESH_S = 7 * 86_400.0
# What was measured on a busy machine is too low, and is tried again this much later.
DEVICE_BUSY_S = 600.0
# A machine is quiet while this share of its CPUs runs at most.
QUIET_LOAD = 0.25
# Providers change the bandwidth of a line rarely, neighbours and Wi-Fi by the hour.
LINK_FRESH_S = 86_400.0
# Nobody is asked for transfers more often, whether they succeed, and however paths change.
LINK_AGAIN_S = 120.0
# Ways to a node of which a transfer is remembered.
_WAYS = 8


def device_due(at: float | None, now: float, *, busy: bool) -> bool:
    """Say whether devices shall be measured (again) when the machine is quiet.

    `at`: when they were (unix seconds), None: never; `busy`: on a busy machine.
    """
    # A clock that was set back must not keep a figure for ever.
    return at is None or not 0 <= now - at < (DEVICE_BUSY_S if busy else DEVICE_FRESH_S)


def quiet(load: float, cpus: int) -> bool:
    """Say whether a machine with so many CPUs is quiet, by its load of the last minute."""
    return load <= QUIET_LOAD * cpus


def one_way(share: float) -> float:
    """Return which share is lost one way, where `share` of questions or their answers is lost.

    Nobody can tell on which of the two ways; both are taken to lose the same.
    """
    return 1 - math.sqrt(1 - min(max(share, 0.0), 1.0))


@dataclass(frozen=True)
class Heard:
    """What the path engine knows of the path in use: its way, round trip, jitter (s), loss.

    `loss` is the share that is lost one way.
    """

    way: str
    rtt_s: float | None = None
    jitter_s: float = 0.0
    loss: float = 0.0


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
    """What a transfer by a way came to at `at` (unix s): bytes a second, and its fastest turn (s).

    As it is kept in a file.
    """

    way: Annotated[str, msgspec.Meta(max_length=200)]
    bytes_s: Annotated[float, msgspec.Meta(gt=0, le=1e18)]
    turn_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    at: float


class LinkBook:
    """The transfers from this node to others."""

    def __init__(self) -> None:
        self._transfers: dict[NodeId, tuple[Transfer, ...]] = {}  # the newest last
        self._tried: dict[NodeId, float] = {}

    def tried(self, node: NodeId, now: float) -> None:
        """Note that a transfer to a node begins; the next is some time off, whatever it gives."""
        self._tried[node] = now

    def carried(self, node: NodeId, transfer: Transfer) -> None:
        """Note what a transfer to a node came to."""
        others = (one for one in self._transfers.get(node, ()) if one.way != transfer.way)
        self._transfers[node] = (*others, transfer)[-_WAYS:]

    def keep(self, nodes: Iterable[NodeId]) -> None:
        """Forget everyone but these, who are members."""
        for node in (self._transfers.keys() | self._tried.keys()) - set(nodes):
            self._transfers.pop(node, None)
            self._tried.pop(node, None)

    def due(self, ways: Mapping[NodeId, str], now: float) -> list[NodeId]:
        """Return to which of these nodes a transfer is due, the one longest untried first.

        `ways`: by which each is reached now, "" where that is not known yet.
        """
        found = []
        for node, way in ways.items():
            tried_at = self._tried.get(node, float("-inf"))
            if self._believed(node, way, now) is None and not 0 <= now - tried_at < LINK_AGAIN_S:
                found.append((tried_at, node))
        return [node for _, node in sorted(found)]

    def link(self, node: NodeId, heard: Heard, now: float) -> Measured | None:
        """Return what is known of the link to a node; None where that is not even a round trip."""
        transfer = self._believed(node, heard.way, now)
        bytes_s = None if transfer is None else transfer.bytes_s
        rtt_s = heard.rtt_s
        if rtt_s is None and transfer is not None:
            rtt_s = transfer.turn_s
        return None if rtt_s is None else Measured(rtt_s, heard.jitter_s, heard.loss, bytes_s)

    def transfers(self) -> dict[NodeId, tuple[Transfer, ...]]:
        """Return all transfers, to be kept."""
        return dict(sorted(self._transfers.items()))

    def restore(self, kept: Mapping[NodeId, Sequence[Transfer]]) -> None:
        """Take in what was kept."""
        for node, transfers in kept.items():
            for transfer in transfers:
                self.carried(node, transfer)

    def _believed(self, node: NodeId, way: str, now: float) -> Transfer | None:
        for transfer in self._transfers.get(node, ()):
            if transfer.way == way and 0 <= now - transfer.at < LINK_FRESH_S:
                return transfer
        return None
