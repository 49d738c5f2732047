"""What the local API tells of a small mesh, as `door` sees it; beta is relayed, gamma is gone."""

from __future__ import annotations

from typing import Any

import pytest

IDS = {name: f"12D3KooW{name}" for name in ("door", "alpha", "beta", "gamma")}


def peer(name: str, **given: Any) -> dict[str, Any]:
    usual = {
        "name": name, "node": IDS[name], "ipv6": "fd00::1", "ipv4": "10.77.0.1",
        "roles": ["worker"], "tags": [], "path": "direct", "endpoint": "198.18.1.2:51820",
        "handshake_age_s": 20.35, "rx_bytes": 1, "tx_bytes": 2, "rx_bytes_s": 1452.01,
        "tx_bytes_s": 1108.9, "route": "public", "path_rtt_ms": 11.3105, "path_jitter_ms": 6.489,
        "path_loss": 0.01234, "path_age_s": 20.6, "relay": None, "why": "", "path_mtu": 1440,
        "presence": "alive", "heard_ago_s": 0.1, "rtt_ms": 20.5, "linked": True,
        "load": {"free_bytes": 3 * 2**20 + 5, "cores": 2, "load": 5.149, "engines": 1},
        "health": [], "models": [{"name": "9f", "part": "stage 1", "phase": "ready"}],
        "software": "0.1.0", "draining": False, "link_bytes_s": None,
    }  # fmt: skip
    return usual | given


def ring(**given: Any) -> dict[str, Any]:
    usual = {
        "name": "mini", "key": "mini", "number": 1, "rings": 1, "model": "/srv/models/mini.gguf",
        "model_id": "", "engine": "ring", "draft": "", "wish": {"objective": "auto"},
        "generation": 1, "author": IDS["alpha"], "source": IDS["alpha"], "owner": IDS["beta"],
        "owner_name": "beta", "owner_epoch": 1, "head": IDS["alpha"], "head_name": "alpha",
        "ring": "87", "epoch": 1, "phase": "ready", "progress": "answers", "context": 512,
        "nodes": 2,
        "stages": [
            {"node": IDS["alpha"], "name": "alpha", "first": 0, "last": 1, "runs_on": "1 CPU"},
            {"node": IDS["beta"], "name": "beta", "first": 1, "last": 6, "runs_on": ""},
        ],
        "reasons": ["2 nodes: 2 nodes were asked for"], "url": "http://[fd00::1]:7101",
        "error": None, "stays": "", "gain": "",
    }  # fmt: skip
    return usual | given


@pytest.fixture
def told() -> dict[str, Any]:
    """Return the arguments of `overview`."""
    return {
        "status": {
            "mesh": "demo", "name": "door", "node": IDS["door"], "software": "0.1.0",
            "uptime_s": 21.34, "roles": ["gateway"], "tags": ["attic"], "draining": False,
            "engines": [{"ring": "87", "what": "head of mini", "phase": "ready"}],
            "health": [{"code": "clock", "severity": "warning", "title": "Clock", "text": "Late.",
                        "what_to_do": "Set it.", "details": ["by 3 s"]}],
        },
        "load": {"free_bytes": 2**30 + 7, "cores": 4, "load": 0.25, "engines": 1},
        "peers": [
            peer("alpha", health=[{"code": "disk", "severity": "error"}]),
            peer("beta", route="relayed", relay=IDS["alpha"], why="both NATs are hard"),
            peer("gamma", path="none", route="none", path_rtt_ms=None, presence="gone", load=None,
                 handshake_age_s=None, rx_bytes_s=None, tx_bytes_s=None, models=[]),
        ],
        "rings": [ring()],
        "jobs": [{"job": 1, "kind": "pull", "name": "m", "phase": "fetching", "source": "https://x",
                  "done": 5, "total": 10, "rate": 2.5, "left_s": 2.0, "sources": [], "note": "",
                  "result": None, "error": None}],
        "events": [{"number": n, "at": 5.0 + n, "told_by": "door", "scope": "local",
                    "kind": "node.up", "subject": "door", "text": "its agent is up"}
                   for n in range(1, 100)],
    }  # fmt: skip
