"""An internet in namespaces with sites behind real NATs, for whatever must get through them.

Only works inside a sandbox. `natrules.py` says what kinds of site there are; here they are built:

    lab = NatLab()
    alice = lab.add("alice", "easy").machines[0]
    with_two = lab.add("home", "lan", machines=2)

Each site hangs on one router, the namespace `internet`. A machine's namespace has the site's name,
or NAME1, NAME2, … where there are several; NAME-nat, NAME-nat2 are the shared NATs from the
internet inwards, NAME-home1, … the homes' own.

Addresses. Covey tells global addresses from private ones (`ipaddress.is_global`), as the path
engine must, so the ranges for documentation and benchmarks would not do: they count as private, as
the LANs' do. The internet is 192.88.99.0/24 and 3ffe::/16 instead, ranges that were withdrawn
(RFC 7526, RFC 3701): global by every list, and nobody's. miniupnpd refuses to serve behind any
reserved range, that one too, so sites with port mapping are on 11.0.0.0/24, which is somebody's:
harmless here, since no interface leads out of a sandbox. All LANs are 192.168.1.0/24, as homes'
are: a neighbour's private address is often one's own.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from agent.demo.natrules import HOME, KINDS, LAN, MAPPER_CHAINS, WAN, Kind
from agent.demo.natrules import apart as apart_rules
from agent.demo.natrules import gateway as gateway_rules
from agent.demo.natrules import mapper as mapper_settings
from agent.demo.natrules import weather as weather_rules
from agent.demo.netlab import Machine, _do, _ip, _refuse_outside
from agent.errors import EnvironmentFault

INTERNET = "internet"
# The internet's router, as every site's next hop: on all its links.
_HOP, _HOP6 = "192.88.99.1", "fe80::1"
_PUBLIC, _MAPPED, _PREFIX = "192.88.99.{}", "11.0.0.{}", "3ffe:0:0:{:x}"
# Networks from a machine outwards: a home's or office's, the one around it, a carrier's (RFC 6598).
_NETWORKS, _CARRIER = ("192.168.1", "192.168.0"), "100.64.0"
# As Linux has it for flows that were answered; for those that were not it has 30 s, but many home
# routers do not tell the two apart.
UDP_TIMEOUT_S = 120
_PACKAGES = {"miniupnpd": "miniupnpd-nftables", "conntrack": "conntrack"}
# A daemon starts in 20 ms, and ends at once.
_START_S, _END_S = 5.0, 2.0


@dataclass(frozen=True)
class NatMachine(Machine):
    """A machine of a site; `address6` is its global IPv6 address, or empty."""

    address6: str = ""


@dataclass
class Gateway:
    """One NAT: its namespace, its outer address, the network inside it, and how it behaves."""

    namespace: str
    kind: Kind
    address: str
    network: str
    timeout_s: int = UDP_TIMEOUT_S
    remaps: int = 0

    def apply(self) -> None:
        """Give the gateway the rules of its kind; what they had noted of flows is forgotten."""
        rules = gateway_rules(self.kind, self.address, self.timeout_s, self.remaps)
        load(self.namespace, rules)
        for name in ("udp_timeout", "udp_timeout_stream"):
            _do(*within(self.namespace), "sysctl", "-qw",
                f"net.netfilter.nf_conntrack_{name}={self.timeout_s}")  # fmt: skip

    def forget(self) -> None:
        """Forget all flows."""
        _do(*within(self.namespace), "conntrack", "-F")


@dataclass
class Site:
    """One customer of the internet; `gateways` are its shared NATs, outermost first."""

    name: str
    kind: Kind
    link: str
    address: str
    machines: list[NatMachine] = field(default_factory=list)
    gateways: list[Gateway] = field(default_factory=list)
    homes: list[Gateway] = field(default_factory=list)
    udp: bool = True
    loss_percent: float = 0.0


class NatLab:
    """The internet and its sites. As a context manager it takes itself down at the end."""

    def __init__(self) -> None:
        _refuse_outside()
        for program, package in _PACKAGES.items():
            if shutil.which(program) is None:
                raise EnvironmentFault(
                    f"{program} is not installed.", hint=f"Install the package {package}."
                )
        self.sites: dict[str, Site] = {}
        self._namespaces: list[str] = []
        self._mappers: list[subprocess.Popen[bytes]] = []
        self._numbers, self._addresses = count(1), count(10)
        self._namespace(INTERNET, routes=True)

    def __enter__(self) -> NatLab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the daemons and delete all namespaces; whoever is in one keeps it, without links."""
        for daemon in self._mappers:
            daemon.terminate()
        for daemon in self._mappers:
            try:
                daemon.wait(_END_S)
            except subprocess.TimeoutExpired:
                # miniupnpd misses a signal that comes while it is about to wait for packets.
                daemon.kill()
                daemon.wait()
        for name in self._namespaces:
            _ip("netns", "delete", name)
        self._mappers, self._namespaces, self.sites = [], [], {}

    # -- building

    def add(self, name: str, kind: str | Kind, *, machines: int = 1) -> Site:
        """Make a site with so many machines and return it."""
        kind = KINDS[kind] if isinstance(kind, str) else kind
        link = f"site{next(self._numbers)}"
        site = Site(name, kind, link, self._address(kind), udp=kind.udp)
        self.sites[name] = site
        names = [name] if machines == 1 else [f"{name}{number + 1}" for number in range(machines)]
        if kind.levels == 0:
            for machine in names:
                self._attach_public(site, machine)
        else:
            self._attach_nats(site, names)
        self._set_weather(site)
        return site

    def _attach_public(self, site: Site, name: str) -> None:
        if site.machines:
            raise ValueError("a public site has one machine")
        self._namespace(name)
        self._uplink(site, name, "eth0")
        prefix = _PREFIX.format(int(site.link[4:]))
        _ip("-n", name, "address", "add", f"{prefix}::2/128", "dev", "eth0", "nodad")
        site.machines.append(NatMachine(name, site.address, _HOP, f"{prefix}::2"))

    def _attach_nats(self, site: Site, names: list[str]) -> None:
        kind = site.kind
        networks = [_CARRIER] if kind.homes else [*reversed(_NETWORKS[: kind.levels])]
        for level, network in enumerate(networks):
            namespace = f"{site.name}-nat{level + 1 if level else ''}"
            outer = site.gateways[-1] if site.gateways else None
            address = f"{outer.network}.2" if outer else site.address
            inner = Gateway(namespace, kind, address, network)
            self._namespace(namespace, routes=True)
            if outer is None:
                self._uplink(site, namespace, WAN)
            else:
                self._plug(outer, namespace, WAN, address)
            self._finish(inner)
            site.gateways.append(inner)
        shared = site.gateways[-1]
        for number, name in enumerate(names, start=2):
            behind = self._home(site, shared, number) if kind.homes else shared
            address = f"{behind.network}.{2 if kind.homes else number}"
            self._namespace(name)
            self._plug(behind, name, "eth0", address)
            address6 = self._plug6(site, name, number) if kind.ipv6 else ""
            site.machines.append(NatMachine(name, address, f"{behind.network}.1", address6))

    def _home(self, site: Site, carrier: Gateway, number: int) -> Gateway:
        namespace = f"{site.name}-home{number - 1}"
        home = Gateway(namespace, HOME, f"{carrier.network}.{number}", _NETWORKS[0])
        self._namespace(namespace, routes=True)
        self._plug(carrier, namespace, WAN, home.address)
        self._finish(home)
        site.homes.append(home)
        return home

    def _finish(self, gateway: Gateway) -> None:
        """Give a gateway, whose uplink is there, its inner side, its rules and its daemon."""
        _ip("-n", gateway.namespace, "link", "add", LAN, "type", "bridge")
        # Where the kernel has br_netfilter, as with Docker, it would show the gateway's rules what
        # goes from one machine of the LAN to another. -e: elsewhere there is no such switch.
        _do(*within(gateway.namespace), "sysctl", "-qew", "net.bridge.bridge-nf-call-iptables=0",
            "net.bridge.bridge-nf-call-ip6tables=0")  # fmt: skip
        _ip("-n", gateway.namespace, "address", "add", f"{gateway.network}.1/24", "dev", LAN)
        _ip("-n", gateway.namespace, "link", "set", LAN, "up")
        gateway.apply()
        if gateway.kind.upnp or gateway.kind.pmp:
            self._start_mapper(gateway)

    def _start_mapper(self, gateway: Gateway) -> None:
        # /run is the sandbox's own.
        directory = Path("/run/covey-natlab") / gateway.namespace
        directory.mkdir(parents=True, exist_ok=True)
        settings = mapper_settings(gateway.kind, f"{gateway.network}.0/24", str(directory))
        (directory / "miniupnpd.conf").write_text(settings)
        load(gateway.namespace, MAPPER_CHAINS)
        log = directory / "log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [*within(gateway.namespace), "miniupnpd", "-d", "-f",
                 str(directory / "miniupnpd.conf"), "-P", str(directory / "pid")],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._mappers.append(daemon)
        deadline = time.monotonic() + _START_S
        while "Listening for NAT-PMP" not in log.read_text():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise EnvironmentFault(f"miniupnpd did not start: {log.read_text().strip()}")
            time.sleep(0.01)

    def _namespace(self, name: str, *, routes: bool = False) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")
        if routes:
            _do(*within(name), "sysctl", "-qw", "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.forwarding=1")  # fmt: skip

    def _uplink(self, site: Site, namespace: str, link: str) -> None:
        """Join a namespace to the internet, which routes the site's address and prefix to it."""
        _ip("link", "add", link, "netns", namespace, "type", "veth",
            "peer", "name", site.link, "netns", INTERNET)  # fmt: skip
        _ip("-n", INTERNET, "address", "add", f"{_HOP}/32", "dev", site.link)
        _ip("-n", INTERNET, "address", "add", f"{_HOP6}/64", "dev", site.link, "nodad")
        _ip("-n", INTERNET, "link", "set", site.link, "up")
        _ip("-n", namespace, "address", "add", f"{site.address}/32", "dev", link)
        _ip("-n", namespace, "address", "add", "fe80::2/64", "dev", link, "nodad")
        _ip("-n", namespace, "link", "set", link, "up")
        _ip("-n", namespace, "route", "add", "default", "via", _HOP, "dev", link, "onlink")
        _ip("-n", INTERNET, "route", "add", f"{site.address}/32", "dev", site.link)
        if site.kind.ipv6:
            prefix = _PREFIX.format(int(site.link[4:]))
            _ip("-n", namespace, "route", "add", "default", "via", _HOP6, "dev", link)
            _ip("-n", INTERNET, "route", "add", f"{prefix}::/64", "via", "fe80::2",
                "dev", site.link)  # fmt: skip

    def _plug(self, gateway: Gateway, namespace: str, link: str, address: str) -> None:
        """Join a namespace to a gateway's inner side."""
        port = f"port{address.rpartition('.')[2]}"
        _ip("link", "add", link, "netns", namespace, "type", "veth",
            "peer", "name", port, "netns", gateway.namespace)  # fmt: skip
        _ip("-n", gateway.namespace, "link", "set", port, "master", LAN, "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
        _ip("-n", namespace, "link", "set", link, "up")
        _ip("-n", namespace, "route", "add", "default", "via", f"{gateway.network}.1")

    def _plug6(self, site: Site, name: str, number: int) -> str:
        """Give a machine its IPv6 address, and return it."""
        prefix, inner = _PREFIX.format(int(site.link[4:])), site.gateways[-1].namespace
        if number == 2:
            _ip("-n", inner, "address", "add", f"{prefix}::1/64", "dev", LAN, "nodad")
        _ip("-n", name, "address", "add", f"{prefix}::{number}/64", "dev", "eth0", "nodad")
        _ip("-n", name, "route", "add", "default", "via", f"{prefix}::1")
        return f"{prefix}::{number}"

    def _address(self, kind: Kind) -> str:
        return (_MAPPED if kind.upnp or kind.pmp else _PUBLIC).format(next(self._addresses))

    # -- what happens to sites

    def forget(self, site: Site) -> None:
        """Let the site's NATs forget all flows, as routers do that are restarted."""
        for gateway in self._nats(site):
            gateway.apply()
            gateway.forget()

    def remap(self, site: Site) -> None:
        """Let the site's NATs forget all flows; those that begin now have other outer ports."""
        for gateway in self._nats(site):
            gateway.remaps += 1
        self.forget(site)

    def change_address(self, site: Site) -> str:
        """Give the site another IPv4 address, as providers do overnight, and return it."""
        old, site.address = site.address, self._address(site.kind)
        namespace, link = (
            (site.gateways[0].namespace, WAN) if site.gateways else (site.machines[0].name, "eth0")
        )
        _ip("-n", namespace, "address", "add", f"{site.address}/32", "dev", link)
        _ip("-n", INTERNET, "route", "add", f"{site.address}/32", "dev", site.link)
        _ip("-n", namespace, "address", "delete", f"{old}/32", "dev", link)
        _ip("-n", INTERNET, "route", "delete", f"{old}/32", "dev", site.link)
        if site.gateways:
            site.gateways[0].address = site.address
            self.forget(site)
        else:
            site.machines[0] = replace(site.machines[0], address=site.address)
        return site.address

    def udp_timeout(self, site: Site, seconds: int) -> None:
        """Let the site's NATs forget UDP flows, answered or not, after so long without a packet."""
        for gateway in self._nats(site):
            gateway.timeout_s = seconds
            gateway.apply()

    def block_udp(self, site: Site, blocked: bool) -> None:
        """Drop all UDP between the site and the internet, or let it pass again."""
        site.udp = not blocked
        self._set_weather(site)

    def loss(self, site: Site, percent: float) -> None:
        """Drop this share of all packets between the site and the internet, in both directions."""
        site.loss_percent = percent
        self._set_weather(site)

    def part(self, one: Site, other: Site, apart: bool) -> None:
        """Drop all that goes from one of two sites to the other, or let it pass again."""
        first, second = sorted((one.link, other.link))
        load(INTERNET, apart_rules(first, second, apart))

    def _set_weather(self, site: Site) -> None:
        load(INTERNET, weather_rules(site.link, site.loss_percent, site.udp))

    @staticmethod
    def _nats(site: Site) -> list[Gateway]:
        return [*site.gateways, *site.homes]


def within(namespace: str) -> list[str]:
    """Return what to put before a command so that it runs in a namespace."""
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def load(namespace: str, rules: str) -> None:
    """Load nftables rules in a namespace."""
    done = subprocess.run([*within(namespace), "nft", "-f", "-"], input=rules, text=True,
                          capture_output=True, check=False)  # fmt: skip
    if done.returncode != 0:
        raise EnvironmentFault(
            f"nft refused the rules of {namespace}: {done.stderr.strip()}",
            hint="It needs nftables 1.0 or newer and a kernel with NAT and numgen.",
        )
