"""Makes the kernel's connection tracking forget one UDP flow. A shell around one netlink message.

A flow's address translation is decided with its first packet, so a new rule of `snat.py` holds for
a flow that exists already only after this.
"""

from __future__ import annotations

import errno
import socket
import struct

from agent.probing.port import Place

# linux/netlink.h, nfnetlink.h, nfnetlink_conntrack.h.
_NETLINK_NETFILTER = 12
_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST, _ACK = 0x1, 0x4
_NLMSG_ERROR = 2
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_IP, _TUPLE_PROTO = 1, 1, 2
_IPV4_SOURCE, _IPV4_DESTINATION = 1, 2
_PROTO_NUMBER, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
# Over 100 times what it takes; the kernel answers within the call.
_TIMEOUT_S = 2.0


def forget(flows: list[tuple[Place, Place]]) -> int:
    """Forget UDP flows over IPv4 from a place to a place, whichever side began; return how many.

    Those that the kernel does not track are none. Raises OSError (EPERM without CAP_NET_ADMIN);
    a kernel without connection tracking has nothing to forget.
    """
    forgotten = 0
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return 0
        raise
    with netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.bind((0, 0))
        for number, (source, destination) in enumerate(flows, 1):
            netlink.send(request(source, destination, number))
            code = _answer(netlink.recv(4096), number)
            if code in {errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL}:
                continue  # EINVAL: nfnetlink is there, but its part for conntrack is not
            if code:
                raise OSError(code, "cannot forget a tracked connection")
            forgotten += 1
    return forgotten


def request(source: Place, destination: Place, number: int) -> bytes:
    """Return the netlink message that deletes the flow."""
    ip = _attribute(_IPV4_SOURCE, socket.inet_aton(source[0]))
    ip += _attribute(_IPV4_DESTINATION, socket.inet_aton(destination[0]))
    proto = _attribute(_PROTO_NUMBER, bytes([socket.IPPROTO_UDP]))
    proto += _attribute(_PROTO_SOURCE_PORT, struct.pack("!H", source[1]))
    proto += _attribute(_PROTO_DESTINATION_PORT, struct.pack("!H", destination[1]))
    inner = _attribute(_TUPLE_IP | _NESTED, ip) + _attribute(_TUPLE_PROTO | _NESTED, proto)
    family = struct.pack("!BBH", socket.AF_INET, 0, 0)
    body = family + _attribute(_TUPLE_ORIG | _NESTED, inner)
    return _HEADER.pack(_HEADER.size + len(body), _DELETE, _REQUEST | _ACK, number, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _answer(message: bytes, number: int) -> int:
    """Return the error code of the kernel's answer, 0 for done."""
    _, kind, _, sequence, _ = _HEADER.unpack_from(message)
    if kind != _NLMSG_ERROR or sequence != number:
        raise OSError(errno.EPROTO, "the kernel answered something else")
    return -int(_ERROR.unpack_from(message, _HEADER.size)[0])
