"""Two nodes with an underlay between them, on the fake device or in real network namespaces.

`pair` runs a test once per backend: fake and userspace here, kernel in the virtual machine
(tests/vm sets COVEY_TEST_DEVICES). A namespace here is a thread that has unshared its network: it
has no name, and goes with the thread. Interface names hold our pid, since wireguard-go's sockets
share one directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Any, TypeVar

import pytest
from pyroute2 import IPRoute

from agent.overlay import links
from agent.overlay.alias import Keeping
from agent.overlay.device import Device, Interface, Opened, PeerConfig
from agent.overlay.fake import FakeDevice, FakeUnderlay
from agent.overlay.kernel import KernelDevice
from agent.overlay.userspace import SOCKET_DIRECTORY, UserspaceDevice

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

BACKENDS = os.environ.get("COVEY_TEST_DEVICES", "fake,userspace").split(",")
collect_ignore = [] if "kernel" in BACKENDS else ["test_kernel_only.py"]
PORTS = (51820, 51821)
KEYS = (bytes([1]) * 32, bytes([2]) * 32)
ADDRESSES: tuple[tuple[Interface, ...], ...] = (
    (ip_interface("fd12:3456:789a::1/48"), ip_interface("10.77.1.1/16")),
    (ip_interface("fd12:3456:789a::2/48"), ip_interface("10.77.2.2/16")),
)
HOSTS = ("192.0.2.1", "192.0.2.2")


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def may_make_namespaces() -> bool:
    """Say whether this process may make a network namespace and a device in it."""
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(_libc.unshare(_CLONE_NEWNET)))
    thread.start()
    thread.join()
    return done == [0]


class Host:
    """A machine: a thread in a network namespace of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=_unshare)
        tid = self.run(threading.get_native_id)
        self.namespace = os.open(f"/proc/self/task/{tid}/ns/net", os.O_RDONLY)
        self.run(self._loopback_up)

    def run(self, function: Callable[..., _T], *arguments: Any, **keywords: Any) -> _T:
        """Run in the machine's thread."""
        return self._thread.submit(function, *arguments, **keywords).result(30)

    def close(self) -> None:
        os.close(self.namespace)
        self._thread.shutdown()

    def connect(self, other: Host, name: str = "u0") -> None:
        """Lay a cable between two machines; both ends have the same name."""

        def add() -> None:
            with IPRoute() as netlink:
                peer = {"ifname": name, "net_ns_fd": other.namespace}
                netlink.link("add", ifname=name, kind="veth", peer=peer)

        self.run(add)

    def address(self, address: str, *, action: str = "add", name: str = "u0") -> None:
        """Add or remove an underlay address, and bring the interface up."""

        def change() -> None:
            with IPRoute() as netlink:
                index = socket.if_nametoindex(name)
                netlink.addr(action, index=index, address=address, prefixlen=24)
                netlink.link("set", index=index, state="up")

        self.run(change)

    def drop_net_admin(self) -> None:
        """Take CAP_NET_ADMIN (12) from the machine's thread and all that it starts."""

        def drop() -> None:
            header = struct.pack("Ii", 0x20080522, 0)
            data = ctypes.create_string_buffer(24)
            assert _libc.capget(header, data) == 0
            words = list(struct.unpack("6I", data.raw))
            words[:3] = [word & ~(1 << 12) for word in words[:3]]
            assert _libc.capset(header, struct.pack("6I", *words)) == 0
            assert _libc.prctl(24, 12, 0, 0, 0) == 0  # PR_CAPBSET_DROP

        self.run(drop)

    @staticmethod
    def _loopback_up() -> None:
        with IPRoute() as netlink:
            netlink.link("set", index=socket.if_nametoindex("lo"), state="up")


