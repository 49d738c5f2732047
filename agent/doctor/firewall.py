"""Whether nftables' rules let a packet through, read from `nft -j list ruleset`. A core.

Rules can match what nobody knows beforehand (addresses, marks, limits), so a verdict is certain or
not at all: `drops` says yes only where every way through the rules ends in a drop. A packet passes
only if no chain at its hooks drops it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

Way = Literal["in", "out"]
Outcome = Literal["accept", "drop", "next", "return"]
_HOOKS = {"in": ("prerouting", "input"), "out": ("output", "postrouting")}
_FAMILIES = {4: ("inet", "ip"), 6: ("inet", "ip6")}
# Statements that decide nothing by themselves.
_HARMLESS = frozenset({"counter", "log", "comment", "mangle", "notrack", "ct helper"})
_MAX_DEPTH = 16
_ANY: frozenset[Outcome] = frozenset({"accept", "drop", "next"})


@dataclass(frozen=True)
class Packet:
    """A first packet of UDP. A port is None, a link "" where it may be any."""

    way: Way
    version: Literal[4, 6] = 4
    source_port: int | None = None
    port: int | None = None
    link: str = ""

    def field(self, left: Mapping[str, Any]) -> Any:
        """Return what the packet has where a rule looks; None where that is not known."""
        match left:
            case {"payload": {"protocol": "udp" | "th", "field": "dport"}}:
                return self.port
            case {"payload": {"protocol": "udp" | "th", "field": "sport"}}:
                return self.source_port
            case (
                {"meta": {"key": "l4proto"}}
                | {"payload": {"protocol": "ip", "field": "protocol"}}
                | {"payload": {"protocol": "ip6", "field": "nexthdr"}}
            ):
                return "udp"
            case {"meta": {"key": "nfproto"}}:
                return f"ipv{self.version}"
            case {"meta": {"key": "iifname" | "iif"}}:
                return (self.link or None) if self.way == "in" else ""
            case {"meta": {"key": "oifname" | "oif"}}:
                return (self.link or None) if self.way == "out" else ""
            case {"ct": {"key": "state"}}:
                return "new"
        return None

    def lacks(self, left: Mapping[str, Any]) -> bool:
        """Say whether it has no such field: a rule for TCP matches no UDP."""
        protocol = left.get("payload", {}).get("protocol", "")
        other = "ip6" if self.version == 4 else "ip"
        return protocol in ("tcp", "icmp", "icmpv6", "sctp", "dccp", other)


def drops(ruleset: Mapping[str, Any], packet: Packet) -> str:
    """Return the chain (`inet filter input`) that certainly drops the packet, "" if none does."""
    rules = _Rules(ruleset)
    for chain in rules.base:
        at = chain["hook"] in _HOOKS[packet.way] and chain["family"] in _FAMILIES[packet.version]
        if at and rules.outcomes(_key(chain), packet) == {"drop"}:
            return f"{chain['family']} {chain['table']} {chain['name']}"
    return ""


_Key = tuple[str, str, str]


def _key(chain: Mapping[str, Any]) -> _Key:
    return chain["family"], chain["table"], chain["name"]


class _Rules:
    """A ruleset by chains."""

    def __init__(self, ruleset: Mapping[str, Any]) -> None:
        self.base: list[Mapping[str, Any]] = []
        self._policies: dict[_Key, Outcome] = {}
        self._rules: dict[_Key, list[Sequence[Mapping[str, Any]]]] = {}
        self._sets: dict[_Key, Any] = {}
        for entry in ruleset.get("nftables", ()):
            if "chain" in entry:
                chain = entry["chain"]
                self._rules.setdefault(_key(chain), [])
                if chain.get("type") == "filter":
                    self.base.append(chain)
                    self._policies[_key(chain)] = (
                        "drop" if chain.get("policy") == "drop" else "accept"
                    )
            elif "rule" in entry:
                rule = entry["rule"]
                key = rule["family"], rule["table"], rule["chain"]
                self._rules.setdefault(key, []).append(rule.get("expr", ()))
            elif "set" in entry:
                self._sets[_key(entry["set"])] = entry["set"].get("elem", [])

    def outcomes(self, key: _Key, packet: Packet) -> set[Outcome]:
        """Return what may become of a packet in a base chain."""
        found = self._walk(key, packet, 0)
        if "next" in found:
            found = (found - {"next"}) | {self._policies[key]}
        return found

    def _walk(self, key: _Key, packet: Packet, depth: int) -> set[Outcome]:
        """Return what may become of it in a chain; `next`: it comes out at the end."""
        if depth > _MAX_DEPTH:
            return set(_ANY)
        found: set[Outcome] = set()
        for statements in self._rules.get(key, ()):
            ends = self._rule(key, statements, packet, depth)
            found |= ends - {"next"}
            if "next" not in ends:
                break
        else:
            found.add("next")
        return (found - {"return"}) | {"next"} if "return" in found else found

    def _rule(
        self, key: _Key, statements: Sequence[Mapping[str, Any]], packet: Packet, depth: int
    ) -> set[Outcome]:
        """Return what may become of a packet at one rule."""
        certain = True
        for statement in statements:
            if "match" in statement:
                matches = self._matches(key, statement["match"], packet)
                if matches is False:
                    return {"next"}
                certain = certain and matches is True
                continue
            ends = self._verdict(key, statement, packet, depth)
            if ends is None:
                certain = certain and not (statement.keys() - _HARMLESS)
            else:
                return ends if certain else ends | {"next"}
        return {"next"}

    def _verdict(
        self, key: _Key, statement: Mapping[str, Any], packet: Packet, depth: int
    ) -> set[Outcome] | None:
        """Return what a statement makes of the packet; None: it is no verdict."""
        match statement:
            case {"accept": _}:
                return {"accept"}
            case {"drop": _} | {"reject": _}:
                return {"drop"}
            case {"return": _}:
                return {"return"}
            case {"jump": {"target": str(target)}}:
                return self._walk((key[0], key[1], target), packet, depth + 1)
            case {"goto": {"target": str(target)}}:
                ends = self._walk((key[0], key[1], target), packet, depth + 1)
                return (ends - {"next"}) | {"return"} if "next" in ends else ends
            case {"vmap": {"key": dict(left), "data": {"set": list(pairs)}}}:
                return self._mapped(key, left, pairs, packet, depth)
            case {"vmap": _} | {"queue": _} | {"xt": _}:
                return set(_ANY)
        return None

    def _mapped(
        self, key: _Key, left: Mapping[str, Any], pairs: Iterable[Any], packet: Packet, depth: int
    ) -> set[Outcome]:
        for values, verdict in pairs:
            matches = self._matches(key, {"op": "==", "left": left, "right": values}, packet)
            if matches is None:
                return set(_ANY)
            if matches:
                return self._verdict(key, verdict, packet, depth) or {"next"}
        return {"next"}

    def _matches(self, key: _Key, match: Mapping[str, Any], packet: Packet) -> bool | None:
        left = match.get("left")
        if not isinstance(left, dict):
            return None
        if packet.lacks(left):
            return False
        has = packet.field(left)
        if has is None:
            return None
        found = self._within(key, has, match.get("right"))
        if found is None:
            return None
        return not found if match.get("op") == "!=" else found

    def _within(self, key: _Key, has: Any, right: Any) -> bool | None:
        """Say whether a value is the right side of a match, or in it."""
        match right:
            case str() if right.startswith("@"):
                elements = self._sets.get((key[0], key[1], right[1:]))
                return None if elements is None else self._within(key, has, elements)
            case {"set": inner}:
                return self._within(key, has, inner)
            case {"elem": {"val": inner}}:
                return self._within(key, has, inner)
            case {"range": [first, last]} if isinstance(has, int) and isinstance(first, int):
                return bool(first <= has <= last)
            case list():
                answers = [self._within(key, has, one) for one in right]
                return True if True in answers else None if None in answers else False
            case str() if isinstance(has, str):
                return fnmatchcase(has, right)
            case int() if isinstance(has, int):
                return has == right
        return None
