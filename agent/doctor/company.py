"""Checks of the agent and of who else is there: alone, mixed versions. A core."""

from __future__ import annotations

from agent.doctor.facts import Agent, Facts
from agent.health import HealthItem

# Members find each other within seconds; a machine that starts may take longer.
SETTLED_S = 60.0


def agent(facts: Facts) -> HealthItem:
    """Whether the agent runs, and whether it is to."""
    if facts.agent is not None:
        text = f"{facts.agent.name} of mesh {facts.agent.mesh} is up."
        return HealthItem("agent-down", "ok", "Agent", text)
    if facts.state_fault:
        return HealthItem(
            "state-unreadable", "error", "The node's state cannot be read", facts.state_fault,
            facts.hint,
        )  # fmt: skip
    if facts.member is None:
        return HealthItem(
            "no-mesh", "note", "This node is in no mesh", "No agent is to run here yet.",
            "`agent join TICKET` joins one, `agent mesh create NAME` makes one.",
        )  # fmt: skip
    return HealthItem(
        "agent-down", "error", "No agent answers",
        f"This node is a member of {facts.member.mesh}, and {facts.fault or 'no agent answers'}.",
        facts.hint or "Start it with `agent up`.",
    )  # fmt: skip


def company(facts: Facts) -> HealthItem | None:
    """Whether the agent sees any other member."""
    found = facts.agent
    if found is None:
        return None
    if not found.peers.known:
        return HealthItem(
            "only-member", "note", "Nobody else is in this mesh", "One node alone is no mesh yet.",
            "`agent invite` makes a ticket for another.",
        )  # fmt: skip
    if sees_nobody(found):
        return HealthItem(
            "sees-only-itself", "warning", "This node sees only itself",
            f"Of {found.peers.known} other members none is reached, neither by WireGuard nor by "
            "the control plane.",
            "See whether others are up (`agent members`), and what this network lets through "
            "(`agent netcheck`). If all have moved, network.bootstrap names one, as HOST:PORT.",
        )  # fmt: skip
    reached = found.peers.connected
    text = f"{reached} of {found.peers.known} others are connected."
    return HealthItem("sees-only-itself", "ok", "Members", text)


def sees_nobody(found: Agent) -> bool:
    """Say whether there are others, and it reaches none of them, although it had time to."""
    reached = found.peers.connected + found.peers.asleep + found.peers.linked
    return found.peers.known > 0 and not reached and found.uptime_s > SETTLED_S


def versions(facts: Facts) -> HealthItem | None:
    """Whether all members that are there run the same version."""
    found = facts.agent
    if found is None:
        return None
    others = tuple(
        f"{peer.name} has {peer.software}"
        for peer in found.peer_list
        if peer.presence == "alive" and peer.software not in ("", found.software)
    )
    if not others or not found.software:
        return HealthItem("versions-mixed", "ok", "Versions", f"All have {found.software}.")
    return HealthItem(
        "versions-mixed", "warning", "Members run different versions",
        f"This node has {found.software}. During an update that is so for a while; left so, what "
        "is new on one side is missing on the other.",
        "Bring all to the same version (on appliances `agent update --from MEMBER`).", others,
    )  # fmt: skip
