"""The policy: ordered rules out of a TOML file, of which the first that matches decides. A core.

    [[rule]]
    from = ["tag:ops", "name:laptop", "role:admin"]     # or "*"
    to = ["tag:gpu"]
    ports = ["tcp:22", "tcp:8000-8010", "udp:53", "icmp"]   # or "*"
    action = "allow"                                      # or "deny"

What no rule matches is decided by `verdict.py`: Covey's own ports are open to members, all else
is closed. Reading the file is `policyfile.py`'s.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any, Literal, TypeVar

from agent.acl.ports import PortRange, Protocol
from agent.errors import ConfigError, UsageError
from agent.membership import naming
from agent.membership.certificate import Certificate

Action = Literal["allow", "deny"]
Kind = Literal["any", "tag", "name", "role"]

# Each rule may cost each new packet a look: a file longer than this was made by mistake.
MAX_RULES = 1000
# A thousand rules of a thousand characters; a larger file is not ours.
MAX_FILE_BYTES = 1 << 20

_FIELDS = ("from", "to", "ports", "action")
_HEADER = re.compile(r"[ \t]*\[\[[ \t]*(?:rule|\"rule\"|'rule')[ \t]*\]\][ \t]*(?:#.*)?")
_EXAMPLE = 'A rule begins with [[rule]] and has from, to, ports and action = "allow" or "deny".'
_SELECTOR_HINT = 'Write "tag:gpu", "name:laptop", "role:admin" or "*".'
_T = TypeVar("_T")


@dataclass(frozen=True)
class Subject:
    """A member as the ACL sees it: `node` is its node id as text."""

    name: str
    node: str
    roles: tuple[str, ...]
    tags: tuple[str, ...]
    ipv6: IPv6Address
    ipv4: IPv4Address

    @classmethod
    def of(cls, certificate: Certificate, network: IPv4Network) -> Subject:
        """Return the member that a certificate makes, in the mesh's IPv4 network."""
        return cls(
            name=certificate.name,
            node=str(certificate.node_id),
            roles=certificate.roles,
            tags=certificate.tags,
            ipv6=certificate.ipv6,
            ipv4=certificate.ipv4(network),
        )


