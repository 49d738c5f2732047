"""What still runs on a node that is draining, and what becomes of each: for `agent drain`. A core.

Used by `deployments.py`, with what the board says of all deployments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

Described = Mapping[str, Any]
"""A deployment as the board describes it."""


def work_here(
    own: str, name: str, heads: Mapping[str, str], stages: Sequence[tuple[str, int]],
    described: Sequence[Described], others: Collection[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return what runs on the node `own` (an id), which is called `name`.

    `heads` are the phases of the deployments whose head it is, by their keys, `stages` the others'
    (ring, index), `others` the other workers (ids) that could take a head. Of each: `deployment`,
    `what`, `state` for people, and whether it `stays`, as it stands now.
    """
    by_key = {str(one["key"]): one for one in described}
    by_ring = {str(one["ring"]): one for one in described if one["ring"]}
    found = []
    for deployment, phase in sorted(heads.items()):
        one = by_key.get(deployment)
        besides = nodes_besides(one, described) if one is not None else frozenset()
        state, stays = _head(own, name, phase, one, others, besides)
        found.append(_item(deployment, "head", state, stays=stays))
    for ring, index in sorted(stages):
        one = by_ring.get(ring)
        deployment = str(one["key"]) if one else f"ring {ring[:8]}"
        why = str(one["stays"]) if one else ""
        state = why or ("its head builds it without this node" if one else "its head ends it")
        found.append(_item(deployment, f"stage {index}", state, stays=bool(why)))
    return found


def nodes_besides(one: Described, described: Sequence[Described]) -> frozenset[str]:
    """Return the nodes of the other rings of a ring's deployment, none where it has one alone."""
    return frozenset(
        node
        for other in described
        if other["name"] == one["name"] and other["key"] != one["key"]
        for node in (other["head"], *(stage["node"] for stage in other["stages"]))
        if node
    )


def _head(
    own: str, name: str, phase: str, one: Described | None, others: Collection[str],
    besides: frozenset[str],
) -> tuple[str, bool]:  # fmt: skip
    """Return what becomes of a deployment whose head is here, and whether it stays."""
    if phase == "draining":
        return "its last answers are written", False
    if one is None:
        return "it was undeployed", False
    if one["source"] == own:
        return f"its file {one['model']} lies on {name} alone", True
    if not others:
        return "no other worker is there that is not draining", True
    if one["head"] in ("", own) and besides.issuperset(others):
        return "every other worker has part in another of its rings", True
    if one["head"] in ("", own):
        return "its owner looks for another head", False
    if one["phase"] in ("waiting", "failed"):
        return f"it does not come up on {one['head_name']}: {one['progress']}", True
    return f"it comes up on {one['head_name']} ({one['phase']})", False


def _item(deployment: str, what: str, state: str, *, stays: bool) -> dict[str, Any]:
    return {"deployment": deployment, "what": what, "state": state, "stays": stays}
