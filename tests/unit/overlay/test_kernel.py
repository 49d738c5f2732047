"""Kernel WireGuard: what can be said without the module; tests/vm runs the contract with it."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, ip_interface, ip_network
from typing import Any

import pytest

from agent.errors import EnvironmentFault
from agent.overlay import links
from agent.overlay.device import PeerConfig
from agent.overlay.kernel import KernelDevice

KEY = bytes([1]) * 32
ADDRESSES = [ip_interface("fd00::1/48")]
IN_VM = os.environ.get("COVEY_TEST_DEVICES") == "kernel"


@pytest.fixture
def host(real: Any) -> Any:
    """A machine without a device."""
    return real.hosts[0]


def test_no_kernel_module(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "add_wireguard", lambda name: False)
    device = KernelDevice("cvk0")
    assert host.run(device.try_open, KEY, 0, ADDRESSES) is False
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


@pytest.mark.skipif(not IN_VM, reason="needs kernel WireGuard: runs in tests/vm")
def test_many_peers_cross_whole_and_leak_no_descriptor(pair: Any) -> None:
    device = pair.open(0)
    before = len(os.listdir("/proc/self/fd"))
    peers = [
        PeerConfig(
            number.to_bytes(32, "big"),
            ("2001:db8::1", 1000 + number),
            (
                ip_network(f"fd00::{number:x}/128"),
                *(IPv4Network((f"10.99.{number}.{last}", 32)) for last in range(1, 40)),
            ),
            25,
        )
        for number in range(1, 60)
    ]
    device.apply(peers)
    states = {state.public_key: state for state in device.peers()}
    assert set(states) == {peer.node_public for peer in peers}
    assert states[peers[4].node_public].endpoint == ("2001:db8::1", 1005)
    device.apply(peers[:10])
    assert len(device.peers()) == 10
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not IN_VM, reason="needs kernel WireGuard: runs in tests/vm")
def test_a_removed_interface_is_a_failure(pair: Any) -> None:
    device = pair.open(0)
    pair.hosts[0].run(links.delete, device.name)
    assert device.failure() == f"interface {device.name} is gone"
    with pytest.raises(EnvironmentFault, match="it is gone"):
        device.peers()
    device.close()
    pair.open(0)
    assert device.failure() is None
