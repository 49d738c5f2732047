"""Ports as rules name them, and the ports that Covey itself serves. A core."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from agent.errors import UsageError

Protocol = Literal["tcp", "udp", "icmp"]
ANY: Literal["any"] = "any"

_PORTS_HINT = 'Write "tcp:22", "udp:8000-8010", "icmp" or "*".'


@dataclass(frozen=True, order=True)
class PortRange:
    """The ports `first` to `last` (1 … 65535) of TCP or UDP; ICMP and "any" have 0 and 0.

    ICMP means echo requests, so ping; ICMP's errors about a connection always pass with it.
    """

    protocol: Protocol | Literal["any"]
    first: int = 0
    last: int = 0

    def holds(self, protocol: Protocol, port: int) -> bool:
        """Say whether this port is among them; ICMP's port is not looked at."""
        if self.protocol == ANY:
            return True
        if protocol != self.protocol:
            return False
        return protocol == "icmp" or self.first <= port <= self.last

    def __str__(self) -> str:
        match self.protocol:
            case "any":
                return "*"
            case "icmp":
                return "icmp"
            case protocol if self.first == self.last:
                return f"{protocol}:{self.first}"
            case protocol:
                return f"{protocol}:{self.first}-{self.last}"

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """Read what a rule names; raises UsageError for anything else."""
        if text == "*":
            return cls(ANY)
        if text == "icmp":
            return cls("icmp")
        protocol, colon, ports = text.partition(":")
        first, dash, last = ports.partition("-")
        if not colon or protocol not in ("tcp", "udp"):
            raise UsageError(f"{text[:40]!r} names no port", hint=_PORTS_HINT)
        low, high = _number(first, text), _number(last if dash else first, text)
        if low > high:
            raise UsageError(
                f"{text[:40]!r} holds no port", hint="Write the lower port first: tcp:8000-8010."
            )
        return cls("tcp" if protocol == "tcp" else "udp", low, high)


def parse_port(text: str) -> tuple[Protocol, int]:
    """Read one port as it is asked about: `tcp:22`, `22` (TCP), `udp:53`, `icmp` (port 0).

    Raises UsageError for anything else.
    """
    hint = "Write tcp:22 (or 22), udp:53 or icmp."
    try:
        found = PortRange.parse(f"tcp:{text}" if text.isascii() and text.isdecimal() else text)
    except UsageError as error:
        raise UsageError(error.message, hint=hint) from None
    if found.protocol == ANY or found.first != found.last:
        raise UsageError(f"{text[:40]!r} is more than one port", hint=hint)
    return found.protocol, found.first


def _number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise UsageError(f"{whole[:40]!r} names no port", hint="Ports are 1 to 65535.")
    return int(text)


def merged(ranges: Iterable[PortRange], protocol: Protocol) -> list[tuple[int, int]]:
    """Return the ports of one protocol as sorted (first, last) that neither overlap nor touch."""
    found: list[tuple[int, int]] = []
    for r in sorted(r for r in ranges if r.protocol == protocol):
        if found and r.first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], r.last))
        else:
            found.append((r.first, r.last))
    return found


@dataclass(frozen=True)
class Service:
    """Something that Covey serves on the overlay: what, in words, and where."""

    what: str
    ports: PortRange


@dataclass(frozen=True)
class CoveyPorts:
    """Everything that Covey serves on a node's overlay address."""

    services: tuple[Service, ...]

    @classmethod
    def of(
        cls,
        *,
        control: int,
        overlay: int,
        engine: range,
        discovery: int,
        ownership: int,
        pages: int | None = None,
    ) -> CoveyPorts:
        """Return what is served on these ports: TCP, but discovery and ownership UDP.

        `pages`: those of the agent, where they are for members.
        """
        services = [
            Service("the control plane", PortRange("tcp", control, control)),
            Service("stage files", PortRange("tcp", overlay, overlay)),
            Service("stages and heads", PortRange("tcp", engine[0], engine[-1])),
            Service("discovery", PortRange("udp", discovery, discovery)),
            Service("ownership of deployments", PortRange("udp", ownership, ownership)),
        ]
        if pages is not None:
            services.append(Service("the agent's pages", PortRange("tcp", pages, pages)))
        return cls((*services, Service("ping", PortRange("icmp"))))

    def find(self, protocol: Protocol, port: int) -> Service | None:
        """Return what is served on a port, or None."""
        return next((s for s in self.services if s.ports.holds(protocol, port)), None)
