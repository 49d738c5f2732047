"""What the page polls: the mesh, the gateway if one serves it, and what who asks may do. A core.

    served by   mesh                          gateway   you
    agent       what it knows                 null      may look
    gateway     what its agent knows, null    itself    may chat; with an admin key, act too
                where it has none, and why

Times are in seconds, but for `token_ms` and RTTs; None: not known.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

import msgspec

from agent.page.overview import Overview

_ETAG_DIGITS = 24


class Live(msgspec.Struct, frozen=True):
    """A request that is served now. `replica` "": it waits for one; `first_s`: to its first byte.

    `key` is whose it is, for who may know that.
    """

    id: str
    model: str
    operation: str
    replica: str
    streamed: bool
    age_s: float
    first_s: float | None = None
    key: str = ""


class Past(msgspec.Struct, frozen=True):
    """A request that has ended, `ago_s` before; tokens where its answer said how many."""

    id: str
    model: str
    operation: str
    replica: str
    streamed: bool
    ago_s: float
    seconds: float
    status: int
    first_s: float | None = None
    token_s: float | None = None
    prompt: int | None = None
    completion: int | None = None
    error: str = ""
    key: str = ""


class Replica(msgspec.Struct, frozen=True):
    """Who answers requests; `first_s` and `token_s` are what its answers took of late."""

    name: str
    source: str
    models: list[str]
    usable: bool
    reason: str
    breaker: str
    in_flight: int
    requests: int
    first_s: float | None
    token_s: float | None
    rtt_s: float | None


class Served(msgspec.Struct, frozen=True):
    """A model that may be asked for, and how many of its replicas can be used."""

    id: str
    usable: int


class Gateway(msgspec.Struct, frozen=True):
    """The gateway: `agent` is "ok", "not asked", or why its agent does not answer.

    `waiting` counts requests by what they wait for: a place, or a head.
    """

    strategy: str
    agent: str
    keys_required: bool
    models: list[Served]
    replicas: list[Replica]
    in_flight: int
    waiting: dict[str, int]
    live: list[Live]
    past: list[Past]


class You(msgspec.Struct, frozen=True):
    """Who asks: their key's name, "" for none. `needs` says what is missing to act; "": nothing."""

    key: str = ""
    admin: bool = False
    needs: str = ""


class State(msgspec.Struct, frozen=True):
    """All of it. `missing` says why there is no mesh."""

    served_by: Literal["agent", "gateway"]
    mesh: Overview | None
    missing: str
    gateway: Gateway | None
    you: You


def encoded(state: State) -> tuple[bytes, str]:
    """Return a state as JSON, and its ETag: another where anything in it differs."""
    body = msgspec.json.encode(state)
    return body, f'"{sha256(body).hexdigest()[:_ETAG_DIGITS]}"'