class OnHost:
    """A device whose every call runs on its host."""

    def __init__(self, host: Host, device: Device) -> None:
        self._host = host
        self.device = device

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.device, name)
        if not callable(value):
            return value
        return lambda *arguments, **keywords: self._host.run(value, *arguments, **keywords)


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo(address: IPv4Address | IPv6Address, timeout_s: float) -> bool:
    """Say whether the address answers an ICMP echo; one is sent every 0.1 s."""
    version6 = address.version == 6
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        if version6
        else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    kind, answer = (128, 129) if version6 else (8, 0)
    body = struct.pack("!HH", os.getpid() & 0xFFFF, threading.get_native_id() & 0xFFFF) + b"covey!"
    checksum = 0 if version6 else _checksum(struct.pack("!BBH", kind, 0, 0) + body)
    packet = struct.pack("!BBH", kind, 0, checksum) + body
    deadline = time.monotonic() + timeout_s
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        while time.monotonic() < deadline:
            raw.settimeout(0.1)
            with contextlib.suppress(OSError):  # no route, no peer, or no answer yet
                raw.sendto(packet, (str(address), 0))
                while True:
                    data, sender = raw.recvfrom(2048)
                    message = data if version6 else data[20:]
                    if message[0] == answer and message[4:] == body:
                        return bool(ip_address(sender[0]) == address)
            time.sleep(0.01)
    return False


class Pair:
    """Two nodes; side is 0 or 1. The fake's half; `RealPair` is the other."""

    kind = "fake"
    name = "covey0"

    def __init__(self) -> None:
        self.underlay = FakeUnderlay()
        self.devices: list[Any] = [self.device(side) for side in (0, 1)]

    def device(self, side: int) -> Any:
        """Return another, closed device for that side, with the same interface name."""
        return FakeDevice(self.name, self.underlay, HOSTS[side], machine=HOSTS[side])

    def open(self, side: int, **changes: Any) -> Any:
        """Open that side's device and return it."""
        self.opens(side, **changes)
        return self.devices[side]

    def opens(self, side: int, **changes: Any) -> Opened:
        """Open that side's device and return what it came upon."""
        arguments = {
            "private_key": KEYS[side],
            "listen_port": PORTS[side],
            "addresses": ADDRESSES[side],
        }
        opened: Opened = self.devices[side].open(**(arguments | changes))
        return opened

    def peer(self, side: int, **changes: Any) -> PeerConfig:
        """Return the configuration with which the other side knows that side."""
        fields: dict[str, Any] = {
            "node_public": links.public_key(KEYS[side]),
            "endpoint": (HOSTS[side], PORTS[side]),
            "allowed_ips": tuple(
                type(interface.network)((interface.ip, interface.max_prefixlen))
                for interface in ADDRESSES[side]
            ),
        }
        return PeerConfig(**(fields | changes))

    def up(self) -> tuple[Any, Any]:
        """Open both, each with the other as its peer."""
        first, second = self.open(0), self.open(1)
        first.apply([self.peer(1)])
        second.apply([self.peer(0)])
        return first, second

    def abandon(self, side: int) -> None:
        """Have that side's agent killed; its device goes on alone, with another one for ours."""
        self.devices[side].outlive()
        self.devices[side] = self.device(side)

    def ping(self, side: int, address: str, timeout_s: float = 3.0) -> bool:
        """Ping an overlay address from that side."""
        return bool(self.devices[side].ping(ip_address(address)))

    def move(self, side: int, host: str) -> None:
        """Give that side another underlay address in place of its own."""
        self.devices[side].move(host)

    @contextlib.contextmanager
    def port_taken(self, side: int, port: int) -> Iterator[None]:
        self.underlay.ports.add((HOSTS[side], port))
        yield
        self.underlay.ports.remove((HOSTS[side], port))

    @contextlib.contextmanager
    def name_taken(self, side: int) -> Iterator[None]:
        """An interface of someone else has our name; it must live on."""
        key = (HOSTS[side], self.name)
        self.underlay.interfaces[key] = b"someone else"
        yield
        assert self.underlay.interfaces.pop(key) == b"someone else"

    def left(self, side: int) -> list[str]:
        """Return what there is of the interface on that side."""
        return [str(key) for key in self.underlay.interfaces if key[0] == HOSTS[side]]

    def shown_addresses(self, side: int) -> set[str]:
        return {str(address) for address in self.devices[side].config.addresses}

    def close(self) -> None:
        for device in self.devices:
            device.close()


