"""The kernel's side of the ACL: a network namespace of members, and an overlay that is a wire.

The sandbox's own namespace is the node; its end of a veth pair stands for the overlay's interface,
plain addresses for overlay addresses. All members are in the namespace behind it, each on addresses
of its own. No WireGuard: that a source address is a member's is WireGuard's part.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import acl_worlds as worlds

OVERLAY, LAN = "acl-overlay", "acl-lan"
OVERLAY_PEER, LAN_PEER = "acl-overlay-m", "acl-lan-m"
MEMBERS = 6
NAMESPACE = "acl-members"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def do(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Wire:
    """The members' namespace; `socket` makes sockets in it, which are used from anywhere."""

    members: ThreadPoolExecutor

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.members.submit(socket.socket, family, kind, protocol).result()


def _enter() -> None:
    with open(f"/run/netns/{NAMESPACE}") as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def _addresses(number: int) -> tuple[str, str]:
    return f"fd00:77::{number + 16:x}", f"10.77.0.{number + 16}"


@contextmanager
def made_wire() -> Iterator[Wire]:
    """Addresses as in `acl_worlds.subject`; number 0 is this node, one past the last a stranger."""
    with ExitStack() as stack:
        do("ip", "netns", "add", NAMESPACE)
        stack.callback(do, "ip", "netns", "del", NAMESPACE)
        _join(OVERLAY, OVERLAY_PEER)
        stack.callback(do, "ip", "link", "del", OVERLAY)
        _join(LAN, LAN_PEER)
        stack.callback(do, "ip", "link", "del", LAN)
        others = range(1, MEMBERS + 1)
        here, there = [], []
        for version, own in zip("64", _addresses(0), strict=True):
            length = {"6": 64, "4": 16}[version]
            flags = "nodad" if version == "6" else ""
            here.append(f"address add {own}/{length} dev {OVERLAY} {flags}")
            # Neighbours are set by hand: WireGuard asks for none, and the rules let none be asked.
            there.append(f"neighbour add {own} lladdr {_MACS[0]} dev {OVERLAY_PEER}")
            for number in others:
                address = _addresses(number)["64".index(version)]
                there.append(f"address add {address}/{length} dev {OVERLAY_PEER} {flags}")
                here.append(f"neighbour add {address} lladdr {_MACS[1]} dev {OVERLAY}")
        here.append(f"address add 198.18.250.1/24 dev {LAN}")
        there.append(f"address add 198.18.250.2/24 dev {LAN_PEER}")
        do("ip", "-batch", "-", stdin="\n".join(here))
        do("ip", "-n", NAMESPACE, "-batch", "-", stdin="\n".join(there))
        with ThreadPoolExecutor(1, initializer=_enter) as members:
            yield Wire(members)


def _join(link: str, peer: str) -> None:
    do("ip", "link", "add", link, "address", _MACS[0], "type", "veth",
       "peer", "name", peer, "address", _MACS[1], "netns", NAMESPACE)  # fmt: skip
    do("ip", "link", "set", link, "up")
    do("ip", "-n", NAMESPACE, "link", "set", peer, "up")


@dataclass(frozen=True)
class Services:
    """Sockets on this node that answer: TCP listeners and UDP sockets by port, on all addresses."""

    udp: dict[int, socket.socket]
    tcp: dict[int, socket.socket]


@contextmanager
def made_services() -> Iterator[Services]:
    """Open a socket on every port that worlds are about."""
    with ExitStack() as stack:

        def opened(kind: int, port: int) -> socket.socket:
            made = stack.enter_context(socket.socket(socket.AF_INET6, kind))
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("::", port))
            made.setblocking(False)
            if kind == socket.SOCK_STREAM:
                made.listen(512)
            return made

        yield Services(
            {port: opened(socket.SOCK_DGRAM, port) for port in worlds.UDP_PORTS},
            {port: opened(socket.SOCK_STREAM, port) for port in worlds.TCP_PORTS},
        )
