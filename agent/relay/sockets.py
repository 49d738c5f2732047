"""The UDP sockets of a pair's side: one on its port, one connected to its seat. A shell.

The first hears everybody and tells by which of our addresses a datagram came, since what is sent
back must come from there. The second is on the same port: the kernel gives it what comes from the
seat, and to the first all else. Used by `userspace.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys

from agent.errors import EnvironmentFault
from agent.relay.pairs import PortTaken, Seat, unmapped

# What the system holds of a burst while the thread does not run; it grants what it is allowed to.
_BUFFER_BYTES = 4 * 1024 * 1024
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32  # asm-generic/socket.h
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50  # linux/in6.h
_IP_PKTINFO = 8  # linux/in.h


def waiting(port: int) -> socket.socket:
    """Return a socket on a port of all our addresses. Raises PortTaken or EnvironmentFault."""
    try:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:  # a kernel without IPv6
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        made.bind(("" if made.family == socket.AF_INET else "::", port))
        # Only now: whoever holds the port already is a fault, our own second socket is none.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        made.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortTaken(port, os.strerror(error.errno)) from None
        raise EnvironmentFault(f"the relay cannot open UDP port {port}: {error}") from None
    return made


def connected(port: int, seat: Seat) -> socket.socket:
    """Return a socket that sends to a seat and hears nothing else. Raises OSError."""
    family = socket.AF_INET if seat.family == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for force, plain in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                made.setsockopt(socket.SOL_SOCKET, force, _BUFFER_BYTES)
            except PermissionError:
                made.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
        made.bind((seat.local, port))
        made.connect(seat.place)
    except BaseException:
        made.close()
        raise
    return made


def seat_of(source: tuple[str, int], ancillary: list[tuple[int, int, bytes]]) -> Seat | None:
    """Return where a datagram came from and by which address of ours; None: not by any."""
    host, port = source[:2]
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            local = socket.inet_ntop(socket.AF_INET6, data[:16])
            index = int.from_bytes(data[16:20], sys.byteorder)
        elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            local = socket.inet_ntop(socket.AF_INET, data[4:8])
            index = int.from_bytes(data[:4], sys.byteorder)
        else:
            continue
        if "%" in host:  # link-local: such neighbours need no relay
            return None
        try:
            return Seat((unmapped(host), port), unmapped(local), socket.if_indextoname(index))
        except OSError:  # the interface has just gone
            return None
    return None


def answer(made: socket.socket, data: bytes, seat: Seat) -> None:
    """Send to a seat from the address that it wrote to, which its NAT alone lets in."""
    host, port = seat.place
    with contextlib.suppress(OSError):  # as lost on the way: the side asks again
        if made.family == socket.AF_INET:
            info = struct.pack("=I4s4s", 0, socket.inet_aton(seat.local), bytes(4))
            made.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, (host, port))
            return
        local, to = (a if ":" in a else f"::ffff:{a}" for a in (seat.local, host))
        info = socket.inet_pton(socket.AF_INET6, local) + bytes(4)
        made.sendmsg([data], [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, info)], 0, (to, port))
