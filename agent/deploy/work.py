"""What still runs on a node that is draining, and what becomes of each: for `agent drain`. A core.

Used by `deployments.py`, with what the board says of all deployments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Described = Mapping[str, Any]
"""A deployment as the board describes it."""


def work_here(
    own: str, name: str, heads: Mapping[str, str], stages: Sequence[tuple[str, int]],
    described: Sequence[Described], *, others: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return what runs on the node `own` (an id), which is called `name`.

    `heads` are the phases of the deployments whose head it is, `stages` the others' (ring, index),
    `others` says whether another worker could take a head. Of each: `deployment`, `what`, `state`
    for people, and whether it `stays`, as it stands now.
    """
    by_name = {str(one["name"]): one for one in described}
    by_ring = {str(one["ring"]): one for one in described if one["ring"]}
    found = []
    for deployment, phase in sorted(heads.items()):
        state, stays = _head(own, name, phase, by_name.get(deployment), others=others)
        found.append(_item(deployment, "head", state, stays=stays))
    for ring, index in sorted(stages):
        one = by_ring.get(ring)
        deployment = str(one["name"]) if one else f"ring {ring[:8]}"
        why = str(one["stays"]) if one else ""
        state = why or ("its head builds it without this node" if one else "its head ends it")
        found.append(_item(deployment, f"stage {index}", state, stays=bool(why)))
    return found


def _head(
    own: str, name: str, phase: str, one: Described | None, *, others: bool
) -> tuple[str, bool]:
    """Return what becomes of a deployment whose head is here, and whether it stays."""
    if phase == "draining":
        return "its last answers are written", False
    if one is None:
        return "it was undeployed", False
    if one["source"] == own:
        return f"its file {one['model']} lies on {name} alone", True
    if not others:
        return "no other worker is there that is not draining", True
    if one["head"] in ("", own):
        return "its owner looks for another head", False
    if one["phase"] in ("waiting", "failed"):
        return f"it does not come up on {one['head_name']}: {one['progress']}", True
    return f"it comes up on {one['head_name']} ({one['phase']})", False


def _item(deployment: str, what: str, state: str, *, stays: bool) -> dict[str, Any]:
    return {"deployment": deployment, "what": what, "state": state, "stays": stays}
