"""The mesh as the dashboard shows it: one object, of what the local API tells in parts. A core.

It has no addresses and no paths of files: whoever may look at the page need not know where members
live (the text of a fault may name one). Times are in seconds, RTTs in milliseconds, sizes in bytes,
rates in bytes/s; None: not known. Texts are those of other members too, and so a stranger's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

# Of what happened lately, the page shows so much.
EVENTS = 60
# Who may deploy, as `agent/deploy/keeper.py` has it.
_DEPLOYERS = frozenset({"worker", "admin"})

Told = Mapping[str, Any]


class Path(msgspec.Struct, frozen=True):
    """How this node reaches a member. `relay` is the forwarding member's name, "" for none."""

    route: str
    rtt_ms: float | None = None
    jitter_ms: float | None = None
    loss: float | None = None
    relay: str = ""
    why: str = ""
    mtu: int | None = None
    handshake_age_s: float | None = None
    down_bytes_s: float | None = None
    up_bytes_s: float | None = None


class Load(msgspec.Struct, frozen=True):
    """What a node has to spare; `load` is the mean of a minute, to be held against `cores`."""

    free_bytes: int
    cores: int
    load: float
    engines: int


class Part(msgspec.Struct, frozen=True):
    """What a node has of a ring: `part` is "head of M", or which stage."""

    name: str
    part: str
    phase: str


class Fault(msgspec.Struct, frozen=True):
    """A health item: whole for this node, code and severity alone for others."""

    node: str
    code: str
    severity: str
    title: str = ""
    text: str = ""
    what_to_do: str = ""
    details: list[str] = []


class Node(msgspec.Struct, frozen=True, rename={"own": "self"}):
    """A member. `path` is None for this node itself (`own`), whose `presence` is "self"."""

    id: str
    name: str
    own: bool
    roles: list[str]
    tags: list[str]
    presence: str
    draining: bool
    software: str
    path: Path | None
    load: Load | None
    parts: list[Part]


class Layers(msgspec.Struct, frozen=True):
    """Layers [first, last) on a node; the stages of a ring are in a token's order."""

    node: str
    name: str
    first: int
    last: int
    runs_on: str = ""


class Trouble(msgspec.Struct, frozen=True):
    """What is wrong, and what to do next."""

    message: str
    hint: str = ""


class Ring(msgspec.Struct, frozen=True):
    """A ring of a deployment: number `number` of `rings`; `reasons` say why it is as it is."""

    name: str
    key: str
    number: int
    rings: int
    model: str
    engine: str
    draft: str
    objective: str
    phase: str
    progress: str
    context: int
    owner: str
    head: str
    stages: list[Layers]
    reasons: list[str]
    error: Trouble | None = None
    stays: str = ""
    gain: str = ""


class Job(msgspec.Struct, frozen=True):
    """What this node's store does, or did last: `done` of `total` bytes."""

    job: int
    kind: str
    name: str
    phase: str
    done: int
    total: int
    rate: float
    left_s: float | None
    note: str = ""
    error: Trouble | None = None


class Event(msgspec.Struct, frozen=True):
    """Something that happened, `at` unix seconds."""

    number: int
    at: float
    told_by: str
    kind: str
    subject: str
    text: str


class Overview(msgspec.Struct, frozen=True):
    """The mesh, seen from the node `name` at `at` (unix seconds).

    `may_deploy`: the node's roles allow it to deploy, so that its gateway can. `takes_orders`:
    whoever asked for this may give some the same way (agent/api.py).
    """

    at: float
    mesh: str
    name: str
    software: str
    uptime_s: float
    may_deploy: bool
    nodes: list[Node]
    rings: list[Ring]
    health: list[Fault]
    jobs: list[Job]
    events: list[Event]
    takes_orders: bool = True


