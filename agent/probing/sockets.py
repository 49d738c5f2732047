"""What raw and plain sockets of ours have in common: filter, options, errors, reading. A shell."""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Sequence

from agent.probing import bpf
from agent.probing.port import OnDatagram, Place, Sent

_log = logging.getLogger(__name__)

# asm-generic/socket.h, linux/in.h, linux/in6.h: not in Python's socket module.
_SO_ATTACH_FILTER = 26
_SOCK_FPROG = struct.Struct("@HP")
IP_PKTINFO = 8
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_DONTFRAG = 10, 23, 62
# DF is clear; or it is set whatever the kernel believes of the path's MTU: that is what we measure.
_PMTUDISC_DONT, _PMTUDISC_PROBE = 0, 3
PKTINFO4 = struct.Struct("=i4s4s")
"""`struct in_pktinfo`: interface, the local address, the address in the header."""
PKTINFO6 = struct.Struct("=16si")
"""`struct in6_pktinfo`: the local address, interface."""
# What one wake-up reads at most: 0.3 ms of the loop's time, and what is done with it. The rest
# wakes it again.
BATCH = 64

_OUTCOMES = {
    errno.EMSGSIZE: Sent.TOO_BIG,
    errno.ENETUNREACH: Sent.NO_ROUTE,
    errno.EHOSTUNREACH: Sent.NO_ROUTE,
    errno.ENETDOWN: Sent.NO_ROUTE,
    errno.ENODEV: Sent.NO_ROUTE,
    errno.EADDRNOTAVAIL: Sent.NO_ROUTE,
    errno.EINVAL: Sent.NO_ROUTE,  # the source address is not ours (any more)
    errno.EAGAIN: Sent.BUSY,
    errno.ENOBUFS: Sent.BUSY,
    errno.ENOMEM: Sent.BUSY,
}

Ancillary = list[tuple[int, int, bytes]]


def attach(sock: socket.socket, program: Sequence[bpf.Instruction]) -> None:
    """Put a filter in force, in place of the one before."""
    code = ctypes.create_string_buffer(bpf.packed(program))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, _SOCK_FPROG.pack(len(program), ctypes.addressof(code))
    )


def drain(sock: socket.socket) -> None:
    """Throw away what is queued; the filter must be one that lets nothing follow."""
    while True:
        try:
            sock.recv(1)
        except BlockingIOError:
            return


def pktinfo(family: int, local: str) -> Ancillary:
    """Return the control message that makes a datagram leave from one address of ours."""
    if family == socket.AF_INET6:
        info = PKTINFO6.pack(socket.inet_pton(family, local), 0)
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
    info = PKTINFO4.pack(0, socket.inet_pton(family, local), bytes(4))
    return [(socket.IPPROTO_IP, IP_PKTINFO, info)]


def local_address(ancillary: Ancillary) -> str | None:
    """Return which address of ours a datagram came to, out of what came with it."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return socket.inet_ntop(socket.AF_INET, PKTINFO4.unpack(data)[1])
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return socket.inet_ntop(socket.AF_INET6, PKTINFO6.unpack(data)[0])
    return None


class Sender:
    """Sends by one socket; sets whether datagrams may be fragmented only when that changes."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._whole: bool | None = None

    def send(
        self, parts: Sequence[bytes], ancillary: Ancillary, address: tuple[object, ...], whole: bool
    ) -> Sent:
        """Send; every error of the system becomes an outcome."""
        try:
            if whole is not self._whole:
                self._set_whole(whole)
            self._socket.sendmsg(parts, ancillary, 0, address)
        except OSError as error:
            outcome = _OUTCOMES.get(error.errno or 0, Sent.REFUSED)
            if outcome is Sent.REFUSED:
                _log.debug("datagram not sent to=%s: %s", address[0], error)
            return outcome
        return Sent.SENT

    def _set_whole(self, whole: bool) -> None:
        self._whole = None
        mode = _PMTUDISC_PROBE if whole else _PMTUDISC_DONT
        if self._socket.family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, mode)
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, int(whole))
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, mode)
        self._whole = whole


def deliver(on_datagram: OnDatagram, place: Place, payload: bytes, local: str) -> None:
    """Pass a datagram on; what the callback does wrong must not end the reading."""
    try:
        on_datagram(place, payload, local)
    except Exception:
        _log.exception("taking in a datagram from %s failed", place[0])


def read_batch(read_one: Callable[[], None]) -> None:
    """Read until nothing is left, at most BATCH."""
    for _ in range(BATCH):
        try:
            read_one()
        except BlockingIOError:
            return
        except OSError as error:  # the interface went, say; the socket lives on
            _log.debug("reading a datagram failed: %s", error)
            return
