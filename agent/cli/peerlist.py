"""How peers are shown: who comes first, and what a line says of each. For `status` and `peers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.cli.common import ago

# What `agent status` shows of a large mesh; `agent peers` shows all.
SHOWN = 20
# Below it there is only what keeps a path open and tells who is alive.
TRAFFIC_BYTES_S = 2000.0
COLUMNS = ("name", "path", "rtt", "down", "up", "handshake")

Peer = dict[str, Any]


def ordered(peers: Sequence[Peer]) -> list[Peer]:
    """Return those with traffic first, the most before, then those connected, then the others."""
    return sorted(peers, key=lambda peer: (-_traffic(peer), peer["path"] == "none", peer["name"]))


def cells(peer: Peer) -> list[str]:
    """Return a peer's line, as `COLUMNS` has it."""
    return [
        peer["name"], path(peer), rtt(peer),
        speed(peer["rx_bytes_s"]), speed(peer["tx_bytes_s"]), ago(peer["handshake_age_s"]),
    ]  # fmt: skip


def path(peer: Peer) -> str:
    """Return in one word how a member is reached; without a path engine just that it is."""
    route = peer.get("route", peer["path"])
    return str("none" if peer["path"] == "none" and route != "asleep" else route)


def rtt(peer: Peer) -> str:
    """Return the path's round trip, or as others measured it where there is no path engine."""
    found = peer.get("path_rtt_ms")
    if found is None:
        found = peer.get("rtt_ms") if path(peer) not in ("none", "asleep") else None
    return "-" if found is None else f"{found:.1f} ms"


def why(peer: Peer) -> str:
    """Return why a member is relayed or not reached; "" if it is reached directly."""
    if path(peer) not in ("relayed", "none"):
        return ""
    return str(peer.get("why") or "")


def speed(bytes_s: float | None) -> str:
    """Return a throughput for people: 0 B/s, 12 kB/s, 3.4 MB/s; in powers of 1000."""
    if bytes_s is None:
        return "-"
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_s >= size:
            number = bytes_s / size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{bytes_s:.0f} B/s"


def hidden(peers: Sequence[Peer]) -> str:
    """Return in one line who is not shown of the ordered peers; "" if all are."""
    rest = peers[SHOWN:]
    if not rest:
        return ""
    connected = sum(peer["path"] != "none" for peer in rest)
    return f"… and {len(rest)} more, {connected} of them connected: `agent peers` lists all."


def _traffic(peer: Peer) -> float:
    total = float((peer["rx_bytes_s"] or 0) + (peer["tx_bytes_s"] or 0))
    return total if total >= TRAFFIC_BYTES_S else 0.0
