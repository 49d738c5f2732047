import asyncio
import socket
from ipaddress import IPv4Interface, IPv6Interface
from types import SimpleNamespace
from typing import Any

import pytest

from agent.lan import interfaces
from agent.lan.interfaces import INTERFACES_MAX, InterfaceChanges, LanInterface, lan_interfaces

UP, LOOPBACK, MULTICAST = 0x1, 0x8, 0x1000


def adapter(name: str, index: int, *addresses: str) -> Any:
    ips = []
    for text in addresses:
        ip, _, prefix = text.partition("/")
        entry = (ip, 0, 0) if ":" in ip else ip
        ips.append(SimpleNamespace(ip=entry, network_prefix=int(prefix)))
    return SimpleNamespace(name=name, index=index, ips=ips)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A laptop with much on it; returns the interfaces' flags, to be changed."""
    flags = {"lo": UP | LOOPBACK, "eth0": UP | MULTICAST, "wlan0": MULTICAST,
             "covey0": UP | MULTICAST, "ppp0": UP, "veth1": UP | MULTICAST}  # fmt: skip
    adapters = [
        adapter("veth1", 9, "fe80::9/64"),
        adapter("lo", 1, "127.0.0.1/8", "::1/128"),
        adapter("wlan0", 3, "192.168.2.5/24"),
        adapter("eth0", 2, "fe80::2/64", "fd00::2/64", "169.254.1.1/16", "192.168.1.5/24"),
        adapter("covey0", 4, "10.77.0.1/16"),
        adapter("ppp0", 5, "100.64.0.1/32"),
    ]
    monkeypatch.setattr(interfaces.ifaddr, "get_adapters", lambda: adapters)
    monkeypatch.setattr(interfaces, "_flags", lambda asking, name: flags[name])
    return flags


def names(*args: Any, **kwargs: Any) -> list[str]:
    return [interface.name for interface in lan_interfaces(*args, **kwargs)]


def test_only_what_is_up_takes_multicast_and_has_an_address(machine: dict[str, int]) -> None:
    assert names(["covey0"]) == ["eth0"]
    assert names() == ["eth0", "covey0"]


def test_an_interface_that_comes_up_is_found(machine: dict[str, int]) -> None:
    machine["wlan0"] |= UP
    assert names(["covey0"]) == ["eth0", "wlan0"]


def test_loopback_is_a_lan_only_where_it_is_named(machine: dict[str, int]) -> None:
    (lo,) = lan_interfaces(only=["lo"])
    assert lo.loopback
    assert [str(address) for address in lo.addresses] == ["127.0.0.1", "::1"]


def test_the_named_ones_alone_and_never_an_excluded_one(machine: dict[str, int]) -> None:
    assert names(only=["covey0", "nonesuch"]) == ["covey0"]
    assert names(["eth0"], only=["eth0"]) == []


def test_addresses_for_others_best_first(machine: dict[str, int]) -> None:
    (eth0,) = lan_interfaces(["covey0"])
    assert [str(ip) for ip in eth0.addresses] == ["192.168.1.5", "fd00::2", "169.254.1.1"]


def test_there_is_a_bound(machine: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    many = [adapter("eth0", n, f"10.0.{n}.1/24") for n in range(40, 0, -1)]
    monkeypatch.setattr(interfaces.ifaddr, "get_adapters", lambda: many)
    assert [i.index for i in lan_interfaces()] == list(range(1, INTERFACES_MAX + 1))


@pytest.mark.parametrize(
    ("address", "near"),
    [("192.168.1.77", True), ("192.168.2.77", False), ("8.8.8.8", False), ("fe80::77%eth0", True),
     ("fe80::77", True), ("fd00::77", True), ("fd01::77", False)],
)  # fmt: skip
def test_who_is_on_the_link(address: str, near: bool) -> None:
    own = LanInterface(
        "eth0", 2, (IPv4Interface("192.168.1.5/24"),), (IPv6Interface("fd00::2/64"),)
    )
    assert own.near(address) is near


def test_the_real_loopback_is_as_the_system_says() -> None:
    (lo,) = lan_interfaces(only=["lo"])
    assert lo.index == socket.if_nametoindex("lo")
    assert IPv4Interface("127.0.0.1/8") in lo.ipv4
    assert all(interface.name != "lo" for interface in lan_interfaces())


def test_the_flags_of_an_interface_that_has_gone_are_none() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        assert interfaces._flags(asking, "nonesuch0") == 0


async def test_changes_call_back_and_stop_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of sockets for netlink, which tells nothing while nobody changes this machine."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    real, calls, called = socket.socket, [], asyncio.Event()

    class Netlink(real):  # type: ignore[valid-type,misc]
        def __new__(cls, family: int = -1, *args: Any) -> Any:
            return SimpleNamespace(
                bind=calls.append, recv=ours.recv, fileno=ours.fileno, close=ours.close
            )

    monkeypatch.setattr(interfaces.socket, "socket", Netlink)
    changes = InterfaceChanges(called.set)
    assert changes.start()
    assert calls == [(0, 0x111)]
    for _ in range(3):
        kernel.send(b"news")
    async with asyncio.timeout(5):
        await called.wait()
    changes.stop()
    changes.stop()
    kernel.close()
    assert ours.fileno() == -1


async def test_the_real_netlink_can_be_heard() -> None:
    changes = InterfaceChanges(lambda: None)
    assert changes.start()
    changes.stop()


def test_a_system_without_netlink_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(interfaces.socket, "socket", refuse)
    changes = InterfaceChanges(lambda: None)
    assert not changes.start()
    changes.stop()
