"""All checks, and what follows from them. A core; a new check is added to `CHECKS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.doctor import company, compute, network, system
from agent.doctor.facts import Facts
from agent.health import HealthItem, ordered


@dataclass(frozen=True)
class Check:
    """A pure function over facts, and all codes that its items may have.

    It returns one item, or None where there is nothing to look at. In an item that is `ok` the code
    is that of the fault which it is not.
    """

    look: Callable[[Facts], HealthItem | None]
    codes: tuple[str, ...]


CHECKS = (
    Check(company.agent, ("agent-down", "no-mesh", "state-unreadable")),
    Check(system.wireguard, ("wireguard-missing", "wireguard-userspace")),
    Check(system.tun, ("tun-missing",)),
    Check(system.rights, ("rights-missing", "raw-sockets-missing")),
    Check(system.ipv6, ("ipv6-missing",)),
    Check(system.ports, ("port-taken",)),
    Check(network.filtered, ("firewall-drops",)),
    Check(network.nat, ("udp-blocked", "nat-hard", "nat-unknown")),
    Check(system.clock, ("clock-behind", "clock-not-kept")),
    Check(network.mtu, ("mtu-small",)),
    Check(network.mdns, ("mdns-blocked",)),
    Check(network.vpn, ("vpn-takes-all", "vpn-beside")),
    Check(network.addresses, ("address-conflict",)),
    Check(system.disk, ("disk-low",)),
    Check(system.memory, ("memory-low",)),
    Check(compute.gpu, ("gpu-unused", "gpu-driver", "gpu-fails")),
    Check(compute.cpu, ("cpu-masked", "llama-missing")),
    Check(company.company, ("sees-only-itself", "only-member")),
    Check(company.versions, ("versions-mixed",)),
)
# Of these no part of the agent may set an item by itself.
CODES = frozenset(code for check in CHECKS for code in check.codes)


def examine(facts: Facts) -> list[HealthItem]:
    """Return an item of each check that has something to look at, the severest first."""
    found = (check.look(facts) for check in CHECKS)
    return ordered(item for item in found if item is not None)


def together(examined: Iterable[HealthItem], told: Iterable[HealthItem]) -> list[HealthItem]:
    """Return what was found now, and what the agent's parts tell of themselves.

    What the agent found by these same checks some minutes ago is left out.
    """
    return ordered([*examined, *(item for item in told if item.code not in CODES)])
