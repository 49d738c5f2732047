"""When an appliance may restart into another version: one node of a ring at a time. A core.

A mate is another node of a ring that has a stage here, or its head. This node waits for one that is
    away                      a ring that lacks one node may come up without it; two are too many
    on trial                  it may restart yet
    writing, or has written   only if its id is the lower one, so of two one goes first
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

Standing = Literal["good", "writing", "written", "trial", "away"]
_WORDS: Mapping[Standing, str] = {
    "away": "is away",
    "trial": "has a version on trial",
    "writing": "is being updated",
    "written": "has an update to restart into",
}


class _Said(msgspec.Struct):
    """What an appliance answers to `GET /appliance`; later versions may say more."""

    standing: Standing


@dataclass(frozen=True)
class Mate:
    """Another node of a ring of this one: `deployments` are those rings'."""

    node: str
    name: str
    deployments: tuple[str, ...]
    standing: Standing


def mates(own: str, deployments: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the nodes that share a ring with `own`, and of which deployments.

    `deployments` are described as `GET /v1/deployments` does, one for each ring.
    """
    found: dict[str, set[str]] = {}
    for ring in deployments:
        nodes = {ring["head"], *(stage["node"] for stage in ring["stages"])} - {""}
        if own in nodes:
            for node in nodes - {own}:
                found.setdefault(node, set()).add(ring["name"])
    return {node: tuple(sorted(names)) for node, names in sorted(found.items())}


def standing(raw: bytes) -> Standing:
    """Return how a node stands by its answer; nonsense counts as none."""
    try:
        return msgspec.json.decode(raw, type=_Said).standing
    except msgspec.DecodeError:
        return "away"


def why_wait(own: str, others: Iterable[Mate]) -> str:
    """Return as a clause why this node may not restart now; "" when it may."""
    for mate in others:
        first = mate.node < own
        if mate.standing in ("away", "trial") or (
            first and mate.standing in ("writing", "written")
        ):
            shared = " and ".join(mate.deployments)
            return f"{mate.name}, which has a part of {shared} too, {_WORDS[mate.standing]}"
    return ""
