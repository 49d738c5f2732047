"""Hears what this machine sends over the overlay to members that have no path now. A shell.

A packet socket on WireGuard's interface sees each outgoing packet before WireGuard does. A filter
in the kernel leaves out those to the addresses given to `ignore`, so that what flows to members
that are connected costs some nanoseconds a packet, and the others' first packets arrive here.
Of members that a path is being looked for already, TCP alone is heard (`noroute.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from agent.errors import EnvironmentFault
from agent.probing import bpf, sockets
from agent.probing.noroute import HEAD_BYTES

_ETH_P_ALL = 3
_IPV6_BYTES, _IPV4_BYTES = 40, 20
_IPV6_DESTINATION, _IPV4_DESTINATION = slice(24, 40), slice(16, 20)
# What a program sends to addresses that are nobody's must not keep this process busy.
_MUTED_MAX = 256

Address = IPv4Address | IPv6Address


class DemandTap:
    """Outgoing packets of one interface; `on_demand` gets the address that each was for."""

    def __init__(
        self, interface: str, on_demand: Callable[[Address], bool],
        on_waiting: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        """`on_demand` says whether the address is a member's: others are not heard again.

        `on_waiting` gets the first HEAD_BYTES of what is for members that are being looked for.
        """
        self._interface = interface
        self._on_demand = on_demand
        self._on_waiting = on_waiting
        self._socket: socket.socket | None = None
        self._ignored: frozenset[int] = frozenset()
        self._waiting: frozenset[int] = frozenset()
        self._muted: dict[int, None] = {}

    def start(self) -> None:
        """Begin; an EnvironmentFault without CAP_NET_RAW or without the interface."""
        try:
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        except PermissionError as error:
            raise EnvironmentFault(
                "no packet socket may be opened: CAP_NET_RAW is missing",
                hint="Start the agent as root, or with CAP_NET_ADMIN and CAP_NET_RAW.",
            ) from error
        try:
            sockets.attach(tap, bpf.NOTHING)
            tap.bind((self._interface, _ETH_P_ALL))
            sockets.drain(tap)
            self._socket = tap
            self._filter()
            asyncio.get_running_loop().add_reader(tap, self._readable)
        except OSError as error:
            self._socket = None
            tap.close()
            raise EnvironmentFault(
                f"outgoing packets of {self._interface} cannot be seen: {error.strerror}",
                hint="Members that nothing flows to stay unconnected until they call.",
            ) from error

    def ignore(self, addresses: Iterable[Address], waiting: Iterable[Address]) -> None:
        """Replace the addresses that are not to be heard of, and those of who is looked for."""
        tails, waiting_tails = frozenset(map(_tail, addresses)), frozenset(map(_tail, waiting))
        if (tails, waiting_tails) != (self._ignored, self._waiting):
            self._ignored, self._waiting = tails, waiting_tails
            self._filter()

    def stop(self) -> None:
        """End; stopping twice does nothing."""
        tap, self._socket = self._socket, None
        if tap is not None:
            asyncio.get_running_loop().remove_reader(tap)
            tap.close()

    def _filter(self) -> None:
        if self._socket is not None:
            tails = [*self._ignored, *self._muted]
            program = bpf.outgoing_except(tails, HEAD_BYTES, only_tcp=[*self._waiting])
            sockets.attach(self._socket, program)

    def _readable(self) -> None:
        for _ in range(sockets.BATCH):
            if self._socket is None:
                return
            try:
                head = self._socket.recv(HEAD_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # The interface is down or gone; whoever looks after it says so.
                return
            address = destination(head)
            if address is None or address.is_multicast:
                continue
            if _tail(address) in self._waiting:
                self._on_waiting(head)
            elif not self._on_demand(address):
                self._mute(address)

    def _mute(self, address: Address) -> None:
        self._muted.pop(_tail(address), None)
        self._muted[_tail(address)] = None
        if len(self._muted) > _MUTED_MAX:
            self._muted.pop(next(iter(self._muted)))
        self._filter()


def destination(head: bytes) -> Address | None:
    """Return where an IP packet goes, by its first bytes; None when it is none."""
    with contextlib.suppress(IndexError, ValueError):
        if head[0] >> 4 == 6 and len(head) >= _IPV6_BYTES:
            return ip_address(head[_IPV6_DESTINATION])
        if head[0] >> 4 == 4 and len(head) >= _IPV4_BYTES:
            return ip_address(head[_IPV4_DESTINATION])
    return None


def _tail(address: Address) -> int:
    return int(address) & 0xFFFFFFFF
