"""Forwarding of pairs as an nftables table of this node. A core.

One table, `inet covey-relay-INTERFACE`. Addresses and ports are rewritten packet by packet, without
connection tracking: a change of place takes effect with the rules, nothing has to be flushed, and
the machine's tracking table does not grow with the pairs.

    enter   prerouting, raw: from a seat to its port → counted, limited, sent on to the other seat
    leave   postrouting: what `enter` sent on gets the other side's port as its source

Only datagrams between two seats and their two ports are touched; our own (`wire.MAGIC`) go up to
the agent. The table holds its pairs by elements that time out: those of an agent that was killed
end by themselves. `in-…` counts what came, `out-…` what went; if the second stays behind, another
table drops what is forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from agent.acl import ruleset as acl
from agent.probing.port import MAGIC
from agent.relay.pairs import Pair, Seat

# Elements are written anew well before; an agent that is dead leaves forwarding for so long.
ELEMENT_S = 150
# A burst of a tenth of a second passes at any rate, and at low rates some packets.
_BURST_MIN_BYTES = 64 * 1024
_MAPS = ("in4", "in6", "out4", "out6")
_FAMILIES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


@dataclass(frozen=True)
class Route:
    """A pair with both seats, of one family."""

    pair: Pair
    seats: tuple[Seat, Seat]


def table_name(interface: str) -> str:
    """Return the table's name for an overlay interface."""
    return acl.table_name(interface).replace("covey-", "covey-relay-", 1)


def removal(interface: str) -> str:
    """Return the commands that remove the table, whether it is there or not."""
    table = f"table inet {table_name(interface)}"
    return f"{table}\ndelete {table}\n"


def base(interface: str, ports: range) -> str:
    """Return the commands that make the table anew, without pairs."""
    lines = [f"table inet {table_name(interface)} {{"]
    for name in _MAPS:
        family, kind = _FAMILIES[int(name[-1])]
        lines.append(
            f"  map {name} {{ type {kind} . inet_service . {kind} . inet_service : verdict; "
            "flags timeout; }"
        )
    lines.append("  chain enter {")
    lines.append("    type filter hook prerouting priority raw; policy accept;")
    for version, (family, _) in _FAMILIES.items():
        lines.append(f"    udp dport {ports[0]}-{ports[-1]} {_key(family)} vmap @in{version}")
    lines.append("  }\n  chain leave {")
    # After other source NAT, which sees tracked packets alone.
    lines.append("    type filter hook postrouting priority srcnat + 10; policy accept;")
    for version, (family, _) in _FAMILIES.items():
        lines.append(f"    meta l4proto udp ct state untracked {_key(family)} vmap @out{version}")
    lines.append("  }\n}")
    return removal(interface) + "\n".join(lines) + "\n"


def change(interface: str, before: Iterable[Route], after: Iterable[Route]) -> str:
    """Return the commands that replace the routes `before` by those `after`, in one transaction.

    Also with equal routes, to write their elements anew.
    """
    table = f"inet {table_name(interface)}"
    old, new = ({route.pair.id: route for route in routes} for routes in (before, after))
    lines = [f"flush map {table} {name}" for name in _MAPS]
    for identity in old.keys() - new.keys():
        for side in (0, 1):
            name = _name(identity, side)
            lines += [f"delete chain {table} in-{name}", f"delete chain {table} out-{name}",
                      f"delete counter {table} in-{name}",
                      f"delete counter {table} out-{name}"]  # fmt: skip
    for identity, route in new.items():
        for side in (0, 1):
            name = _name(identity, side)
            if identity not in old:
                lines += [
                    f"add counter {table} in-{name}",
                    f"add counter {table} out-{name}",
                    f"add chain {table} in-{name}",
                    f"add chain {table} out-{name}",
                ]
            if route != old.get(identity):
                lines += _chains(table, name, route, side)
            lines += _elements(table, name, route, side)
    return "\n".join(lines) + "\n"


def counted(
    counters: Mapping[str, tuple[int, int]], route: Route
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the bytes that came from each side, and the packets (came, went) of both together."""
    came = [counters.get(f"in-{_name(route.pair.id, side)}", (0, 0)) for side in (0, 1)]
    went = [counters.get(f"out-{_name(route.pair.id, side)}", (0, 0)) for side in (0, 1)]
    # Counters count whole packets; quotas are about what the sides sent, so without headers.
    header = 8 + (20 if route.seats[0].family == 4 else 40)
    first, second = (size - packets * header for packets, size in came)
    return (first, second), (came[0][0] + came[1][0], went[0][0] + went[1][0])


def _chains(table: str, name: str, route: Route, side: int) -> list[str]:
    """Return the rules for what one side sends."""
    other = route.seats[1 - side]
    family, _ = _FAMILIES[other.family]
    rate = route.pair.rate_bytes_s
    burst = max(_BURST_MIN_BYTES, rate // 10)
    enter = [
        f"@th,64,32 0x{MAGIC.hex()} return",
        f"limit rate over {rate} bytes/second burst {burst} bytes drop",
        f"counter name in-{name}",
        f"{family} daddr set {_text(other.place[0])} udp dport set {other.place[1]} notrack accept",
    ]
    leave = [
        f"counter name out-{name}",
        f"{family} saddr set {_text(other.local)} udp sport set {route.pair.ports[1 - side]}",
    ]
    return [
        f"flush chain {table} in-{name}",
        f"flush chain {table} out-{name}",
        *(f"add rule {table} in-{name} {rule}" for rule in enter),
        *(f"add rule {table} out-{name} {rule}" for rule in leave),
    ]


def _elements(table: str, name: str, route: Route, side: int) -> list[str]:
    here, there = route.seats[side], route.seats[1 - side]
    source = f"{_text(here.place[0])} . {here.place[1]}"
    comes = f"{source} . {_text(here.local)} . {route.pair.ports[side]}"
    goes = f"{source} . {_text(there.place[0])} . {there.place[1]}"
    version = here.family
    return [
        f"add element {table} in{version} {{ {comes} timeout {ELEMENT_S}s : jump in-{name} }}",
        f"add element {table} out{version} {{ {goes} timeout {ELEMENT_S}s : jump out-{name} }}",
    ]


def _key(family: str) -> str:
    return f"{family} saddr . udp sport . {family} daddr . udp dport"


def _name(identity: bytes, side: int) -> str:
    return f"{identity.hex()}{'ab'[side]}"


def _text(address: str) -> str:
    """Return an address as nft takes it: never anything that a peer could have written."""
    return str(ip_address(address))
