"""Kernel WireGuard: what can be said without the module; test_kernel_only.py is the rest."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

import pytest

from agent.errors import EnvironmentFault
from agent.overlay import links
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
