"""The policy as an nftables table of this node, for what comes in by the overlay. A core.

One table, `inet covey-INTERFACE`, replaced whole in one transaction. It never lets in what
another table drops: its chains come after the usual ones, and in nftables an accept ends only the
chain it is in. What it says for new connections is what `verdict.explain` says; tests hold the
two together.

A packet from an address that is no member's is dropped. Replies to this node's own connections
pass, and ICMP errors about any connection. All else is looked up in the rules packet by packet, not
once a connection: so new rules hold for running connections too, and what Covey serves depends on
no tracked state. What is denied is refused with an answer, a TCP reset, so that programs fail at
once; what tracking finds in no window of a connection is dropped, and sent again. Nothing is
forwarded from or to the overlay. Packets for this node's overlay addresses that come in by any
other interface are dropped: Linux would take them, and being on the overlay is the proof of being a
member.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from agent.acl.policy import Policy, Rule, Subject
from agent.acl.ports import ANY, CoveyPorts, PortRange, merged

# After the operator's own filters (priority 0), which then see and count what they drop.
_PRIORITY = "filter + 10"
# nftables' names lack two characters that interface names have, and have "/", which those lack.
_ESCAPES = str.maketrans({"=": "/e", "+": "/p"})

COVEY, DEFAULT, STRANGERS, AROUND, FORWARDED = (
    "covey",
    "default",
    "strangers",
    "around",
    "forwarded",
)


def table_name(interface: str) -> str:
    """Return the table's name for an interface (as `overlay.device.check_name` allows them)."""
    return f"covey-{interface.translate(_ESCAPES)}"


def counter_name(rule: Rule) -> str:
    """Return the name of a rule's counter in the table."""
    return f"rule{rule.number}"


def removal(interface: str) -> str:
    """Return the commands that remove the table, whether it is there or not."""
    table = f"table inet {table_name(interface)}"
    return f"{table}\ndelete {table}\n"


def ruleset(
    interface: str,
    policy: Policy,
    covey: CoveyPorts,
    own: Subject | None,
    members: Iterable[Subject],
) -> str:
    """Return the commands that replace the table, for `nft -f -`; equal input gives equal text.

    `own` is this node; None when it is no member now, and then nobody is let in. `members` are
    those that count now; whether this node is among them makes no difference.
    """
    others = [] if own is None else [m for m in members if m.node != own.node]
    here = [] if own is None else [rule for rule in policy.rules if rule.is_to(own)]
    sets = _Sets(others)
    everyone = sets.name(others)
    live: list[tuple[Rule, str | None]] = []
    for rule in here:
        if found := [member for member in others if rule.is_from(member)]:
            live.append((rule, sets.name(found) if len(found) < len(others) else None))
    overlay = [
        f"ip6 saddr != @{everyone}{_IPV6.ending} counter name {STRANGERS} drop",
        f"ip saddr != @{everyone}{_IPV4.ending} counter name {STRANGERS} drop",
        "ct direction reply accept",
        "ct state related meta l4proto { icmp, ipv6-icmp } accept",
        # The end of a connection that the rules cut meanwhile, so that both sides know of it.
        "ct state established tcp flags & rst == rst accept",
        "meta nfproto ipv6 goto ipv6",
        "goto ipv4",
    ]
    refuse = [
        # Tracking does not know these for what they are, a reply to this node, perhaps: late or
        # out of order, as when a path changes. An answer would end the connection they belong to.
        "ct state invalid drop",
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx type admin-prohibited",
    ]
    chains = [
        _entrance(interface, own),
        _forward(interface),
        _chain("overlay", overlay),
        _chain("ipv6", _decide(_IPV6, covey, live)),
        _chain("ipv4", _decide(_IPV4, covey, live)),
        _chain("refuse", refuse),
    ]
    counters = [*map(counter_name, here), COVEY, DEFAULT, STRANGERS, AROUND, FORWARDED]
    body = [*(f"  counter {name} {{ }}" for name in counters), *sets.definitions(), *chains]
    opening = f"table inet {table_name(interface)} {{"
    return removal(interface) + "\n".join([opening, *body, "}"]) + "\n"


@dataclass(frozen=True)
class _Family:
    """How nftables calls what the two families have alike."""

    source: str
    echo: str
    ending: str


