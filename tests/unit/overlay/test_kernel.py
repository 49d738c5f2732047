"""Kernel WireGuard: what can be said without the module; test_kernel_only.py is the rest."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from pyroute2.netlink.generic.wireguard import wgmsg

from agent.errors import EnvironmentFault
from agent.overlay import links
from agent.overlay.device import PeerConfig
from agent.overlay.kernel import KernelDevice

KEY = bytes([1]) * 32
ADDRESSES = [ip_interface("fd00::1/48")]


@pytest.fixture
def host(real: Any) -> Any:
    """A machine without a device."""
    return real.hosts[0]


def test_no_kernel_module(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "add_wireguard", lambda name: False)
    device = KernelDevice("cvk0")
    assert host.run(device.try_open, KEY, 0, ADDRESSES) is None
    with pytest.raises(EnvironmentFault, match="this kernel has no WireGuard") as caught:
        host.run(device.open, KEY, 0, ADDRESSES)
    assert "modprobe" in caught.value.hint
    assert device.failure() == "the device is closed"


def test_no_capability(host: Any) -> None:
    host.drop_net_admin()
    with pytest.raises(
        EnvironmentFault,
        match=r"^cannot create the WireGuard interface cvk0: this needs CAP_NET_ADMIN$",
    ) as caught:
        host.run(KernelDevice("cvk0").open, KEY, 0, ADDRESSES)
    assert "root" in caught.value.hint
    assert "container `--cap-add NET_ADMIN`" in caught.value.hint


def test_peers_that_are_adopted_are_read_as_they_could_have_been_set() -> None:
    """The message is laid out as the kernel sends it; a peer goes on in the next nest."""

    def attribute(kind: int, value: bytes, *, nested: bool = False) -> bytes:
        head = struct.pack("=HH", 4 + len(value), kind | (0x8000 if nested else 0))
        return head + value + bytes(-len(value) % 4)

    def network(family: int, address: str, length: int) -> bytes:
        parts = (
            (1, struct.pack("=H", family)),
            (2, socket.inet_pton(family, address)),
            (3, bytes([length])),
        )
        return attribute(0, b"".join(attribute(*part) for part in parts), nested=True)

    key = bytes(range(32))
    place = struct.pack("=H", socket.AF_INET) + struct.pack(">H", 51820) + bytes([192, 0, 2, 1])
    peers = [
        attribute(1, key) + attribute(4, place + bytes(8)) + attribute(5, struct.pack("=H", 15))
        + attribute(9, network(socket.AF_INET, "10.77.1.1", 32), nested=True),
        attribute(1, key) + attribute(9, network(socket.AF_INET6, "fd00::1", 128), nested=True),
    ]  # fmt: skip
    nest = attribute(8, b"".join(attribute(0, peer, nested=True) for peer in peers), nested=True)
    body = struct.pack("=BBH", 0, 1, 0) + nest
    message = wgmsg(struct.pack("=IHHII", 16 + len(body), 30, 0, 1, 0) + body)
    message.decode()
    device = KernelDevice("cvk0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_read_peers", lambda: message.get_attr("WGDEVICE_A_PEERS"))
        (config,) = device._configs()
    assert config == PeerConfig(
        key, ("192.0.2.1", 51820), (ip_network("10.77.1.1/32"), ip_network("fd00::1/128")), 15
    )