@dataclass(frozen=True)
class Selector:
    """One word of `from` or `to`; kind "any" has no value."""

    kind: Kind
    value: str = ""

    def matches(self, subject: Subject) -> bool:
        """Say whether it means this member."""
        match self.kind:
            case "any":
                return True
            case "tag":
                return self.value in subject.tags
            case "name":
                return self.value == subject.name
            case "role":
                return self.value in subject.roles

    def __str__(self) -> str:
        return "*" if self.kind == "any" else f"{self.kind}:{self.value}"

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read a word; raises UsageError for one that can match no member."""
        if text == "*":
            return cls("any")
        kind, _, value = text.partition(":")
        match kind:
            case "tag":
                naming.check_tags([value])
            case "name":
                naming.check_name(value)
            case "role":
                naming.check_roles([value])
            case _:
                raise UsageError(f"{text[:80]!r} names nobody", hint=_SELECTOR_HINT)
        return cls(kind, value)


@dataclass(frozen=True)
class Rule:
    """One rule: its number in the file from 1, and its line where that is known.

    Two rules that differ by their line alone are equal.
    """

    number: int
    line: int | None = field(compare=False)
    sources: tuple[Selector, ...]
    destinations: tuple[Selector, ...]
    ports: tuple[PortRange, ...]
    action: Action

    def is_from(self, subject: Subject) -> bool:
        """Say whether `from` means this member."""
        return any(selector.matches(subject) for selector in self.sources)

    def is_to(self, subject: Subject) -> bool:
        """Say whether `to` means this member."""
        return any(selector.matches(subject) for selector in self.destinations)

    def holds(self, protocol: Protocol, port: int) -> bool:
        """Say whether `ports` has this port."""
        return any(ports.holds(protocol, port) for ports in self.ports)


@dataclass(frozen=True)
class Policy:
    """The rules in their order, and the file that they are from ("" for none)."""

    file: str = ""
    rules: tuple[Rule, ...] = ()


def parse(raw: bytes, file: str) -> Policy:
    """Return the policy in a file's bytes.

    Raises ConfigError naming the file, the rule and its line, the field, what is wrong with it,
    and what to write instead.
    """
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{file} has more than {MAX_FILE_BYTES} bytes", hint=_EXAMPLE)
    try:
        text = raw.decode()
        document = tomllib.loads(text)
    except ValueError as error:  # also for text that is not UTF-8, and numbers of 4,300 digits
        raise ConfigError(f"{file} is not valid TOML: {error}", hint=_EXAMPLE) from None
    except RecursionError:
        raise ConfigError(f"{file} is not valid TOML: nested too deep", hint=_EXAMPLE) from None
    unknown = sorted(document.keys() - {"rule"})
    if unknown:
        raise ConfigError(f"{file}: {unknown[0][:80]!r} is nothing that it may hold", hint=_EXAMPLE)
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{file}: rule is no list of rules", hint=_EXAMPLE)
    if len(tables) > MAX_RULES:
        raise ConfigError(
            f"{file} has {len(tables)} rules, more than {MAX_RULES}",
            hint="Name several tags, names and ports in one rule.",
        )
    lines = _header_lines(text, len(tables))
    return Policy(
        file,
        tuple(
            _Reader(file, number, line, table).rule()
            for number, (line, table) in enumerate(zip(lines, tables, strict=True), start=1)
        ),
    )


def _header_lines(text: str, rules: int) -> list[int] | list[None]:
    """Return the line of each [[rule]]; tomllib keeps none, and rules can be written otherwise."""
    lines = enumerate(text.split("\n"), start=1)
    found = [number for number, line in lines if _HEADER.fullmatch(line.rstrip("\r"))]
    return found if len(found) == rules else [None] * rules


@dataclass(frozen=True)
class _Reader:
    """Reads one table into a rule; every mistake is told with the place that it is at."""

    file: str
    number: int
    line: int | None
    table: dict[str, Any]

    def rule(self) -> Rule:
        unknown = sorted(self.table.keys() - set(_FIELDS))
        if unknown:
            raise self._wrong(unknown[0][:80], "is no field of a rule", _EXAMPLE)
        return Rule(
            number=self.number,
            line=self.line,
            sources=self._words("from", Selector.parse, _SELECTOR_HINT),
            destinations=self._words("to", Selector.parse, _SELECTOR_HINT),
            ports=self._words("ports", PortRange.parse, 'Write ["tcp:22", "icmp"] or "*".'),
            action=self._action(),
        )

    def _words(self, field: str, read: Callable[[str], _T], hint: str) -> tuple[_T, ...]:
        value = self._value(field, hint)
        words = [value] if value == "*" else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise self._wrong(field, f'is {_shown(value)}, which is neither a list nor "*"', hint)
        if not words:
            raise self._wrong(field, "is empty, so the rule would match nothing", hint)
        try:
            return tuple(read(word) for word in words)
        except UsageError as error:
            raise self._wrong(field, error.message, error.hint, ": ") from None

    def _action(self) -> Action:
        hint = 'Write action = "allow" or action = "deny".'
        match self._value("action", hint):
            case "allow":
                return "allow"
            case "deny":
                return "deny"
            case other:
                raise self._wrong("action", f"is {_shown(other)}", hint)

    def _value(self, field: str, hint: str) -> Any:
        if field not in self.table:
            raise self._wrong(field, "is missing", hint)
        return self.table[field]

    def _wrong(self, field: str, reason: str, hint: str, between: str = " ") -> ConfigError:
        line = "" if self.line is None else f" (line {self.line})"
        return ConfigError(
            f"{self.file}, rule {self.number}{line}, {field}{between}{reason}", hint=hint
        )


def _shown(value: object) -> str:
    """Return a value of the file for a message, not longer than a person wants to read."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def words(items: Iterable[Selector] | Iterable[PortRange]) -> list[str]:
    """Return selectors or ports as they are written in the file."""
    return [str(item) for item in items]