def overview(
    now: float, *, status: Told, load: Told, peers: Iterable[Told], rings: Iterable[Told],
    jobs: Iterable[Told], events: Sequence[Told],
) -> Overview:  # fmt: skip
    """Return what the parts of the local API come to, named as its answers are."""
    known = list(peers)
    names = {peer["node"]: peer["name"] for peer in known} | {status["node"]: status["name"]}
    own = [
        Fault(
            status["name"], item["code"], item["severity"], item["title"], item["text"],
            item["what_to_do"], list(item["details"]),
        )
        for item in status["health"]
    ]  # fmt: skip
    others = [
        Fault(peer["name"], item["code"], item["severity"])
        for peer in known
        for item in peer["health"]
    ]
    return Overview(
        at=now,
        mesh=status["mesh"],
        name=status["name"],
        software=status["software"],
        uptime_s=_rounded(status["uptime_s"], 0) or 0.0,
        may_deploy=bool(_DEPLOYERS & set(status["roles"])),
        nodes=[_own(status, load), *(_peer(peer, names) for peer in known)],
        rings=[_ring(ring) for ring in rings],
        health=own + others,
        jobs=[_job(job) for job in jobs],
        events=[_event(event) for event in events[-EVENTS:]],
    )


def _own(status: Told, load: Told) -> Node:
    parts = [Part(e["what"].rpartition(" of ")[2], e["what"], e["phase"])
             for e in status["engines"]]  # fmt: skip
    return Node(
        id=status["node"], name=status["name"], own=True, roles=list(status["roles"]),
        tags=list(status["tags"]), presence="self", draining=status["draining"],
        software=status["software"], path=None, load=_load(load), parts=parts,
    )  # fmt: skip


def _peer(peer: Told, names: Mapping[str, str]) -> Node:
    relay = peer.get("relay")
    # As the command line has it: without a session nothing flows, whatever was planned.
    route = peer.get("route", peer["path"])
    reached = peer["path"] != "none" or route == "asleep"
    rtt_ms = peer.get("path_rtt_ms")
    if rtt_ms is None and reached and route != "asleep":
        rtt_ms = peer["rtt_ms"]
    path = Path(
        route=route if reached else "none",
        rtt_ms=_rounded(rtt_ms, 1),
        jitter_ms=_rounded(peer.get("path_jitter_ms"), 1),
        loss=_rounded(peer.get("path_loss"), 3),
        relay=names.get(relay, f"…{relay[-8:]}") if relay else "",
        why=peer.get("why") or "",
        mtu=peer.get("path_mtu"),
        handshake_age_s=_rounded(peer["handshake_age_s"], 0),
        down_bytes_s=_rounded(peer["rx_bytes_s"], 0),
        up_bytes_s=_rounded(peer["tx_bytes_s"], 0),
    )
    return Node(
        id=peer["node"], name=peer["name"], own=False, roles=list(peer["roles"]),
        tags=list(peer["tags"]), presence=peer["presence"], draining=peer["draining"],
        software=peer["software"], path=path,
        load=_load(peer["load"]) if peer["load"] else None,
        parts=[Part(m["name"], m["part"], m["phase"]) for m in peer["models"]],
    )  # fmt: skip


def _load(load: Told) -> Load:
    # Free memory changes with every second; nobody looks at less than a megabyte of it.
    free = int(load["free_bytes"]) >> 20 << 20
    return Load(free, load["cores"], round(load["load"], 1), load["engines"])


def _ring(ring: Told) -> Ring:
    return Ring(
        name=ring["name"], key=ring["key"], number=ring["number"], rings=ring["rings"],
        # Of a file, its name: where it lies is for those who may look there.
        model=ring["model"].rpartition("/")[2], engine=ring["engine"],
        draft=ring["draft"].rpartition("/")[2], objective=ring["wish"]["objective"],
        phase=ring["phase"], progress=ring["progress"], context=ring["context"],
        owner=ring["owner_name"], head=ring["head_name"],
        stages=[msgspec.convert(stage, Layers) for stage in ring["stages"]],
        reasons=list(ring["reasons"]), error=_trouble(ring["error"]),
        stays=ring["stays"], gain=ring["gain"],
    )  # fmt: skip


def _job(job: Told) -> Job:
    return Job(
        job=job["job"], kind=job["kind"], name=job["name"], phase=job["phase"], done=job["done"],
        total=job["total"], rate=round(job["rate"]), left_s=_rounded(job["left_s"], 0),
        note=job["note"], error=_trouble(job["error"]),
    )  # fmt: skip


def _event(event: Told) -> Event:
    return Event(
        event["number"], event["at"], event["told_by"], event["kind"], event["subject"],
        event["text"],
    )  # fmt: skip


def _trouble(error: Told | None) -> Trouble | None:
    return None if error is None else Trouble(error["message"], error.get("hint", ""))


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
