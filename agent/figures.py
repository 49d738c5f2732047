"""What metrics are made of: how this node stands at a moment, in figures. A core, and types alone.

Filled by `answers.py` and `deploy/engines.py`; `http/exposition.py` tells it to Prometheus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EngineFigures:
    """An engine process that runs.

    `deployment` is "" for a stage, `ring` for what has none (the first letters of its id);
    `stats` as the engine tells it (`engine/stage.py`, `pipeline.py`, `embedder.py`, `head.py`).
    """

    deployment: str
    ring: str
    stage: int
    role: str
    ready: bool
    stats: Mapping[str, float]
    resident_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class Engined:
    """The engines here; how many were started and how many failed since the agent began, by role.

    One failed that ended unasked, or whose ring broke.
    """

    running: Sequence[EngineFigures] = ()
    started: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """A node and its mesh as it sees it.

    `status` and `peers` are as the local API tells them, `relay` as `Relay.describe` does (None:
    it does not relay), `discovery` are its counters by name. `wanted` and `ready` are rings by
    deployment, as the mesh wants them and as their heads announce themselves.
    """

    status: Mapping[str, Any]
    peers: Sequence[Mapping[str, Any]]
    contacts: int
    reachable: bool
    discovery: Mapping[str, int]
    relay: Mapping[str, Any] | None
    wanted: Mapping[str, int]
    ready: Mapping[str, int]
    engines: Engined
    now: float
