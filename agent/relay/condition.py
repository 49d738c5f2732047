"""What is wrong with a relay, as health items. A core; used by `service.py`.

Only a node with the role relay is expected to relay as well as can be, so only there is it a fault
that packets go through the agent, or that there is no tunnel. That it cannot relay at all, although
a member asked, is one everywhere.
"""

from __future__ import annotations

from agent.errors import EnvironmentFault
from agent.health import HealthItem

SLOW, NO_TUNNEL, NO_PORTS = "relay-slow", "relay-no-tunnel", "relay-no-ports"
CODES = (SLOW, NO_TUNNEL, NO_PORTS)


def faults(
    slow: EnvironmentFault | None,
    tunnel: EnvironmentFault | None,
    ports: EnvironmentFault | None,
    *,
    expected: bool,
) -> list[HealthItem]:
    """Return what is wrong: why not in the kernel, why no tunnel, why no ports; None is right.

    `expected`: the node has the role relay.
    """
    found: list[HealthItem] = []
    if slow is not None and expected:
        found.append(
            HealthItem(
                SLOW, "warning", "Relaying is slow",
                f"The agent passes on packets by itself instead of the kernel: {slow.message}.",
                slow.hint or "See `dmesg` for why the kernel refuses.",
            )
        )  # fmt: skip
    if tunnel is not None and expected:
        found.append(
            HealthItem(
                NO_TUNNEL, "warning", "Members whose UDP is blocked find no relay here",
                f"{tunnel.message}.", f"{tunnel.hint} It is tried again by itself.".lstrip(),
            )
        )  # fmt: skip
    if ports is not None:
        found.append(
            HealthItem(
                NO_PORTS, "error", "This node cannot relay", f"{ports.message}.", ports.hint
            )
        )  # fmt: skip
    return found
