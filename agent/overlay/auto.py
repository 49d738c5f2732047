"""The device that is the kernel's WireGuard where there is one, else wireguard-go.

Shell; made by `shell.py` for the backend `auto`. The choice is made at every open, by trying: a
module that was loaded since then is used after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.overlay.alias import NOT_KEPT, Keeping
from agent.overlay.device import (
    DEFAULT_MTU,
    Device,
    Interface,
    Network,
    Opened,
    PeerConfig,
    PeerState,
)
from agent.overlay.kernel import KernelDevice
from agent.overlay.userspace import UserspaceDevice


class AutoDevice:
    """See `Device`; before the first open it counts as userspace."""

    def __init__(self, name: str, keeping: Keeping = NOT_KEPT) -> None:
        self._kernel = KernelDevice(name, keeping)
        self._userspace = UserspaceDevice(name, keeping)
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
    ) -> Opened:
        """See `Device.open`; a wireguard-go to be adopted counts before the kernel's WireGuard."""
        arguments = private_key, listen_port, addresses, mtu
        self._device = self._userspace
        opened = self._userspace.try_adopt(*arguments)
        if opened is not None:
            return opened
        opened = self._kernel.try_open(*arguments)
        if opened is not None:
            self._device = self._kernel
            return opened
        return self._userspace.open(*arguments)

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
