"""A member on the LAN: it announces itself, answers who asks, and finds the others.

A shell. The daemon starts it and is told of nodes; whether such a node is a member, the
certificate says that it shows when it is dialled, not the announcement.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import EnvironmentFault
from agent.identity.keys import NodeKey
from agent.lan import announcement, dns
from agent.lan.announcement import Announcement, AnnouncementSeal, Ports
from agent.lan.interfaces import LOOPBACK
from agent.lan.links import Link
from agent.lan.peers import Allowance, LanPeer, PeerBook, Refusal
from agent.lan.rhythm import Rhythm, Step
from agent.lan.watch import LanWatch
from agent.membership.networkkeys import NetworkKeys
from agent.sealing import NONCE_BYTES

_log = logging.getLogger(__name__)

# Three announcements within the time after which a silent node is gone (peers.EXPIRES_S).
ANNOUNCE_INTERVAL_S = 60.0
# An answer is sealed anew when the last one is older: a flood of questions costs no signatures.
RESEAL_S = 20.0
# RFC 6762 §6: a record is multicast at most once a second on a link.
_MULTICAST_INTERVAL_S = 1.0
# Direct answers, so that nobody uses us against a third machine of the link. A LAN of a hundred
# whose machines start together asks about 200 times.
_REPLIES_PER_S = 50.0
_REPLIES_BURST = 200.0
# 64 random bits as hexadecimal: no two nodes of a link share a name, so there is no need to probe.
_NAME_BYTES = 8


@dataclass(frozen=True)
class _Ready:
    sealed: bytes
    at: float  # monotonic


class LanBeacon:
    """Announces this member on every LAN it is on, and calls `found` with each other one.

    `found` is called on the loop, when a node is seen first and whenever its addresses or ports are
    others. `excluded_interfaces` names those that are no LAN (the overlay's); `interfaces` names
    the only ones to use, and only so is loopback one. `clock` gives unix seconds.
    """

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        network_keys: NetworkKeys,
        *,
        control_port: int,
        discovery_port: int,
        wireguard_port: int,
        found: Callable[[LanPeer], None],
        on_fault: Callable[[EnvironmentFault | None], None] | None = None,
        excluded_interfaces: Sequence[str] = (),
        interfaces: Sequence[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._mesh_id = mesh_id
        self._seal = AnnouncementSeal(mesh_id, network_keys)
        self._ports = Ports(control_port, discovery_port, wireguard_port)
        self._found, self._tell_fault = found, on_fault
        self._clock = clock
        self._names = dns.Names(*(secrets.token_hex(_NAME_BYTES).encode() for _ in range(2)))
        self._ready: dict[int, _Ready] = {}  # by interface index
        self._last_us = 0
        self._replies = Allowance(_REPLIES_PER_S, _REPLIES_BURST)
        self._started = False
        self._watch = LanWatch(
            PeerBook(self._seal, key.id, loopback=LOOPBACK in (interfaces or ())),
            Rhythm(ANNOUNCE_INTERVAL_S, Step.ANNOUNCE),
            news=self._on_news, announce=self._announce, asked=self._on_query,
            on_fault=self._on_fault,
            excluded=excluded_interfaces, only=interfaces, clock=clock,
        )  # fmt: skip

    @property
    def fault(self) -> EnvironmentFault | None:
        """Why nothing is announced now, if that is so; it may pass (an interface comes up)."""
        return self._watch.fault

    @property
    def refusals(self) -> Mapping[Refusal, int]:
        """How many announcements were refused since the start, by reason."""
        return self._watch.book.refusals

    async def start(self) -> None:
        """Announce and ask for the first time, then keep on; returns in some milliseconds.

        A machine without a LAN, or whose mDNS port is taken, is no error here: `on_fault` is called
        with it, and with None when it has passed; the beacon goes on by itself then.
        """
        await self._watch.start()
        self._started = True

    async def stop(self) -> None:
        """Say goodbye and close, in some milliseconds; may be called twice, or before `start`."""
        self._started = False
        await self._watch.stop(self._goodbye)

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Announce under other keys, at once, and believe what these open."""
        self._seal = self._watch.book.seal = AnnouncementSeal(self._mesh_id, keys)
        self._ready.clear()
        if self._started:
            self._watch.begin_anew()

    def peers(self) -> list[LanPeer]:
        """Return the nodes that are on the LAN now, the one heard last first."""
        return self._watch.peers()

    def _on_news(self, peer: LanPeer) -> None:
        """Pass it on; what the callback does wrong must not end in the loop's handler."""
        try:
            self._found(peer)
        except Exception:
            _log.exception("taking in the LAN peer %s failed", peer.node)

    def _on_fault(self, fault: EnvironmentFault | None) -> None:
        if self._tell_fault is not None:
            try:
                self._tell_fault(fault)
            except Exception:
                _log.exception("telling of a LAN fault failed")

    def _announce(self, links: Iterable[Link]) -> None:
        self._ready.clear()
        for link in links:
            self._multicast(link, time.monotonic())

    def _goodbye(self, links: Iterable[Link]) -> None:
        for link in links:
            link.multicast(dns.answer(self._names, self._sealed(link, leaving=True), ttl_s=0))

    def _on_query(self, link: Link, query: dns.Query, sender: tuple[Any, ...]) -> None:
        """Answer a question: directly to a port that is not mDNS's or where that is asked for."""
        if query.instance not in (None, self._names.instance):
            return
        now, legacy = time.monotonic(), sender[1] != dns.PORT
        if query.instance is None and (legacy or query.unicast):
            if self._replies.take(now):
                text = self._answer_text(link, now)
                to = query if legacy else None
                link.reply(dns.answer(self._names, text, to=to), sender)
        elif now - link.answered_at >= _MULTICAST_INTERVAL_S:
            self._multicast(link, now)

    def _multicast(self, link: Link, now: float) -> None:
        link.answered_at = now
        link.multicast(dns.answer(self._names, self._answer_text(link, now)))

    def _answer_text(self, link: Link, now: float) -> bytes:
        """Return this node's sealed announcement for a link, lately made."""
        index = link.interface.index
        ready = self._ready.get(index)
        if ready is None or now - ready.at > RESEAL_S:
            ready = self._ready[index] = _Ready(self._sealed(link), now)
        return ready.sealed

    def _sealed(self, link: Link, *, leaving: bool = False) -> bytes:
        self._last_us = max(self._last_us + 1, int(self._clock() * 1e6))
        said = Announcement(
            version=announcement.VERSION,
            node=self._key.id.ed25519,
            sent_us=self._last_us,
            link=link.interface.index,
            ports=self._ports,
            leaving=leaving,
            packed=announcement.pack(link.interface.addresses),
        )
        return self._seal.seal(said, self._key, secrets.token_bytes(NONCE_BYTES))
