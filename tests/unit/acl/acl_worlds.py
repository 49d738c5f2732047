"""Random members, policies and packets, and an interpreter of the rulesets that come of them.

The interpreter knows the part of nftables' language that `agent.acl.ruleset` writes, and fails on
anything else. It is handed new connections' packets (no tracked state). The lab gives the same
worlds to the kernel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random

from agent.acl.policy import Policy, Subject, parse
from agent.acl.ports import CoveyPorts, Protocol
from agent.identity.keys import NodeKey
from agent.membership.certificate import Certificate

COVEY = CoveyPorts.of(
    control=4001, overlay=7070, engine=range(7100, 7110), discovery=4001, ownership=7071
)
TAGS = ("gpu", "ops", "home", "lab")
ROLES = ("worker", "gateway", "admin")
# Few enough that rules overlap, touch and meet Covey's own; port 1 to 65535 are edges.
TCP_PORTS = (1, 22, 23, 4001, 7070, 7099, 7100, 7109, 7110, 8000, 8005, 8010, 8011, 65535)
UDP_PORTS = (53, 4001, 7071, 8005)
INTERFACE = "covey0"


def subject(number: int, *, tags: tuple[str, ...] = (), roles: tuple[str, ...] = ()) -> Subject:
    return Subject(
        name=f"node-{number}",
        node=f"12D3Koo{number:045d}",
        roles=roles,
        tags=tags,
        ipv6=IPv6Address(f"fd00:77::{number + 16:x}"),
        ipv4=IPv4Address("10.77.0.16") + number,
    )


@dataclass(frozen=True)
class Member:
    """A member as the service takes it: whatever has a certificate."""

    certificate: Certificate


def member(
    number: int, *, tags: tuple[str, ...] = (), roles: tuple[str, ...] = (), name: str = ""
) -> Member:
    """Return a member whose certificate nobody signed: the ACL is handed verified ones."""
    fields = {
        "version": 1, "mesh_id": bytes(32), "node": NodeKey(bytes([number]) * 32).id.ed25519,
        "name": name or f"node-{number}", "roles": roles, "tags": tags, "ipv4_counter": 0,
        "not_before": 0, "not_after": 1, "issuer": bytes(32), "grant": None, "signature": bytes(64),
    }  # fmt: skip
    return Member(Certificate(**{name: fields[name] for name in Certificate.__struct_fields__}))


def members(random: Random, count: int) -> list[Subject]:
    def some(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word for word in words if random.random() < 0.4)

    return [subject(number, tags=some(TAGS), roles=some(ROLES)) for number in range(count)]


def policy_text(random: Random, count: int, rules: int) -> str:
    """Return a policy file about `count` members."""
    selectors = [
        *(f"tag:{tag}" for tag in TAGS),
        *(f"role:{role}" for role in ROLES),
        *(f"name:node-{number}" for number in range(count)),
    ]

    def side() -> str:
        if random.random() < 0.3:
            return '"*"'
        return str(random.sample(selectors, random.randint(1, 3)))

    def ports() -> str:
        if random.random() < 0.2:
            return '"*"'
        words = []
        for _ in range(random.randint(1, 4)):
            protocol = random.choice(["tcp", "tcp", "udp", "icmp"])
            if protocol == "icmp":
                words.append("icmp")
                continue
            edges = TCP_PORTS if protocol == "tcp" else UDP_PORTS
            first, last = sorted((random.choice(edges), random.choice(edges)))
            words.append(f"{protocol}:{first}" + (f"-{last}" if random.random() < 0.5 else ""))
        return str(words)

    return "".join(
        f"[[rule]]\nfrom = {side()}\nto = {side()}\nports = {ports()}\n"
        f'action = "{random.choice(["allow", "deny"])}"\n\n'
        for _ in range(rules)
    )


def policy(random: Random, count: int, rules: int) -> Policy:
    return parse(policy_text(random, count, rules).encode(), "acl.toml")


def all_ports() -> list[tuple[Protocol, int]]:
    """Return every port that a rule can part from its neighbour."""
    tcp: list[tuple[Protocol, int]] = [("tcp", port) for port in TCP_PORTS]
    udp: list[tuple[Protocol, int]] = [("udp", port) for port in UDP_PORTS]
    return [*tcp, *udp, ("icmp", 0)]


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection; protocol also "other" (neither TCP, UDP nor ICMP)."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: str
    port: int
    iif: str = INTERFACE
    oif: str = ""


_CHAIN = re.compile(r"  chain (\w+) \{\n(.*?)\n  \}", re.S)
_SET = re.compile(r"  set (\w+) \{ type (ipv[46]_addr);(?: elements = \{ (.*) \};)? \}")
_COUNTER = re.compile(r"  counter (\w+) \{ \}")
_HOOK = re.compile(r"type filter hook (\w+) priority filter \+ 10; policy accept;")


class Interpreter:
    """Runs packets through a ruleset; `counted` has how often each counter was passed."""

    def __init__(self, text: str) -> None:
        _, _, body = text.partition("{\n")
        assert body.endswith("}\n")
        body = body.removesuffix("}\n")
        self.chains = {name: lines.split("\n") for name, lines in _CHAIN.findall(body)}
        self.sets = {
            name: {ip_address(element) for element in elements.split(", ") if element}
            for name, _, elements in _SET.findall(body)
        }
        self.counted = dict.fromkeys(_COUNTER.findall(body), 0)
        rest = _COUNTER.sub("", _SET.sub("", _CHAIN.sub("", body)))
        assert rest.strip() == "", f"not understood: {rest}"

    def input(self, packet: Packet) -> str:
        """Return accept, drop or reject."""
        return self._hook("input", packet)

    def forward(self, packet: Packet) -> str:
        """Return accept or drop."""
        return self._hook("forward", packet)

    def _hook(self, hook: str, packet: Packet) -> str:
        first, *rest = self.chains[hook]
        found = _HOOK.fullmatch(first.strip())
        assert found is not None, first
        assert found[1] == hook
        return self._run(rest, packet) or "accept"

    def _run(self, lines: list[str], packet: Packet) -> str | None:
        for line in lines:
            words = line.strip()
            while words:
                matched, words = self._match(words, packet)
                if not matched:
                    break
                if (verdict := self._verdict(words, packet)) is not None:
                    kind, _, argument = verdict.partition(" ")
                    if kind == "jump":
                        inner = self._run(self.chains[argument], packet)
                        if inner is None:
                            break
                        return inner
                    if kind == "goto":
                        return self._run(self.chains[argument], packet)
                    return kind
        return None

    def _verdict(self, words: str, packet: Packet) -> str | None:
        if words in ("accept", "drop") or re.fullmatch(r"(jump|goto) \w+", words):
            return words
        if words == "reject with tcp reset":
            assert packet.protocol == "tcp"
            return "reject"
        return "reject" if words == "reject with icmpx type admin-prohibited" else None

    def _match(self, words: str, packet: Packet) -> tuple[bool, str]:
        """Take one statement off `words`: whether it holds, and what follows it."""
        if self._verdict_word(words):
            return True, words
        for pattern, holds in (
            (r'iifname (!= )?"([^"]+)" ', lambda m: (packet.iif == m[2]) != bool(m[1])),
            (r'oifname "([^"]+)" ', lambda m: packet.oif == m[1]),
            (r"ct (?:direction reply|state (?:related|established|invalid)) ", lambda m: False),
            (r"meta nfproto ipv6 ", lambda m: packet.source.version == 6),
            (r"meta l4proto tcp ", lambda m: packet.protocol == "tcp"),
            (r"ip(6?) saddr (!= )?@(\w+) ", lambda m: self._in_set(m, packet)),
            (r"ip(6?) daddr (\S+) ", lambda m: packet.destination == ip_address(m[2])),
            (r"(tcp|udp) dport (\d+)(?:-(\d+))? ", lambda m: _in_ports(m, packet)),
            (
                r"icmp(v6)? type echo-request ",
                lambda m: packet.protocol == "icmp" and packet.source.version == (6 if m[1] else 4),
            ),
            (r"counter name (\w+) ", lambda m: self._count(m[1])),
        ):
            if (found := re.match(pattern, words)) is not None:
                return holds(found), words[found.end() :]
        raise AssertionError(f"not understood: {words}")

    @staticmethod
    def _verdict_word(words: str) -> bool:
        return words.split()[0] in ("accept", "drop", "jump", "goto", "reject")

    def _in_set(self, found: re.Match[str], packet: Packet) -> bool:
        if packet.source.version != (6 if found[1] else 4):
            return False
        return (packet.source in self.sets[found[3]]) != bool(found[2])

    def _count(self, name: str) -> bool:
        self.counted[name] += 1
        return True


def _in_ports(found: re.Match[str], packet: Packet) -> bool:
    if packet.protocol != found[1]:
        return False
    return int(found[2]) <= packet.port <= int(found[3] or found[2])
