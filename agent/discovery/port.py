"""Opens the discovery port, and says in one line why it cannot. Used by `node.py`.

`Ports` is what a node needs of a network; `SystemPorts` is the machine's, and the simulator of
tests/bench/dht has another.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from agent.errors import EnvironmentFault

log = logging.getLogger(__name__)

# Room for a burst while the process is busy: some 500 datagrams. The system may grant less.
RECEIVE_BUFFER_BYTES = 1 << 20
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Ports(Protocol):
    """Where a node's datagrams go out and come in."""

    async def open(
        self, factory: Callable[[], asyncio.DatagramProtocol], host: str, port: int
    ) -> asyncio.DatagramTransport:
        """Open a UDP port for the protocol that `factory` makes; EnvironmentFault if it cannot."""

    def send_once(self, datagram: bytes, address: tuple[str, int]) -> None:
        """Send one datagram from a port of its own, and listen for nothing."""


class SystemPorts:
    """This machine's UDP ports."""

    async def open(
        self, factory: Callable[[], asyncio.DatagramProtocol], host: str, port: int
    ) -> asyncio.DatagramTransport:
        """See Ports. "::" serves IPv4 as well."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(factory, sock=open_port(host, port))
        return transport

    def send_once(self, datagram: bytes, address: tuple[str, int]) -> None:
        """See Ports; what the system cannot send is lost, as datagrams are."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as once:
                once.setblocking(False)
                once.sendto(datagram, address)
        except OSError as error:
            log.debug("discovery.probe_failed error=%s", error)


def open_port(host: str, port: int) -> socket.socket:
    """Return a UDP socket bound to an IP address and port (0: a free one), not blocking.

    "::" serves IPv4 as well, whatever the system's default, and means 0.0.0.0 where IPv6 is off.
    Raises EnvironmentFault when it cannot be bound.
    """
    try:
        return _bind(host, port)
    except OSError as error:
        fault = error
    if host == "::" and fault.errno in _NO_IPV6:
        return open_port("0.0.0.0", port)  # noqa: S104  # all addresses is what was asked for
    raise _cannot_open(host, port, fault)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if host == "::":
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind((host, port))
    except OSError:
        opened.close()
        raise
    return opened


def _cannot_open(host: str, port: int, error: OSError) -> EnvironmentFault:
    if error.errno == errno.EADDRINUSE:
        return EnvironmentFault(
            f"UDP port {port} (discovery) is in use",
            hint="Another agent may be running; stop it, or choose another port.",
        )
    if error.errno == errno.EACCES:
        return EnvironmentFault(
            f"UDP port {port} (discovery) may not be opened by this user",
            hint="Choose a port above 1023.",
        )
    return EnvironmentFault(
        f"cannot open UDP {host} port {port} (discovery): {error.strerror or error}",
        hint="Choose an address of this machine, or 0.0.0.0 for all of them.",
    )
