"""What kinds of NAT the lab has, and the nftables rules and daemon settings that make each. A core.

Used by `natlab.py`, which puts them into namespaces. A NAT is judged by two things (RFC 4787): its
mapping, whether all places that one socket sends to see one outer port, and its filtering, who gets
in through that port.

What Linux does, which the kinds rest on:

* `masquerade` keeps a socket's port when no other flow to the same place has it, and gives a socket
  that already has an outer port the same one for the next place. So it is endpoint-independent, but
  for two machines that send from one port to one place. Its filter is conntrack: address and port.
* `masquerade random,fully-random` draws a port for each flow anew: endpoint-dependent.
* A filter by address alone, and hairpinning, need the outer port's owner for packets that conntrack
  does not know: rules behind the NAT note them in a map, which the next packets' DNAT looks up.
* Without a firewall a router takes a stranger's packet for itself, and that flow holds the outer
  port against the machine inside that answers a moment later (kind `bare`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

# A gateway's interfaces: towards the internet, and the bridge that its machines are on.
WAN, LAN = "wan", "lan"
# The outer ports of a NAT that was remapped for the Nth time begin at FIRST + N * SPAN. WireGuard's
# default port, the ephemeral range, and what the rendezvous use lie outside.
_REMAP_FIRST, _REMAP_SPAN, _REMAPS = 12000, 2000, 9
# More places and ports than any test opens.
_MEMORY = 65535


class Mapping(enum.Enum):
    """What the places that one socket sends to see of its port."""

    NONE = "its own port"
    SAME = "one outer port"
    DIFFERS = "another outer port each"


class Filtering(enum.Enum):
    """Who gets in through an outer port."""

    OPEN = "anyone"
    ADDRESS = "addresses that were sent to"
    PORT = "places that were sent to"


@dataclass(frozen=True)
class Kind:
    """One kind of site.

    `together`: a pair of this kind is two machines of one site. `levels`: NATs in a row that a
    site's machines share. `homes`: each machine has a NAT of its own besides, and the shared one is
    a carrier's. `ipv6`: machines have global IPv6 addresses; behind a NAT its router is their
    firewall, which admits only answers.
    """

    name: str
    text: str
    mapping: Mapping = Mapping.SAME
    filtering: Filtering = Filtering.PORT
    levels: int = 1
    homes: bool = False
    hairpin: bool = False
    firewall: bool = True
    udp: bool = True
    upnp: bool = False
    pmp: bool = False
    ipv6: bool = False
    together: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("public", "an address of its own, IPv4 and IPv6", Mapping.NONE, Filtering.OPEN,
             levels=0, ipv6=True),
        Kind("easy", "a home router: one outer port a socket, lets in who was sent to"),
        Kind("address", "as easy, but lets in any port of an address that was sent to",
             filtering=Filtering.ADDRESS),
        Kind("bare", "as easy, on a router without a firewall of its own", firewall=False),
        Kind("hard", "another outer port for each place", Mapping.DIFFERS),
        Kind("upnp", "as easy, with UPnP, NAT-PMP and PCP", upnp=True, pmp=True),
        Kind("hard-pmp", "as hard, with NAT-PMP and PCP", Mapping.DIFFERS, pmp=True),
        Kind("double", "two easy NATs in a row", levels=2),
        Kind("lan", "two machines behind one easy NAT that does not hairpin", together=True),
        Kind("cgnat", "homes behind one carrier's NAT that hairpins", homes=True, hairpin=True,
             together=True),
        Kind("blocked", "an office: no UDP passes, TCP does", udp=False),
        Kind("ipv6", "IPv6 behind a firewall that admits answers, and IPv4 behind a hard NAT",
             Mapping.DIFFERS, ipv6=True),
    )
}  # fmt: skip
# What a home's own NAT in front of a carrier's is.
HOME = KINDS["easy"]


def gateway(kind: Kind, address: str, timeout_s: int, remaps: int = 0) -> str:
    """Return the rules of a gateway of this kind with this outer address, replacing those it has.

    `remaps` times it has given its flows new ports.
    """
    return "\n".join(
        [
            "table inet lab", "delete table inet lab", "table inet lab {",
            *(_memory(timeout_s) if _remembers(kind) else []),
            *_forward(), *_input(kind), *_nat(kind, address, remaps), "}", "",
        ]
    )  # fmt: skip


def _remembers(kind: Kind) -> bool:
    return kind.hairpin or kind.filtering is Filtering.ADDRESS


def _memory(timeout_s: int) -> list[str]:
    """Return what notes whose each outer port is, and which addresses were sent to from it.

    It stands behind the NAT, where packets have their outer port already. Answers in flows that
    came from outside are left out: their original source is the stranger.
    """
    held = f"size {_MEMORY}; flags dynamic,timeout; timeout {timeout_s}s;"
    learn = [
        "type filter hook postrouting priority 110;",
        f'ct direction original meta nfproto ipv4 oifname "{WAN}" meta l4proto udp update @owner '
        "{ udp sport : ct original ip saddr . ct original proto-src } "
        "update @talked { ip daddr . udp sport }",
    ]
    return [
        f"map owner {{ type inet_service : ipv4_addr . inet_service; {held} }}",
        f"set talked {{ type ipv4_addr . inet_service; {held} }}",
        *_chain("learn", learn),
    ]


def _forward() -> list[str]:
    rules = ["type filter hook forward priority 0; policy drop;",
             "ct state established,related accept",
             f'iifname "{LAN}" oifname "{WAN}" accept',
             # What a port mapping, the filter by address or hairpinning let in.
             "ct status dnat accept"]  # fmt: skip
    return _chain("forward", rules)


def _input(kind: Kind) -> list[str]:
    if not kind.firewall:
        return []
    return _chain("input", ["type filter hook input priority 0; policy drop;",
                            f'iifname != "{WAN}" accept',
                            "ct state established,related accept",
                            "meta l4proto { icmp, ipv6-icmp } accept"])  # fmt: skip


def _nat(kind: Kind, address: str, remaps: int) -> list[str]:
    before = ["type nat hook prerouting priority -100;"]
    after = ["type nat hook postrouting priority 100;"]
    if kind.filtering is Filtering.ADDRESS:
        before.append(
            f'iifname "{WAN}" ip saddr . udp dport @talked dnat ip to udp dport map @owner'
        )
    if kind.hairpin:
        before.append(f'iifname "{LAN}" ip daddr {address} dnat ip to udp dport map @owner')
        after.append(f'iifname "{LAN}" oifname "{LAN}" ct status dnat snat ip to {address}')
    outward = f'meta nfproto ipv4 oifname "{WAN}"'
    if kind.mapping is Mapping.DIFFERS:
        after.append(f"{outward} masquerade random,fully-random")
    elif remaps:
        # A port outside the range is not kept, so all flows that begin now have a new one.
        low = _REMAP_FIRST + (remaps - 1) % _REMAPS * _REMAP_SPAN
        ports = f"{low}-{low + _REMAP_SPAN - 1}"
        after.append(f"{outward} meta l4proto {{ tcp, udp }} masquerade to :{ports}")
    after.append(f"{outward} masquerade")
    return [*_chain("prerouting", before), *_chain("postrouting", after)]


def weather(link: str, loss_percent: float, udp: bool) -> str:
    """Return the internet's rules for what passes one site's link, replacing those it has."""
    rules = []
    if not udp:
        rules.append("meta l4proto udp drop")
    if loss_percent >= 100:
        rules.append("drop")
    elif loss_percent > 0:
        rules.append(f"numgen random mod 1000 < {round(loss_percent * 10)} drop")
    return "\n".join(
        [
            f"table inet {link}", f"delete table inet {link}", f"table inet {link} {{",
            *_chain("weather", rules),
            *_chain("forward", ["type filter hook forward priority 0;",
                                f'iifname "{link}" jump weather',
                                f'oifname "{link}" jump weather']),
            "}", "",
        ]
    )  # fmt: skip


def apart(one: str, other: str, yes: bool) -> str:
    """Return the internet's rules that keep two sites' links from each other, or let them."""
    rules = ["type filter hook forward priority 0;"]
    for source, target in ((one, other), (other, one)) if yes else ():
        rules.append(f'iifname "{source}" oifname "{target}" drop')
    table = f"apart-{one}-{other}"
    return "\n".join(
        [f"table inet {table}", f"delete table inet {table}", f"table inet {table} {{",
         *_chain("forward", rules), "}", ""]
    )  # fmt: skip


# The chains that miniupnpd fills. Those that are hooked come before the gateway's own; forwarding
# needs none, since the gateway lets in whatever was DNATed.
MAPPER_CHAINS = """table inet miniupnpd {
chain forward_miniupnpd { }
chain prerouting_miniupnpd { }
chain postrouting_miniupnpd { }
chain prerouting { type nat hook prerouting priority -101; jump prerouting_miniupnpd; }
chain postrouting { type nat hook postrouting priority 99; jump postrouting_miniupnpd; }
}
"""


def mapper(kind: Kind, lan: str, directory: str) -> str:
    """Return miniupnpd's configuration for a gateway of this kind; `lan` is its network."""

    def said(yes: bool) -> str:
        return "yes" if yes else "no"

    return "\n".join(
        [
            f"ext_ifname={WAN}", f"listening_ip={LAN}", "ipv6_disable=yes", "http_port=0",
            f"enable_upnp={said(kind.upnp)}", f"enable_natpmp={said(kind.pmp)}",
            "min_lifetime=1", "max_lifetime=86400", "secure_mode=yes", "system_uptime=no",
            "upnp_table_name=miniupnpd", "upnp_nat_table_name=miniupnpd",
            "upnp_forward_chain=forward_miniupnpd", "upnp_nat_chain=prerouting_miniupnpd",
            "upnp_nat_postrouting_chain=postrouting_miniupnpd",
            f"lease_file={directory}/leases", "uuid=c0ffee00-0000-4000-8000-000000000001",
            f"allow 1024-65535 {lan} 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535", "",
        ]
    )  # fmt: skip


def _chain(name: str, rules: list[str]) -> list[str]:
    return [f"chain {name} {{", *rules, "}"]
