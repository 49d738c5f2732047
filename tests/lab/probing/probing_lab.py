"""Machines behind NATs for the probing tests: namespaces, each with a thread and an event loop.

    a ── nat-a ──┐
                 ├── internet (a bridge; r is on it, with public addresses)
    b ── nat-b ──┘

IPv4 is translated: an easy NAT keeps ports, a hard one takes random ones for each flow, and both
let in replies only. IPv6 is routed, behind the same kind of firewall. What runs in a machine's
thread, and what that starts, is on that machine. wireguard-go's sockets share one directory, so
interface names differ.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from typing import Any, TypeVar

from agent.overlay import links
from agent.overlay.device import PeerConfig, PeerState
from agent.overlay.kernel import KernelDevice
from agent.overlay.userspace import UserspaceDevice
from agent.probing.plainport import PlainPort
from agent.probing.port import MAGIC, OnDatagram, Place, Port
from agent.probing.rawport import RawPort
from agent.probing.rendezvous import Asked, Rendezvous

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# In a virtual machine (tests/vm) the same tests can have WireGuard in the kernel.
KERNEL = os.environ.get("COVEY_TEST_DEVICES") == "kernel"
DEVICE = KernelDevice if KERNEL else UserspaceDevice
WG = 51820
R4, R6 = "198.18.200.1", "2001:db8:200::1"
PUBLIC = {"a": "198.18.200.10", "b": "198.18.200.20"}
INSIDE = {"a": "192.168.10.2", "b": "192.168.20.2"}
INSIDE6 = {"a": "2001:db8:a::2", "b": "2001:db8:b::2"}
NUMBERS = {"a": 1, "b": 2, "r": 3}
ASK = MAGIC + b"?"


def do(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Host:
    """A machine: its namespace, the thread in it, and the event loop of that thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.loop = asyncio.new_event_loop()
        do("ip", "netns", "add", name)
        do("ip", "-n", name, "link", "set", "lo", "up")
        self._thread.start()
        self._ready.wait(10)
        self._worker = ThreadPoolExecutor(1, initializer=self._enter)

    def _enter(self) -> None:
        with open(f"/run/netns/{self.name}") as namespace:
            assert _libc.setns(namespace.fileno(), _CLONE_NEWNET) == 0

    def _live(self) -> None:
        self._enter()
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._ready.set)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def begin(self, work: Awaitable[_T]) -> Future[_T]:
        """Start something on the machine's loop."""

        async def whole() -> _T:
            return await work

        return asyncio.run_coroutine_threadsafe(whole(), self.loop)

    def wait(self, work: Awaitable[_T], timeout_s: float = 60.0) -> _T:
        """Run something on the machine's loop to its end."""
        return self.begin(work).result(timeout_s)

    def call(self, function: Callable[..., _T], *arguments: Any, **keywords: Any) -> _T:
        """Call a function on the machine's loop."""

        async def called() -> _T:
            return function(*arguments, **keywords)

        return self.wait(called())

    def block(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function that blocks, or cannot be in an event loop, in a thread of its own."""
        return self._worker.submit(function, *arguments).result(60)

    def ip(self, *arguments: str) -> None:
        do("ip", "-n", self.name, *arguments)

    def nft(self, *arguments: str, stdin: str = "") -> str:
        return self.do("nft", *arguments, stdin=stdin)

    def do(self, *command: str, stdin: str = "") -> str:
        return do("nsenter", f"--net=/run/netns/{self.name}", *command, stdin=stdin)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self._worker.shutdown()
        do("ip", "netns", "del", self.name)


class World:
    """The machines, made anew for each test."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.devices: dict[str, KernelDevice | UserspaceDevice] = {}
        self._ports: list[tuple[Host, Port]] = []

    def build(self, kinds: dict[str, str]) -> None:
        """Make the machines, a and b behind NATs of these kinds."""
        names = [name for side in kinds for name in (side, f"nat-{side}")]
        for name in ["internet", "r", *names]:
            self.hosts[name] = Host(name)
        self.hosts["internet"].ip("link", "add", "br0", "type", "bridge")
        self.hosts["internet"].ip("link", "set", "br0", "up")
        self._plug("r", f"{R4}/24", f"{R6}/64")
        for side, kind in kinds.items():
            self._side(side, kind)
        for side in kinds:  # the internet knows the way to everyone's IPv6
            for name in ["r", *(f"nat-{other}" for other in kinds if other != side)]:
                way = ["via", _outside6(side)]
                self.hosts[name].ip("route", "add", f"{INSIDE6[side][:-1]}/64", *way)

    def _plug(self, name: str, *addresses: str) -> None:
        """Join a machine to the internet by its link `wan`."""
        do("ip", "link", "add", "wan", "netns", name, "type", "veth",
           "peer", "name", f"to-{name}", "netns", "internet")  # fmt: skip
        self.hosts["internet"].ip("link", "set", f"to-{name}", "master", "br0", "up")
        self._address(name, "wan", *addresses)

    def _address(self, name: str, link: str, *addresses: str) -> None:
        for address in addresses:
            flags = ["nodad"] if ":" in address else []
            self.hosts[name].ip("address", "add", address, "dev", link, *flags)
        self.hosts[name].ip("link", "set", link, "up")

    def _side(self, side: str, kind: str) -> None:
        router = f"nat-{side}"
        self._plug(router, f"{PUBLIC[side]}/24", f"{_outside6(side)}/64")
        do("ip", "link", "add", "wan", "netns", side, "type", "veth",
           "peer", "name", "lan", "netns", router)  # fmt: skip
        self._address(side, "wan", f"{INSIDE[side]}/24", f"{INSIDE6[side]}/64")
        gateway = f"{INSIDE[side][:-1]}1", f"{INSIDE6[side][:-1]}1"
        self._address(router, "lan", f"{gateway[0]}/24", f"{gateway[1]}/64")
        for address in gateway:
            self.hosts[side].ip("route", "add", "default", "via", address)
        for switch in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            self.hosts[router].do("sysctl", "-qw", switch)
        mode = {"easy": "masquerade", "hard": "masquerade fully-random"}[kind]
        self.hosts[router].nft("-f", "-", stdin=_ROUTER.replace("MODE", mode))

    def wireguard(self, *names: str) -> None:
        """Give machines a WireGuard without peers: wireguard-go, or the kernel's (KERNEL)."""
        for name in names:
            device = DEVICE(f"wgp-{name}")
            self.hosts[name].block(device.open, key(name), WG, overlay(name))
            self.devices[name] = device

    def peers(self, name: str, *others: tuple[str, Place | None], calls: bool = True) -> None:
        """Make these the machine's WireGuard peers, at these endpoints.

        Only one of two `calls` the other at once: where both do within one way's time, each drops
        its own handshake for the other's, and nothing happens until WireGuard tries again, after
        5 s.
        """
        wanted = [
            PeerConfig(
                links.public_key(key(other)),
                endpoint,
                tuple(ip_network(address.ip) for address in overlay(other)),
                5 if endpoint and calls else 0,
            )
            for other, endpoint in others
        ]
        self.hosts[name].block(self.devices[name].apply, wanted)

    def peer(self, name: str, other: str) -> PeerState:
        """Return what WireGuard on `name` knows of `other`."""
        states = self.hosts[name].block(self.devices[name].peers)
        return next(s for s in states if s.public_key == links.public_key(key(other)))

    def open(self, name: str, port: Port, on_datagram: OnDatagram = lambda *_: None) -> Port:
        """Open a port on a machine."""
        self.hosts[name].call(port.open, on_datagram)
        self._ports.append((self.hosts[name], port))
        return port

    def rendezvous(self) -> Rendezvous:
        """Run a rendezvous on r, which tells everyone who asks ASK where it is seen."""
        raw = RawPort(WG)
        made = Rendezvous(raw, PlainPort(WG + 1), _tell)
        self.open("r", raw, made.heard)
        self.hosts["r"].call(made.start)
        self._ports.append((self.hosts["r"], made._ports[Asked.SECOND]))
        return made

    def ping(self, name: str, other: str, timeout_s: float = 5.0) -> float | None:
        """Return after how many seconds `other`'s overlay address answered `name` first."""
        return self.hosts[name].block(_ping, str(overlay(other)[1].ip), timeout_s)

    def close(self) -> None:
        for host, port in reversed(self._ports):
            host.call(port.close)
        for name, device in self.devices.items():
            self.hosts[name].block(device.close)
        for host in self.hosts.values():
            host.close()


def key(name: str) -> bytes:
    return bytes([NUMBERS[name]]) * 32


def overlay(name: str) -> Sequence[IPv4Interface | IPv6Interface]:
    number = NUMBERS[name]
    return [ip_interface(f"fd12:3456:789a::{number}/48"), ip_interface(f"10.77.0.{number}/16")]


def _ping(address: str, timeout_s: float) -> float | None:
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as echo:
        echo.settimeout(0.1)
        while time.monotonic() - began < timeout_s:
            request = struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0808, 7, 1)  # sums to all ones
            try:
                echo.sendto(request, (address, 0))
                if echo.recv(2000)[20] == 0:
                    return time.monotonic() - began
            except OSError:  # nothing yet; or no peer with an endpoint to send it to
                time.sleep(0.02)
    return None


