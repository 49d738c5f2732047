"""Networks of namespaces: machines on subnets of their own, joined by one router, or on one LAN.

Only works inside a sandbox (`sandbox.py`), where a namespace is named under a private /run/netns
and disappears with the sandbox. Used by the demo and by the lab tests.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from agent.demo.sandbox import inside
from agent.errors import EnvironmentFault

ROUTER = "router"


@dataclass(frozen=True)
class Machine:
    """One namespace: its name, its only underlay address, and its router's."""

    name: str
    address: str
    gateway: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` here to its end and return its output; never raises for its exit code."""
        return subprocess.run(
            self.command(command), capture_output=True, text=True, check=False, env=env,
            timeout=timeout_s, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def spawn(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None,
        output: int | IO[Any] = subprocess.DEVNULL, pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start `command` here; its output goes to `output`."""
        return subprocess.Popen(
            self.command(command), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, env=env, pass_fds=pass_fds,
        )  # fmt: skip


@dataclass
class NetLab:
    """A router and the machines behind it; each machine is on a /24 of the benchmark range."""

    machines: dict[str, Machine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the router; raises EnvironmentFault outside a sandbox."""
        _refuse_outside()
        _ip("netns", "add", ROUTER)
        _ip("-n", ROUTER, "link", "set", "lo", "up")
        for switch in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            _do("nsenter", f"--net=/run/netns/{ROUTER}", "sysctl", "-qw", switch)

    def add(self, name: str) -> Machine:
        """Make a machine on the next subnet, 198.18.N.0/24 (RFC 2544), and return it."""
        subnet = len(self.machines) + 1
        machine = Machine(name, f"198.18.{subnet}.2", f"198.18.{subnet}.1")
        _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", name, "type", "veth",
            "peer", "name", f"to-{name}", "netns", ROUTER)  # fmt: skip
        for namespace, link, address in (
            (name, "eth0", machine.address),
            (ROUTER, f"to-{name}", machine.gateway),
        ):
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
            _ip("-n", namespace, "link", "set", link, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "route", "add", "default", "via", machine.gateway)
        self.machines[name] = machine
        return machine


@dataclass
class Lan:
    """Machines on one switch, 198.19.NUMBER.0/24 (RFC 2544), without a router.

    The switch is a bridge in a namespace `switch-NUMBER`; machines have link-local IPv6 addresses
    as well. It stands beside a NetLab in the same sandbox.
    """

    number: int = 1
    machines: dict[str, Machine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the switch; raises EnvironmentFault outside a sandbox."""
        _refuse_outside()
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "switch", "up")

    @property
    def switch(self) -> str:
        """The namespace of the switch: whoever listens on its link `switch` sees the whole LAN."""
        return f"switch-{self.number}"

    def add(self, name: str, *, plugged: bool = True) -> Machine:
        """Make a machine on the LAN and return it; one that is not `plugged` waits for `plug`."""
        machine = Machine(name, f"198.19.{self.number}.{len(self.machines) + 2}", "")
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        self.machines[name] = machine
        if plugged:
            self.plug(name)
        return machine

    def plug(self, name: str) -> None:
        """Give a machine its interface eth0, with its address, on the switch."""
        _ip("link", "add", "eth0", "netns", name, "type", "veth",
            "peer", "name", f"to-{name}", "netns", self.switch)  # fmt: skip
        _ip("-n", self.switch, "link", "set", f"to-{name}", "master", "switch", "up")
        address = f"{self.machines[name].address}/24"
        _ip("-n", name, "address", "add", address, "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")

    def unplug(self, name: str) -> None:
        """Take the machine's interface away."""
        _ip("-n", name, "link", "delete", "eth0")

    def close(self) -> None:
        """Take machines and switch away; what still runs on one keeps it, without a network."""
        for namespace in (*self.machines, self.switch):
            _ip("netns", "delete", namespace)
        self.machines.clear()


def _refuse_outside() -> None:
    if not inside():
        raise EnvironmentFault(
            "networks are only built in a sandbox.",
            hint="Start this with `python -m agent.demo.sandbox -- …`.",
        )


def _ip(*arguments: str) -> None:
    _do("ip", *arguments)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EnvironmentFault(
            f"`{' '.join(command)}` failed: {done.stderr.strip() or done.returncode}"
        )
