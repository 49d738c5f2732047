"""WireGuard in the kernel, configured over generic netlink through pyroute2.

Shell; the device of choice wherever the kernel has WireGuard. Called from one worker thread only.
A pyroute2 WireGuard socket is opened per call and only while our interface exists: each failed
`WireGuard()` leaks a descriptor, and it fails where the kernel's module is not loaded.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from agent.errors import EnvironmentFault
from agent.overlay import alias, links
from agent.overlay.afterwards import Afterwards
from agent.overlay.alias import NOT_KEPT, Alias, Keeping
from agent.overlay.device import (
    DEFAULT_MTU,
    DeviceConfig,
    Endpoint,
    Interface,
    Network,
    Opened,
    PeerConfig,
    PeerState,
    canonical,
    check_config,
    check_name,
    check_peers,
)
from agent.overlay.netlink import NetlinkError, WireGuard
from agent.overlay.reconcile import Change, RemovePeer, differences

_log = logging.getLogger(__name__)


class KernelDevice:
    """A kernel WireGuard interface; see `Device`."""

    kind = "kernel"

    def __init__(self, name: str, keeping: Keeping = NOT_KEPT) -> None:
        check_name(name)
        self._name = name
        self._keeping = keeping
        self._afterwards: Afterwards | None = None
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
    ) -> Opened:
        """See `Device.open`; also an EnvironmentFault if this kernel has no WireGuard."""
        opened = self.try_open(private_key, listen_port, addresses, mtu)
        if opened is None:
            raise EnvironmentFault(
                "this kernel has no WireGuard",
                hint="Load it with `modprobe wireguard`, or set the backend to userspace.",
            )
        return opened

    def try_open(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> Opened | None:
        """Do as `open`, but return None, with nothing left, if this kernel has no WireGuard."""
        if self._config is not None:
            raise ValueError(f"{self._name} is open already")
        config = DeviceConfig(private_key, listen_port, tuple(addresses), mtu)
        check_config(config)
        own = alias.of(links.public_key(private_key), self._keeping, secrets.randbits(32))
        adopted = self._adopt(config, own)
        if adopted is not None:
            return adopted
        taken_over = links.take_over(self._name, own)
        links.check_port(listen_port, left_over=taken_over)
        if not links.add_wireguard(self._name):
            return None
        try:
            self._bring_up(config, own)
            self._watch(own)
        except BaseException:
            links.delete(self._name)
            raise
        self._config = config
        return Opened(own.birth)

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
        for attributes in self._read_peers():
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
        if self._afterwards is not None:
            self._afterwards.tend()

    def close(self) -> None:
        """See `Device.close`."""
        if self._config is None:
            return
        links.delete(self._name)
        if self._afterwards is not None:
            self._afterwards.stop()
        self._forget()

    def _forget(self) -> None:
        self._afterwards = self._config = None
        self._applied.clear()
        self._routed.clear()
        self._listen_port = 0

    def _adopt(self, config: DeviceConfig, own: Alias) -> Opened | None:
        """Go on with the interface of a killed agent, if there is one that has our port."""
        link = links.ours(self._name, own)
        left = alias.parse(link.alias) if link is not None else None
        if link is None or left is None or link.kind != "wireguard":
            return None
        with self._wireguard("read") as wireguard:
            device = wireguard.info(self._name)[0]
        key = device.get_attr("WGDEVICE_A_PUBLIC_KEY") or b""
        port = device.get_attr("WGDEVICE_A_LISTEN_PORT")
        if base64.b64decode(key) != own.key or config.listen_port not in (0, port):
            return None
        own = left.claimed(own.claim)
        links.claim(self._name, own, config.mtu)
        links.readdress(self._name, config.addresses)
        self._config, self._listen_port = config, port
        try:
            self._applied = {peer.node_public: peer for peer in self._configs()}
            self._watch(own)
        except BaseException:
            self.close()
            raise
        _log.info("WireGuard adopted interface=%s peers=%d", self._name, len(self._applied))
        return Opened(own.birth, tuple(self._applied.values()), adopted=True)

    def _watch(self, own: Alias) -> None:
        self._afterwards = Afterwards(self._name, own.text(), self._keeping.outlive_s)
        self._afterwards.tend()

    def _configs(self) -> list[PeerConfig]:
        """Return the peers as they could have been set."""
        found: dict[bytes, PeerConfig] = {}
        for attributes in self._read_peers():
            config = _peer_config(attributes)
            before = found.get(config.node_public)
            if before is not None:  # what did not fit into one message
                config = replace(before, allowed_ips=before.allowed_ips + config.allowed_ips)
            found[config.node_public] = config
        return list(found.values())

    def _bring_up(self, config: DeviceConfig, own: Alias) -> None:
        links.claim(self._name, own, config.mtu)
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

    def _read_peers(self) -> list[Any]:
        with self._wireguard("read the peers of") as wireguard:
            return [
                attributes
                for message in wireguard.info(self._name)
                for attributes in message.get_attr("WGDEVICE_A_PEERS") or ()
            ]

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


def _peer_config(attributes: Any) -> PeerConfig:
    networks = [
        ip_network(network["addr"]) for network in attributes.get_attr("WGPEER_A_ALLOWEDIPS") or ()
    ]
    return PeerConfig(
        base64.b64decode(attributes.get_attr("WGPEER_A_PUBLIC_KEY")),
        _endpoint(attributes.get_attr("WGPEER_A_ENDPOINT")),
        tuple(networks),
        attributes.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
    )


def _endpoint(attribute: Any) -> Endpoint | None:
    return canonical((attribute["addr"], attribute["port"])) if attribute else None
