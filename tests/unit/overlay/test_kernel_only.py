"""What only kernel WireGuard has; collected in the virtual machine alone (tests/vm, conftest)."""

from __future__ import annotations

import os
import subprocess
from ipaddress import IPv4Network, ip_interface, ip_network
from typing import Any

import pytest

from agent.errors import EnvironmentFault
from agent.overlay import links
from agent.overlay.auto import AutoDevice
from agent.overlay.device import PeerConfig


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
    command = ["wg", "show", device.name, "allowed-ips"]
    shown = pair.hosts[0].run(subprocess.run, command, capture_output=True, text=True, check=True)
    assert sorted(len(line.split()) - 1 for line in shown.stdout.splitlines()) == [40] * 59
    device.apply(peers[:10])
    assert len(device.peers()) == 10
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_removed_interface_is_a_failure(pair: Any) -> None:
    device = pair.open(0)
    pair.hosts[0].run(links.delete, device.name)
    assert device.failure() == f"interface {device.name} is gone"
    with pytest.raises(EnvironmentFault, match="it is gone"):
        device.peers()
    device.close()
    pair.open(0)
    assert device.failure() is None


def test_auto_takes_the_kernel(pair: Any) -> None:
    host = pair.hosts[0]
    device = AutoDevice(pair.names[0])
    host.run(device.open, bytes([1]) * 32, 0, [ip_interface("fd00::1/48")])
    try:
        assert device.kind == "kernel"
        assert device.listen_port > 0
        assert host.run(links.find, pair.names[0]).kind == "wireguard"
    finally:
        host.run(device.close)
