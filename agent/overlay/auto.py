"""The device that is the kernel's WireGuard where there is one, else wireguard-go.

Shell; made by `shell.py` for the backend `auto`. The choice is made at every open, by trying: a
module that was loaded since then is used after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.overlay.device import DEFAULT_MTU, Device, Interface, Network, PeerConfig, PeerState
from agent.overlay.kernel import KernelDevice
from agent.overlay.userspace import UserspaceDevice


class AutoDevice:
    """See `Device`; before the first open it counts as userspace."""

    def __init__(self, name: str) -> None:
        self._kernel = KernelDevice(name)
        self._userspace = UserspaceDevice(name)
        self._device: Device = self._userspace

    @property
    def name(self) -> str:
        """The interface's name."""
        return self._device.name

    @property
    def kind(self) -> str:
        """The kind of the device that was chosen."""
        return self._device.kind

    @property
    def listen_port(self) -> int:
        """The UDP port in use; 0 while closed."""
        return self._device.listen_port

    def open(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> None:
        """See `Device.open`."""
        if self._kernel.try_open(private_key, listen_port, addresses, mtu):
            self._device = self._kernel
            return
        self._device = self._userspace
        self._userspace.open(private_key, listen_port, addresses, mtu)

    def apply(self, peers: Sequence[PeerConfig]) -> None:
        """See `Device.apply`."""
        self._device.apply(peers)

    def route(self, mtus: Mapping[Network, int]) -> None:
        """See `Device.route`."""
        self._device.route(mtus)

    def peers(self) -> list[PeerState]:
        """See `Device.peers`."""
        return self._device.peers()

    def failure(self) -> str | None:
        """See `Device.failure`."""
        return self._device.failure()

    def refresh(self) -> None:
        """See `Device.refresh`."""
        self._device.refresh()

    def close(self) -> None:
        """See `Device.close`."""
        self._device.close()
