"""WireGuard in the kernel, configured over generic netlink through pyroute2.

Shell; the device of choice wherever the kernel has WireGuard. Called from one worker thread only.
A pyroute2 WireGuard socket is opened per call and only while our interface exists: each failed
`WireGuard()` leaks a descriptor, and it fails where the kernel's module is not loaded.
"""

from __future__ import annotations

import base64
import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyroute2 import WireGuard
from pyroute2.netlink.exceptions import NetlinkError

from agent.errors import EnvironmentFault
from agent.overlay import links
from agent.overlay.device import (
    DEFAULT_MTU,
    DeviceConfig,
    Endpoint,
    Interface,
    Network,
    PeerConfig,
    PeerState,
    canonical,
    check_config,
    check_name,
    check_peers,
)
from agent.overlay.reconcile import Change, RemovePeer, differences


class KernelDevice:
    """A kernel WireGuard interface; see `Device`."""

    kind = "kernel"

    def __init__(self, name: str) -> None:
        check_name(name)
        self._name = name
        self._config: DeviceConfig | None = None
        self._listen_port = 0
        self._applied: dict[bytes, PeerConfig] = {}
        self._routed: dict[Network, int] = {}

    @property
    def name(self) -> str:
        """The interface's name."""
        return self._name

    @property
    def listen_port(self) -> int:
        """The UDP port in use; 0 while closed."""
        return self._listen_port

    def open(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> None:
        """See `Device.open`; also an EnvironmentFault if this kernel has no WireGuard."""
        if not self.try_open(private_key, listen_port, addresses, mtu):
            raise EnvironmentFault(
                "this kernel has no WireGuard",
                hint="Load it with `modprobe wireguard`, or set the backend to userspace.",
            )

    def try_open(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> bool:
        """Do as `open`, but return False, with nothing left, if this kernel has no WireGuard."""
        if self._config is not None:
            raise ValueError(f"{self._name} is open already")
        config = DeviceConfig(private_key, listen_port, tuple(addresses), mtu)
        check_config(config)
        mark = links.mark(private_key)
        taken_over = links.take_over(self._name, mark)
        links.check_port(listen_port, left_over=taken_over)
        if not links.add_wireguard(self._name):
            return False
        try:
            self._bring_up(config, mark)
        except BaseException:
            links.delete(self._name)
            raise
        self._config = config
        return True

    def apply(self, peers: Sequence[PeerConfig]) -> None:
        """See `Device.apply`; one netlink message per changed peer, all over one socket."""
        check_peers(peers, links.public_key(self._opened().private_key))
        present = {state.public_key for state in self.peers()}
        with self._wireguard("set the peers of") as wireguard:
            for change, now in differences(self._applied, present, peers):
                # Forgotten first: a change that fails half-way is repeated whole.
                self._applied.pop(change.public_key, None)
                wireguard.set(self._name, peer=_peer_attributes(change))
                if now is not None:
                    self._applied[change.public_key] = now

    def route(self, mtus: Mapping[Network, int]) -> None:
        """See `Device.route`."""
        self._opened()
        links.route(self._name, self._routed, mtus)

    def peers(self) -> list[PeerState]:
        """See `Device.peers`."""
        self._opened()
        states: dict[bytes, PeerState] = {}
        with self._wireguard("read the peers of") as wireguard:
            for message in wireguard.info(self._name):
                for attributes in message.get_attr("WGDEVICE_A_PEERS") or ():
                    state = _peer_state(attributes)
                    # A peer whose addresses fill a message goes on in the next one.
                    states.setdefault(state.public_key, state)
        return list(states.values())

    def failure(self) -> str | None:
        """See `Device.failure`: someone may have removed the interface."""
        if self._config is None:
            return "the device is closed"
        return None if links.exists(self._name) else f"interface {self._name} is gone"

    def refresh(self) -> None:
        """See `Device.refresh`; the kernel forgets a source address that is gone by itself."""

    def close(self) -> None:
        """See `Device.close`."""
        if self._config is None:
            return
        links.delete(self._name)
        self._config = None
        self._applied.clear()
        self._routed.clear()
        self._listen_port = 0

    def _bring_up(self, config: DeviceConfig, mark: str) -> None:
        links.claim(self._name, mark, config.mtu)
        with self._wireguard("set up") as wireguard:
            wireguard.set(
                self._name,
                private_key=base64.b64encode(config.private_key).decode(),
                listen_port=config.listen_port,
            )
            try:
                links.address_and_raise(self._name, config.addresses)
            except EnvironmentFault as fault:
                cause = fault.__cause__
                if isinstance(cause, NetlinkError) and cause.code == errno.EADDRINUSE:
                    raise links.port_in_use(config.listen_port) from cause
                raise
            device = wireguard.info(self._name)[0]
        self._listen_port = device.get_attr("WGDEVICE_A_LISTEN_PORT")

    def _opened(self) -> DeviceConfig:
        if self._config is None:
            raise EnvironmentFault(f"interface {self._name} is not up")
        return self._config

    @contextlib.contextmanager
    def _wireguard(self, doing: str) -> Iterator[WireGuard]:
        if not links.exists(self._name):
            raise EnvironmentFault(
                f"cannot {doing} the WireGuard interface {self._name}: it is gone"
            )
        with links.kernel_faults(self._name, doing), WireGuard() as wireguard:
            yield wireguard


def _peer_attributes(change: Change) -> dict[str, Any]:
    attributes: dict[str, Any] = {"public_key": base64.b64encode(change.public_key).decode()}
    if isinstance(change, RemovePeer):
        attributes["remove"] = True
        return attributes
    if change.endpoint is not None:
        attributes["endpoint_addr"], attributes["endpoint_port"] = change.endpoint
    if change.keepalive_s is not None:
        attributes["persistent_keepalive"] = change.keepalive_s
    if change.allowed_ips is not None:
        attributes["replace_allowed_ips"] = True
        attributes["allowed_ips"] = [str(network) for network in change.allowed_ips]
    return attributes


def _peer_state(attributes: Any) -> PeerState:
    handshake = attributes.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
    seconds = handshake["tv_sec"] + handshake["tv_nsec"] / 1e9 if handshake else 0.0
    return PeerState(
        base64.b64decode(attributes.get_attr("WGPEER_A_PUBLIC_KEY")),
        _endpoint(attributes.get_attr("WGPEER_A_ENDPOINT")),
        seconds or None,
        attributes.get_attr("WGPEER_A_RX_BYTES") or 0,
        attributes.get_attr("WGPEER_A_TX_BYTES") or 0,
    )


def _endpoint(attribute: Any) -> Endpoint | None:
    return canonical((attribute["addr"], attribute["port"])) if attribute else None
