"""How peers are listed: who comes first, and what is said of each."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cli.peerlist import COLUMNS, SHOWN, cells, hidden, ordered, speed, why


def peer(name: str, **more: Any) -> dict[str, Any]:
    facts = {
        "name": name, "path": "direct", "route": "lan", "path_rtt_ms": 0.34, "rtt_ms": 5.0,
        "rx_bytes_s": 0.0, "tx_bytes_s": 0.0, "handshake_age_s": 61.0, "why": "",
    }  # fmt: skip
    return facts | more


def names(peers: list[dict[str, Any]]) -> list[str]:
    return [each["name"] for each in peers]


def test_traffic_comes_first_then_who_is_connected() -> None:
    peers = [
        peer("away", path="none", route="none", rx_bytes_s=None, tx_bytes_s=None),
        peer("quiet", rx_bytes_s=900.0, tx_bytes_s=900.0),
        peer("calm"),
        peer("busy", rx_bytes_s=1e6),
        peer("busier", tx_bytes_s=2e6),
    ]
    assert names(ordered(peers)) == ["busier", "busy", "calm", "quiet", "away"]


def test_a_line_says_path_round_trip_throughput_and_handshake() -> None:
    found = cells(peer("anna", rx_bytes_s=1_234_567.0, tx_bytes_s=43_210.0))
    assert dict(zip(COLUMNS, found, strict=True)) == {
        "name": "anna", "path": "lan", "rtt": "0.3 ms", "down": "1.2 MB/s", "up": "43 kB/s",
        "handshake": "61 s",
    }  # fmt: skip


def test_a_peer_that_is_not_there_shows_no_figures() -> None:
    gone = peer(
        "gone", path="none", route="none", path_rtt_ms=None, rx_bytes_s=None, tx_bytes_s=None,
        handshake_age_s=None, why="nobody answers at its addresses",
    )  # fmt: skip
    assert cells(gone) == ["gone", "none", "-", "-", "-", "never"]
    assert why(gone) == "nobody answers at its addresses"


def test_why_is_said_of_those_relayed_or_not_reached_alone() -> None:
    assert why(peer("far", route="relayed", why="both NATs are hard")) == "both NATs are hard"
    assert why(peer("near", why="was relayed")) == ""


def test_without_a_path_engine_it_is_just_direct() -> None:
    found = peer("anna")
    del found["route"], found["path_rtt_ms"], found["why"]
    assert cells(found)[1:3] == ["direct", "5.0 ms"]
    assert why(found | {"path": "none"}) == ""


def test_a_large_mesh_is_cut_and_it_says_by_how_much() -> None:
    peers = ordered(
        [peer(f"n{n:03}") for n in range(SHOWN + 5)]
        + [peer(f"x{n}", path="none") for n in range(3)]
    )
    assert hidden(peers) == "… and 8 more, 5 of them connected: `agent peers` lists all."
    assert hidden(peers[:SHOWN]) == ""


@pytest.mark.parametrize(
    ("bytes_s", "words"),
    [(None, "-"), (0, "0 B/s"), (999.4, "999 B/s"), (1000, "1.0 kB/s"), (12_345, "12 kB/s"),
     (3_400_000, "3.4 MB/s"), (125e6, "125 MB/s"), (1.25e9, "1.2 GB/s")],
)  # fmt: skip
def test_speeds(bytes_s: float | None, words: str) -> None:
    assert speed(bytes_s) == words
