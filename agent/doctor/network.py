"""Checks of what stands between this node and the others, and what else is there. A core.

NAT and UDP are judged by the path engine (`agent.paths.natkind`), in words by
`agent.traversal.verdict`; here they become items.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.doctor import firewall
from agent.doctor.company import SETTLED_S
from agent.doctor.facts import Facts, Link
from agent.health import HealthItem
from agent.overlay.device import DEFAULT_MTU
from agent.paths.messages import NatKind
from agent.traversal import verdict

MDNS_PORT = 5353
# A tunnel packet grows by WireGuard's header and tag, UDP and IPv4.
_UNDERLAY_BYTES = 60


def filtered(facts: Facts) -> HealthItem:
    """The machine's own firewall, for WireGuard's packets in and out."""
    ruleset, port = facts.machine.ruleset, facts.wanted.wireguard_port
    if ruleset is None:
        text = "Its rules cannot be read by this user, or nft is not installed."
        return HealthItem("firewall-drops", "ok", "Firewall", text)
    found = sorted(
        f"IPv{packet.version} {'to' if packet.way == 'in' else 'from'} UDP {port}"
        f"{f' on {packet.link}' if packet.link else ''}: {chain}"
        for packet in _wireguard_packets(facts)
        if (chain := firewall.drops(ruleset, packet))
    )
    if not found:
        return HealthItem("firewall-drops", "ok", "Firewall", f"It lets UDP {port} through.")
    return HealthItem(
        "firewall-drops", "warning", "This machine's firewall drops WireGuard's packets",
        f"Others cannot open a path to this node's UDP port {port}, or its packets do not get out: "
        "members meet by a relay or not at all.",
        f"Let UDP {port} through, in and out: `nft add rule inet filter input udp dport {port} "
        f"accept`, `ufw allow {port}/udp`, or `firewall-cmd --add-port={port}/udp`.", tuple(found),
    )  # fmt: skip


def nat(facts: Facts) -> HealthItem | None:
    """The kind of NAT, and whether UDP gets out at all."""
    found = facts.agent
    if found is None or not found.peers.known:
        return None
    seen, peers = found.network, found.peers
    kind = NatKind[seen.nat.upper()] if seen.nat.upper() in NatKind.__members__ else NatKind.UNKNOWN
    said = verdict.sentence(
        kind, port=facts.wanted.wireguard_port, mapped=seen.mapped, helpers=seen.rendezvous,
        relays=seen.relays, linked=peers.linked > 0,
    )  # fmt: skip
    if kind is NatKind.BLOCKED:
        return HealthItem(
            "udp-blocked", "warning" if peers.connected else "error", "No UDP gets out", said,
            "Have the network's firewall let UDP out, and answers in; `agent netcheck` shows "
            "whether it does.",
        )  # fmt: skip
    if kind is NatKind.HARD and not seen.mapped:
        return HealthItem(
            "nat-hard", "note" if seen.relays else "warning",
            "A NAT that is hard to get through", said,
            f"Forward UDP {facts.wanted.wireguard_port} to this machine in the router, or switch "
            "on UPnP or NAT-PMP there.",
        )  # fmt: skip
    if kind is NatKind.UNKNOWN and not seen.rendezvous:
        return HealthItem(
            "nat-unknown", "note", "Nobody can tell the kind of NAT", said,
            "Nothing, where all members are on one network.",
        )  # fmt: skip
    return HealthItem("nat-hard", "ok", "NAT", said)


def mtu(facts: Facts) -> HealthItem:
    """Whether a tunnel packet of the least size fits the links to the internet whole."""
    needs = DEFAULT_MTU + _UNDERLAY_BYTES
    small = tuple(f"{link.name}: {link.mtu} bytes" for link in facts.uplinks if link.mtu < needs)
    if not small:
        known = ", ".join(f"{link.name} {link.mtu} bytes" for link in facts.uplinks)
        return HealthItem("mtu-small", "ok", "MTU", known or "No link leads to the internet.")
    return HealthItem(
        "mtu-small", "warning", "Links carry only small packets",
        f"A packet of {DEFAULT_MTU} bytes, the least that IPv6 allows on the overlay, needs "
        f"{needs} bytes below it: it travels in fragments, which is slow, and which some networks "
        "drop.",
        "Raise the link's MTU (1500 on Ethernet), or use another link.", small,
    )  # fmt: skip


def mdns(facts: Facts) -> HealthItem:
    """Whether members on the same LAN can find each other by multicast."""
    if not facts.wanted.mdns:
        return HealthItem("mdns-blocked", "ok", "Multicast DNS", "network.mdns is off.")
    why, found = "", facts.agent
    for packet in _packets(facts, "in", port=MDNS_PORT):
        if chain := firewall.drops(facts.machine.ruleset or {}, packet):
            why = f"This machine's firewall drops UDP {MDNS_PORT} (chain {chain})."
    if found is not None and not why and found.uptime_s > SETTLED_S:
        beside = {peer.name for peer in found.peer_list if peer.route == "lan"}
        if beside and not found.network.lan:
            names = ", ".join(sorted(beside))
            why = f"{names}: on this LAN, and not heard there. A switch or access point may filter."
    if not why:
        return HealthItem("mdns-blocked", "ok", "Multicast DNS", "Nothing is in its way.")
    return HealthItem(
        "mdns-blocked", "note", "Members on the LAN do not find each other by themselves", why,
        f"Let UDP {MDNS_PORT} in, and multicast through (on access points: no client isolation). "
        "Tickets with an address, and members elsewhere, do without.",
    )  # fmt: skip


def vpn(facts: Facts) -> HealthItem:
    """Other VPNs, above all such as take all traffic."""
    tunnels = {
        link.name: link
        for link in facts.machine.links
        if link.tunnel and link.up and not link.ours and link.name != facts.wanted.interface
    }
    taking = [name for name in facts.machine.uplinks if name in tunnels]
    lines = tuple(f"{link.name} ({link.kind})" for link in tunnels.values())
    if taking:
        return HealthItem(
            "vpn-takes-all", "warning", "Another VPN carries all that goes to the internet",
            f"Covey's packets go through {taking[0]}: paths are longer, NATs are that VPN's, and "
            "members on the LAN may be out of reach.",
            "Let the VPN leave out UDP from Covey's port and the LAN (split tunnelling), or switch "
            "it off.", lines,
        )  # fmt: skip
    if tunnels:
        return HealthItem(
            "vpn-beside", "note", "Another VPN is on this machine",
            "Both work beside each other, as long as their addresses and ports differ.",
            "Nothing, unless members are not reached.", lines,
        )  # fmt: skip
    return HealthItem("vpn-takes-all", "ok", "Other VPNs", "None is in the way.")


def addresses(facts: Facts) -> HealthItem:
    """Whether the overlay's IPv4 network, or an address in it, is somebody else's too."""
    overlay = facts.member.ipv4_network if facts.member else facts.wanted.ipv4_network
    ours = {link.name for link in facts.machine.links if link.ours} | {facts.wanted.interface}
    lines = [
        f"{link.name} has {address}"
        for link in facts.machine.links
        if link.name not in ours
        for address in link.addresses
        if address.version == 4 and address.network.overlaps(overlay)
    ]
    known = {f"{link.name} {a.network}" for link in facts.machine.links for a in link.addresses}
    lines += [
        f"a route leads to {route.network} by {route.link}"
        for route in facts.machine.routes
        if route.network.version == 4 and route.link not in ours
        and f"{route.link} {route.network}" not in known
        and route.network.prefixlen >= overlay.prefixlen and route.network.overlaps(overlay)
    ]  # fmt: skip
    lines += _shared(facts)
    if not lines:
        return HealthItem(
            "address-conflict", "ok", "Addresses", f"Nobody else uses {overlay} here."
        )
    return HealthItem(
        "address-conflict", "warning", "Addresses of the overlay are in use elsewhere",
        f"The mesh has {overlay} for IPv4: packets to such an address may go to the wrong place. "
        "The members' IPv6 addresses work.",
        "Give the other network other addresses, or make the mesh with another one "
        "(network.ipv4_network, before `agent mesh create`). Two members with one address get "
        "others by themselves, when an issuer is up.", tuple(lines),
    )  # fmt: skip


def _shared(facts: Facts) -> Iterator[str]:
    if facts.agent is None:
        return
    owners: dict[str, list[str]] = {}
    for name, address in [
        (facts.agent.name, facts.agent.ipv4),
        *((peer.name, peer.ipv4) for peer in facts.agent.peer_list),
    ]:
        if address:
            owners.setdefault(address, []).append(name)
    for address, names in sorted(owners.items()):
        if len(names) > 1:
            yield f"{' and '.join(sorted(names))} have {address}"


def _wireguard_packets(facts: Facts) -> Iterator[firewall.Packet]:
    port = facts.wanted.wireguard_port
    yield from _packets(facts, "in", port=port)
    yield from _packets(facts, "out", source_port=port)


def _underlay(facts: Facts) -> Iterator[Link]:
    """Return the links by which others may be reached where no route leads to the internet."""
    for link in facts.machine.links:
        if link.up and link.addresses and not (link.ours or link.tunnel):
            yield link


def _packets(
    facts: Facts, way: firewall.Way, *, port: int | None = None, source_port: int | None = None
) -> Iterator[firewall.Packet]:
    """Return a packet of each IP version that the links to others have."""
    for link in facts.uplinks or _underlay(facts):
        versions = {a.version for a in link.addresses if not a.ip.is_link_local} or {4}
        for version in sorted(versions):
            yield firewall.Packet(way, 6 if version == 6 else 4, source_port, port, link.name)
