"""What the kernel tells of links, addresses and routes, as it happens. A shell around one socket.

Used by whoever looks for changes: the overlay's devices, the LAN, the path engine. For asking and
setting there is pyroute2 (`agent/overlay/links.py`), which takes long to import; this does not,
and has the two requests of `agent/overlay/afterwards.py`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

# linux/netlink.h and linux/rtnetlink.h: the family, and the groups of events.
_NETLINK_ROUTE = 0
LINKS, IPV4_ADDRESSES, IPV6_ADDRESSES = 0x1, 0x10, 0x100
IPV4_ROUTES, IPV6_ROUTES = 0x40, 0x400
_EVENT_BYTES = 65536
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ERROR = struct.Struct("=i")
_NLMSG_ERROR, _RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 2, 16, 17, 18
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_IFLA_IFALIAS = 20
_ANSWER_TIMEOUT_S = 5.0


class Message(NamedTuple):
    """One message: its type (RTM_NEWADDR, …) and what follows the netlink header."""

    kind: int
    body: bytes


class RouteEvents:
    """Listens to groups of events. Raises OSError where the system does not tell."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, groups))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, for an event loop."""
        return self._socket.fileno()

    def read(self) -> list[bytes] | None:
        """Return what came since the last call, unread; None if more came than the kernel keeps."""
        found: list[bytes] = []
        lost = False
        while True:
            try:
                found.append(self._socket.recv(_EVENT_BYTES))
            except BlockingIOError:
                return None if lost else found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._socket.close()


def messages(datagram: bytes) -> Iterator[Message]:
    """Yield the messages of a datagram of events."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= len(datagram) - at:
            return
        yield Message(kind, datagram[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes in what follows a message's fixed part, by their type."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            break
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def alias_of(interface: str) -> str | None:
    """Return an interface's alias, "" if it has none, None if there is no such interface."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return None
    try:
        answer = _asked(_RTM_GETLINK, _NLM_F_REQUEST, index)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    found = attributes(answer.body[_LINK.size :]) if answer.kind == _RTM_NEWLINK else {}
    return found.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")


def delete_link(interface: str) -> None:
    """Remove an interface; OSError where that is refused, or there is none."""
    _asked(_RTM_DELLINK, _NLM_F_REQUEST | _NLM_F_ACK, socket.if_nametoindex(interface))


def _asked(kind: int, flags: int, index: int) -> Message:
    """Send a request about a link and return the answer; OSError where the kernel refuses."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    request = _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as asking:
        asking.settimeout(_ANSWER_TIMEOUT_S)
        asking.sendto(request, (0, 0))
        answer = next(messages(asking.recv(_EVENT_BYTES)), Message(0, b""))
    if answer.kind == _NLMSG_ERROR and (code := -_ERROR.unpack_from(answer.body)[0]):
        raise OSError(code, os.strerror(code))
    return answer
