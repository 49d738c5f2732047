"""A node's figures as an agent gathers them, for tests of what is told of them."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.figures import Engined, EngineFigures, Figures

HEAD = EngineFigures(
    "chat", "0a1b2c3d", 0, "head", True,
    {"batches": 5, "rows": 70, "decode_s": 0.5, "own_s": 0.1, "waited_s": 0.7, "cells": 4096,
     "cells_taken": 90, "running": 2, "waiting": 1},
    100_000_000, 1.5,
)  # fmt: skip
STAGE = EngineFigures(
    "", "0a1b2c3d", 1, "stage", True, {"frames": 5, "rows": 70, "decode_s": 0.4, "own_s": 0.05},
    80_000_000, 0.9,
)  # fmt: skip
EMBEDDER = EngineFigures(
    "embed", "", 0, "whole", True, {"batches": 2, "rows": 9, "texts": 3, "encode_s": 0.01},
    50_000_000, 0.2,
)  # fmt: skip
LOADING = EngineFigures("other", "", 0, "whole", False, {}, 10_000_000, 0.1)


def peer(name: str = "beta", node: str = "12D3KooB", **given: Any) -> dict[str, Any]:
    usual = {
        "name": name, "node": node, "path": "direct", "route": "lan", "presence": "alive",
        "path_rtt_ms": 1.5, "path_jitter_ms": 0.25, "path_loss": 0.0, "handshake_age_s": 12.0,
        "rx_bytes": 1000, "tx_bytes": 2000,
    }  # fmt: skip
    return usual | given


def figures(**given: Any) -> Figures:
    usual: dict[str, Any] = {
        "status": {
            "software": "0.1.0", "mesh": "home", "name": "alpha", "node": "12D3KooA",
            "draining": False, "certificate_left_s": 1000.0,
            "peers": {"known": 2, "connected": 1, "asleep": 0, "alive": 1, "linked": 1},
            "health": [{"code": "disk-low", "severity": "warning", "title": "Little room"}],
        },
        "peers": [
            peer(),
            peer("gamma", "12D3KooC", path="none", route="none", presence="gone",
                 path_rtt_ms=None, handshake_age_s=None),
        ],
        "contacts": 1, "reachable": True,
        "discovery": {"sent": 7, "refused_clock": 1, "question_findnode": 3},
        "relay": {
            "pairs": [{"forwarding": "kernel"}, {"forwarding": "kernel"}], "tunnels": 1,
            "sent_bytes": 512,
        },
        "wanted": {"chat": 2, "embed": 1}, "ready": {"chat": 1, "gone": 1},
        "engines": Engined(
            [HEAD, STAGE, EMBEDDER, LOADING],
            {"head": 2, "stage": 1, "whole": 2}, {"head": 1},
        ),
        "now": 1_800_000_000.0,
    }  # fmt: skip
    return Figures(**(usual | given))


def more_status(**given: Any) -> dict[str, Any]:
    """Return the status of `figures` with other fields."""
    return dict(msgspec.to_builtins(figures().status)) | given
