"""What neighbours tell of the path to a member, for whoever places stages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.identity.keys import NodeId, NodeKey
from agent.neighbours import Neighbours
from agent.placement.measured import Heard

ANNA: NodeId = NodeKey(b"a" * 32).id


class Table:
    """WireGuard's peers: one, that can be told what it has."""

    def __init__(self) -> None:
        self.up, self.at = True, "192.0.2.1"
        self.rates: tuple[float | None, float | None] = 3.0, 4.0

    def connected(self, node: NodeId, now: float) -> bool:
        return self.up

    def host(self, node: NodeId) -> str | None:
        return self.at

    def describe(self, node: NodeId, now: float) -> dict[str, Any]:
        return dict(zip(("rx_bytes_s", "tx_bytes_s"), self.rates, strict=True))


def made(table: Table, **path: Any) -> Neighbours:
    neighbours = object.__new__(Neighbours)
    neighbours._table = table  # type: ignore[assignment]
    neighbours._traversal = SimpleNamespace(describe=lambda _: path)  # type: ignore[assignment]
    return neighbours


def test_the_path_in_use_is_told_with_its_round_trip_jitter_and_loss() -> None:
    path = {"route": "punched", "path_rtt_ms": 40.0, "path_jitter_ms": 2.0, "path_loss": 0.36,
            "relay": None}  # fmt: skip
    heard = made(Table(), **path).heard(ANNA)
    assert heard == Heard("punched 192.0.2.1", 0.04, 0.002, pytest.approx(0.2))


def test_over_a_relay_the_relay_is_the_way_and_without_the_path_engine_the_host() -> None:
    relayed = made(Table(), route="relayed", relay="12D3Koo", path_rtt_ms=None).heard(ANNA)
    assert relayed == Heard("relayed 12D3Koo")
    assert made(Table()).heard(ANNA) == Heard("none 192.0.2.1")


def test_who_is_not_connected_has_no_path_and_traffic_is_known_once_it_was_looked_at() -> None:
    table = Table()
    neighbours = made(table)
    assert neighbours.traffic(ANNA) == 7.0
    table.rates = None, None
    assert neighbours.traffic(ANNA) is None
    table.up = False
    assert neighbours.heard(ANNA) is None