def _outside6(side: str) -> str:
    return f"2001:db8:200::{NUMBERS[side]}0"


def _tell(place: Place, payload: bytes, asked: Asked) -> bytes | None:
    return MAGIC + f"{place[0]} {place[1]} {asked.name}".encode() if payload == ASK else None


@contextmanager
def world(**kinds: str) -> Iterator[World]:
    made = World()
    try:
        made.build(kinds)
        yield made
    finally:
        made.close()


class Inbox:
    """What came to a port: an OnDatagram, and waiting for it."""

    def __init__(self) -> None:
        self.came: list[tuple[Place, bytes, str]] = []

    def __call__(self, place: Place, payload: bytes, local: str) -> None:
        self.came.append((place, payload, local))


async def observed(port: Port, inbox: Inbox, host: str) -> tuple[Place, Place]:
    """Ask both ports of the rendezvous at `host` where `port` is seen."""
    seen: dict[str, Place] = {}
    async with asyncio.timeout(5):
        while len(seen) < 2:
            for number in (WG, WG + 1):
                port.send((host, number), ASK)
            await asyncio.sleep(0.02)
            for place, payload, _ in inbox.came:
                if place[0] == host:
                    said = payload[len(MAGIC) :].decode().split()
                    assert place[1] == (WG if said[2] == "WIREGUARD" else WG + 1)
                    seen[said[2]] = said[0], int(said[1])
    return seen["WIREGUARD"], seen["SECOND"]


async def punched(port: Port, inbox: Inbox, peer: Place) -> float:
    """Send to the peer until it has heard us and we it; return how long that took."""
    began, heard_us = time.monotonic(), False
    async with asyncio.timeout(10):
        while not heard_us:
            heard = any(place == peer for place, _, _ in inbox.came)
            port.send(peer, MAGIC + (b"heard you" if heard else b"hello"))
            await asyncio.sleep(0.02)
            heard_us = any(p == peer and said.endswith(b"you") for p, said, _ in inbox.came)
    port.send(peer, MAGIC + b"heard you")
    return time.monotonic() - began


_ROUTER = """
table inet router {
  chain forward {
    type filter hook forward priority filter; policy drop;
    iifname "lan" accept
    ct state established,related accept
  }
  chain input {
    type filter hook input priority filter; policy accept;
    iifname "wan" meta l4proto udp ct state new drop
  }
}
table ip router {
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
    oifname "wan" MODE
  }
}
"""
