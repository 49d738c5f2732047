"""What is known of this machine and its agent when they are examined. A core: types alone.

`look.py` gathers them, the checks judge them. The defaults are those of a machine and an agent with
which all is in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Any, Literal

import msgspec

from agent.health import HealthItem
from agent.identity.addresses import DEFAULT_IPV4_NETWORK

NET_ADMIN, NET_RAW = "CAP_NET_ADMIN", "CAP_NET_RAW"
GIB = 1 << 30


@dataclass(frozen=True)
class Port:
    """A port that the agent opens on every address, and the setting that says which."""

    protocol: Literal["udp", "tcp"]
    number: int
    setting: str


@dataclass(frozen=True)
class Wanted:
    """What the settings ask of the machine; `wireguard_port` is one of `ports`."""

    interface: str = "covey0"
    backend: str = "auto"
    wireguard_port: int = 51820
    ports: tuple[Port, ...] = ()
    ipv4_network: IPv4Network = DEFAULT_IPV4_NETWORK
    mdns: bool = True
    gpu: bool = True


@dataclass(frozen=True)
class Link:
    """An interface: `kind` as the kernel says (`hardware` for none), its MTU in bytes.

    `tunnel`: it carries bare IP packets, as VPNs do. `ours`: a Covey node's overlay.
    """

    name: str
    kind: str = "hardware"
    mtu: int = 1500
    up: bool = True
    tunnel: bool = False
    ours: bool = False
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()


@dataclass(frozen=True)
class Route:
    """A route of the main table, but for the default ones."""

    network: IPv4Network | IPv6Network
    link: str


@dataclass(frozen=True)
class Taken:
    """A port of ours that a socket is bound to, and the program that has it ("" if not known)."""

    port: Port
    holder: str = ""


@dataclass(frozen=True)
class Disk:
    """Free bytes where `path` lies."""

    path: str
    free: int


@dataclass(frozen=True)
class Gpu:
    """A graphics processor on the PCI bus, and its maker (`NVIDIA`, `AMD`, `Intel`)."""

    maker: str
    place: str


@dataclass(frozen=True)
class Build:
    """llama.cpp as it is installed: backends for GPUs; CUDA's version, if it is built with it."""

    backends: tuple[str, ...] = ()
    cuda: int | None = None
    installed: bool = True


@dataclass(frozen=True)
class Machine:
    """This machine, as the agent (or who asks) sees it.

    `tun_fault`: why /dev/net/tun cannot be opened. `uplinks`: the interfaces by which packets leave
    for the internet. `ruleset`: nftables' rules as its JSON, None if they cannot be read. `masked`:
    what the CPU announces and then refuses. `repacking`: whether llama.cpp's self-test passed with
    its fastest kernels; None before the first. Times are unix seconds, sizes bytes.
    """

    kernel: str = ""
    architecture: str = ""
    kernel_wireguard: bool = True
    wireguard_go: bool = True
    tun_fault: str = ""
    capabilities: frozenset[str] = frozenset({NET_ADMIN, NET_RAW})
    ipv6: bool = True
    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    uplinks: tuple[str, ...] = ()
    taken: tuple[Taken, ...] = ()
    ruleset: Mapping[str, Any] | None = None
    now: float = 1.8e9
    installed_at: float = 0.0
    synchronised: bool | None = True
    disks: tuple[Disk, ...] = ()
    free_memory: int = 8 * GIB
    gpus: tuple[Gpu, ...] = ()
    nvidia_driver: str = ""
    build: Build = Build()
    masked: tuple[str, ...] = ()
    repacking: bool | None = None


@dataclass(frozen=True)
class Member:
    """What the state directory says: the mesh this node is in, its certificate's begin (unix s)."""

    mesh: str
    ipv4_network: IPv4Network
    not_before: float = 0.0


class Peer(msgspec.Struct, frozen=True):
    """Another member as the agent's /v1/peers has it."""

    name: str = ""
    ipv4: str = ""
    presence: str = "unknown"
    route: str = "none"
    software: str = ""


class Count(msgspec.Struct, frozen=True):
    """How many other members there are, and how many are reached in which way."""

    known: int = 0
    connected: int = 0
    asleep: int = 0
    linked: int = 0


class Network(msgspec.Struct, frozen=True):
    """The overlay's kind and UDP port, and what the path engine and the LAN have seen.

    `nat`: a NatKind's name in lower case. `rendezvous` and `relays`: how many. `lan`: who was found
    by multicast DNS.
    """

    overlay: str = ""
    port: int = 0
    nat: str = "unknown"
    mapped: bool = False
    rendezvous: int = 0
    relays: int = 0
    lan: tuple[str, ...] = ()


class Computes(msgspec.Struct, frozen=True):
    """The GPUs that engines use, and why they use none though llama.cpp has a backend."""

    used: tuple[str, ...] = ()
    fault: str = ""


class Agent(msgspec.Struct, frozen=True):
    """The running agent, as its /v1/status has it, with its `peer_list`.

    Agents of other versions may lack fields.
    """

    pid: int = 0
    name: str = ""
    mesh: str = ""
    software: str = ""
    uptime_s: float = 0.0
    ipv4: str = ""
    network: Network = Network()
    peers: Count = Count()
    computes: Computes = Computes()
    health: tuple[HealthItem, ...] = ()
    peer_list: tuple[Peer, ...] = ()


@dataclass(frozen=True)
class Facts:
    """All of it. `member` is None in no mesh, `agent` None while none answers, which `fault` says.

    `hint`: what to do about the fault. `state_fault`: why the state directory cannot be read.
    """

    wanted: Wanted = Wanted()
    machine: Machine = Machine()
    member: Member | None = None
    agent: Agent | None = None
    fault: str = ""
    hint: str = ""
    state_fault: str = ""

    @property
    def uplinks(self) -> tuple[Link, ...]:
        """The interfaces by which packets leave for the internet."""
        return tuple(link for link in self.machine.links if link.name in self.machine.uplinks)


def agent_of(status: Mapping[str, Any], peers: Mapping[str, Any]) -> Agent:
    """Return the agent that answered so to /v1/status and /v1/peers."""
    told = {**status, "peer_list": peers.get("peers", [])}
    return msgspec.convert(told, Agent, strict=False)
