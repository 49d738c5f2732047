"""When an appliance may restart into another version: one node of a ring at a time. A core.

A mate is another node of a ring that has a stage here, or its head. This node waits for one that is
    away                      a ring that lacks one node may come up without it; two are too many
    on trial                  it may restart yet
    leaving                   it says that it restarts, or would
    writing, or has written   only if its id is the lower one, so of two one goes first

A look at the others is old when it ends. So who would restart says first that it is leaving, and
then looks (`Turn`): of two at least one sees the other. The one with the higher id takes it back
and waits; the one with the lower id stays by it, and goes once the other has taken it back, or is
here again. That is Burns' and Lamport's one-bit algorithm (Lamport, The Mutual Exclusion Problem,
1986), which needs no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from agent.unreadable import UNREADABLE

Standing = Literal["good", "writing", "written", "trial", "leaving", "away"]
_WORDS: Mapping[Standing, str] = {
    "away": "is away",
    "trial": "has a version on trial",
    "leaving": "is about to restart",
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
    except UNREADABLE:
        return "away"


def why_wait(own: str, others: Iterable[Mate]) -> str:
    """Return as a clause why this node may not restart now; "" when it may ask for its turn."""
    found = list(others)
    return _clause(_before(own, found)) or _clause(_leaving(found))


@dataclass
class Turn:
    """One node's way to a restart; while `leaving` it says so to who asks."""

    leaving: bool = False

    def look(self, own: str, others: Iterable[Mate]) -> str | None:
        """Take in how the others stand, each asked after this node did what `leaving` says.

        Return None when this node may restart, and otherwise as a clause why not; "" when it has
        but to look again, now that it is leaving.
        """
        found = list(others)
        if why := _clause(_before(own, found)):
            self.leaving = False
            return why
        if why := _clause(_leaving(found)):
            return why
        if self.leaving or not found:
            return None
        self.leaving = True
        return ""


def _before(own: str, others: list[Mate]) -> Mate | None:
    """Return one for whom this node makes room."""
    for mate in others:
        if mate.standing in ("away", "trial") or (mate.node < own and mate.standing != "good"):
            return mate
    return None


def _leaving(others: list[Mate]) -> Mate | None:
    return next((mate for mate in others if mate.standing == "leaving"), None)


def _clause(mate: Mate | None) -> str:
    if mate is None:
        return ""
    shared = " and ".join(mate.deployments)
    return f"{mate.name}, which has a part of {shared} too, {_WORDS[mate.standing]}"