class RealPair(Pair):
    """Two network namespaces with a cable between them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.names = tuple(f"cv{os.getpid()}{letter}" for letter in "ab")
        self.hosts = (Host(), Host())
        self.hosts[0].connect(self.hosts[1])
        for host, address in zip(self.hosts, HOSTS, strict=True):
            host.address(address)
        self.devices = [self.device(side) for side in (0, 1)]

    def device(self, side: int) -> Any:
        backend = {"kernel": KernelDevice, "userspace": UserspaceDevice}[self.kind]
        return OnHost(self.hosts[side], backend(self.names[side], Keeping(60.0)))

    def abandon(self, side: int) -> None:
        device = self.devices[side].device
        children = [device._afterwards._process]
        device._afterwards._let_go()
        if self.kind == "userspace":
            children.append(device._process._child)
            device._process._let_go()
        for child in filter(None, children):
            child.returncode = 0  # nobody here waits for it any more
        device._forget()
        self.devices[side] = self.device(side)

    def ping(self, side: int, address: str, timeout_s: float = 3.0) -> bool:
        return self.hosts[side].run(echo, ip_address(address), timeout_s)

    def ping_from_worker(self, side: int, address: str, timeout_s: float = 3.0) -> bool:
        """Do as `ping`, in a new thread of that side, for when its own thread is busy."""
        answers: list[bool] = []

        def enter_and_ping() -> None:
            assert _libc.setns(self.hosts[side].namespace, _CLONE_NEWNET) == 0
            answers.append(echo(ip_address(address), timeout_s))

        thread = threading.Thread(target=enter_and_ping)
        thread.start()
        thread.join()
        return answers == [True]

    def move(self, side: int, host: str) -> None:
        # In this order: the kernel drops a network's other addresses with its first one.
        self.hosts[side].address(HOSTS[side], action="del")
        self.hosts[side].address(host)

    @contextlib.contextmanager
    def port_taken(self, side: int, port: int) -> Iterator[None]:
        def bind() -> socket.socket:
            holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            holder.bind(("0.0.0.0", port))
            return holder

        with self.hosts[side].run(bind):
            yield

    @contextlib.contextmanager
    def name_taken(self, side: int) -> Iterator[None]:
        def add() -> None:
            with IPRoute() as netlink:
                netlink.link("add", ifname=self.names[side], kind="veth", peer="other")

        self.hosts[side].run(add)
        yield
        assert self.hosts[side].run(links.find, self.names[side]).kind == "veth"
        self.hosts[side].run(links.delete, self.names[side])

    def left(self, side: int) -> list[str]:
        name = self.names[side]
        found = [name] if self.hosts[side].run(links.exists, name) else []
        path = SOCKET_DIRECTORY / f"{name}.sock"
        found += [str(path)] if path.exists() else []
        return found + processes(name)

    def shown_addresses(self, side: int) -> set[str]:
        def show() -> set[str]:
            with IPRoute() as netlink:
                index = socket.if_nametoindex(self.names[side])
                return {
                    f"{a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}"
                    for a in netlink.get_addr(index=index)
                    if a["scope"] == 0
                }

        return self.hosts[side].run(show)

    def close(self) -> None:
        try:
            super().close()
            leftovers = self.left(0) + self.left(1)
        finally:
            for host in self.hosts:
                host.close()
        assert leftovers == []


def processes(name: str) -> list[str]:
    """Return the pids of running wireguard-go processes for that interface."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
            words = stream.read().split(b"\0")
            if name.encode() in words and any(word.endswith(b"wireguard-go") for word in words):
                found.append(pid)
    return found


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Real devices need namespaces; without the right to make them test_rootless has the cases."""
    if not may_make_namespaces():
        pytest.skip(
            "may not make network namespaces; test_rootless.py runs this in a user namespace"
        )


@pytest.fixture(params=BACKENDS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "fake":
        both = Pair()
    else:
        request.getfixturevalue("namespaces")
        both = RealPair(request.param)
    yield both
    both.close()


@pytest.fixture(params=[backend for backend in BACKENDS if backend != "fake"])
def wired(request: pytest.FixtureRequest, namespaces: None) -> Iterator[RealPair]:
    """Two namespaces, for what only a kernel's network can show; once per real backend."""
    both = RealPair(request.param)
    yield both
    both.close()


@pytest.fixture
def real(namespaces: None) -> Iterator[RealPair]:
    """Two namespaces for cases that only wireguard-go has."""
    both = RealPair("userspace")
    yield both
    both.close()


@pytest.fixture
def running() -> Callable[[str], list[str]]:
    """Return the function that lists wireguard-go processes by interface name."""
    return processes
