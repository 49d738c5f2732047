"""`agent netcheck`: what this node's own network lets through. Used by `service.py`.

Facts that the path engine and the port mapper have gathered, and one test of its own: whether the
router turns around what this node sends to its own outside place (hairpinning).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from agent import endpoint as endpoints
from agent.paths.messages import NatKind, Place
from agent.portmap.service import PortMappingReport
from agent.probing.port import MAGIC
from agent.traversal import verdict
from agent.traversal.helpers import Helpers

# No probe is so short. A router turns it around in a millisecond.
_HAIRPIN_BYTES, _HAIRPIN_S, _HAIRPIN_TRIES = 28, 0.3, 2


class Hairpin:
    """What is sent to this node's own outside place, and whether it came back."""

    def __init__(self) -> None:
        self._sent = b""
        self._came = asyncio.Event()

    def heard(self, datagram: bytes) -> bool:
        """Say whether a datagram that came is the one that was sent."""
        if not self._sent or datagram != self._sent:
            return False
        self._came.set()
        return True

    async def test(self, seen: Sequence[Place], nat: NatKind) -> bool | None:
        """Say whether the router turns it around; None where there is none, or nothing is known."""
        outside = [place for place in seen if ":" not in place[0]]
        if not outside or nat is NatKind.NONE:
            return None
        self._sent, self._came = MAGIC + secrets.token_bytes(_HAIRPIN_BYTES), asyncio.Event()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for _ in range(_HAIRPIN_TRIES):
                with contextlib.suppress(OSError):
                    sender.sendto(self._sent, outside[0])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_HAIRPIN_S):
                        await self._came.wait()
                        return True
        return False


@dataclass(frozen=True)
class Found:
    """What is known without asking anybody. `failure`: why no paths are looked for; "": they are.

    `port`: WireGuard's; 0 before the start. `linked`: to some member, by TCP.
    """

    nat: NatKind
    seen: Sequence[Place]
    interfaces: Sequence[IPv4Interface | IPv6Interface]
    mapping: PortMappingReport | None
    mtus: Sequence[int]
    helpers: Helpers
    port: int
    linked: bool
    failure: str


async def describe(found: Found, hairpin: Hairpin | None) -> dict[str, Any]:
    """Describe this node's network, with what follows; `hairpin` None: nothing can be sent."""
    mapping, nat, helpers = found.mapping, found.nat, found.helpers
    relays = [node for node, _ in helpers.relays]
    public = mapping is not None and mapping.mapping is not None and mapping.mapping.public
    return {
        "udp": {NatKind.UNKNOWN: None, NatKind.BLOCKED: False}.get(nat, True),
        "ipv4": [str(each.ip) for each in found.interfaces if each.version == 4],
        "ipv6": [str(each.ip) for each in found.interfaces if each.version == 6],
        "nat": nat.name.lower(),
        "seen_as": [endpoints.join(*place) for place in found.seen],
        "port_mapping": mapping.summary if mapping is not None else "not running",
        "port_mapping_tried": [each.text() for each in mapping.attempts] if mapping else [],
        "hairpin": await hairpin.test(found.seen, nat) if hairpin is not None else None,
        "path_mtu": max(found.mtus, default=None),
        "rendezvous": list(helpers.rendezvous),
        "relays": relays,
        "verdict": verdict.without_engine(found.failure) if found.failure else verdict.sentence(
            nat, port=found.port, mapped=public, helpers=len(helpers.rendezvous),
            relays=len(relays), linked=found.linked,
        ),
    }  # fmt: skip