_IPV6 = _Family("ip6 saddr", "icmpv6 type echo-request", "_6")
_IPV4 = _Family("ip saddr", "icmp type echo-request", "_4")


def _decide(
    family: _Family, covey: CoveyPorts, rules: Sequence[tuple[Rule, str | None]]
) -> list[str]:
    """Return the statements for members' packets of one family: rules, Covey, all else.

    Each rule comes with its set of sources, None for everyone's. Ports are compared before
    sources: most rules are passed by after one comparison of numbers.
    """
    lines = []
    for rule, sources in rules:
        source = "" if sources is None else f"{family.source} @{sources}{family.ending} "
        end = "accept" if rule.action == "allow" else "goto refuse"
        then = f"{source}counter name {counter_name(rule)} {end}"
        lines += [f"{ports}{then}" for ports in _ports(rule.ports, family)]
    served = _ports([service.ports for service in covey.services], family)
    lines += [f"{ports}counter name {COVEY} accept" for ports in served]
    return [*lines, f"counter name {DEFAULT} goto refuse"]


def _entrance(interface: str, own: Subject | None) -> str:
    lines = [
        f"type filter hook input priority {_PRIORITY}; policy accept;",
        f'iifname "{interface}" goto overlay',
    ]
    if own is not None:
        lines += [
            f'iifname != "lo" ip6 daddr {own.ipv6} counter name {AROUND} drop',
            f'iifname != "lo" ip daddr {own.ipv4} counter name {AROUND} drop',
        ]
    return _chain("input", lines)


def _forward(interface: str) -> str:
    lines = [
        f"type filter hook forward priority {_PRIORITY}; policy accept;",
        f'iifname "{interface}" counter name {FORWARDED} drop',
        f'oifname "{interface}" counter name {FORWARDED} drop',
    ]
    return _chain("forward", lines)


def _chain(name: str, lines: Sequence[str]) -> str:
    return "\n".join([f"  chain {name} {{", *(f"    {line}" for line in lines), "  }"])


def _ports(ranges: Sequence[PortRange], family: _Family) -> list[str]:
    """Return the matches that hold for packets to these ports; one at most for each packet.

    Each range is a comparison of its own. nftables would make a set of several, and a set of ranges
    is empty for a moment after its table has come in force (Linux 6.18): packets of connections
    that are allowed would be refused then, which ends them.
    """
    if any(r.protocol == ANY for r in ranges):
        return [""]
    matches = []
    for protocol in ("tcp", "udp"):
        for first, last in merged(ranges, protocol):
            ports = str(first) if first == last else f"{first}-{last}"
            matches.append(f"{protocol} dport {ports} ")
    if any(r.protocol == "icmp" for r in ranges):
        matches.append(f"{family.echo} ")
    return matches


class _Sets:
    """The sets of sources, one pair (IPv6, IPv4) for each different group of the members.

    An address that two members have identifies neither, and is in no set: IPv4 addresses come from
    16 bits of a hash and may meet, until an issuer has parted them.
    """

    def __init__(self, members: Sequence[Subject]) -> None:
        self._count = Counter[IPv6Address | IPv4Address](
            address for member in members for address in (member.ipv6, member.ipv4)
        )
        self._names: dict[frozenset[str], str] = {}
        self._groups: dict[str, Sequence[Subject]] = {}

    def name(self, group: Sequence[Subject]) -> str:
        """Return the name of a group's pair, without the ending of a family."""
        key = frozenset(member.node for member in group)
        name = self._names.setdefault(key, f"members{len(self._names)}")
        self._groups[name] = group
        return name

    def definitions(self) -> list[str]:
        """Return the sets' definitions, addresses in order, so that the text is stable."""
        lines = []
        for name, group in self._groups.items():
            ipv6 = sorted(m.ipv6 for m in group if self._count[m.ipv6] == 1)
            ipv4 = sorted(m.ipv4 for m in group if self._count[m.ipv4] == 1)
            lines.append(_set(f"{name}{_IPV6.ending}", "ipv6_addr", ipv6))
            lines.append(_set(f"{name}{_IPV4.ending}", "ipv4_addr", ipv4))
        return lines


def _set(name: str, kind: str, addresses: Sequence[IPv6Address] | Sequence[IPv4Address]) -> str:
    elements = f" elements = {{ {', '.join(map(str, addresses))} }};" if addresses else ""
    return f"  set {name} {{ type {kind};{elements} }}"
