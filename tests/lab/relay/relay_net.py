"""Two machines behind NATs of their own, and a relay on the Internet between them.

    anna - nat-anna - switch - relay        the switch is "the Internet"
    bert - nat-bert - switch

NATs give each flow a random port (hard NATs), and let in only what belongs to a flow. Works inside
a sandbox alone. Used by the lab tests and by tests/bench/relay.py.
"""

from __future__ import annotations

import ctypes
import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agent.demo.netlab import Machine
from agent.demo.sandbox import inside

HERE = Path(__file__).parent
ROOT = Path("/run/covey-relay-lab")
SWITCH = "rl-switch"
WIREGUARD_PORT = 51820
OVERLAY = {"anna": "10.77.0.1", "bert": "10.77.0.2"}
PEER = {"anna": "bert", "bert": "anna"}
# Python alone takes 10 s on an emulated processor (tests/vm), and more where that one is shared.
START_S = 120.0
_CLONE_NEWNET = 0x40000000
_IP_FREEBIND = 15  # linux/in.h
_libc = ctypes.CDLL(None, use_errno=True)


def do(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Net:
    """The machines. `forwarding`: the relay's own switch, which is the operator's."""

    def __init__(self, *, forwarding: bool = True) -> None:
        if not inside():
            raise RuntimeError("networks are only built in a sandbox")
        ROOT.mkdir(exist_ok=True)
        self.names: list[str] = []
        self._namespace(SWITCH)
        do("ip", "-n", SWITCH, "link", "add", "switch", "type", "bridge")
        do("ip", "-n", SWITCH, "link", "set", "switch", "up")
        self.relay = self._machine("rl-relay", 1)
        self.set_forwarding(forwarding)
        self.inner: dict[str, Machine] = {}
        self.nat: dict[str, Machine] = {}
        for number, name in enumerate(OVERLAY, 1):
            nat = self._machine(f"rl-nat-{name}", number + 1)
            do(*nat.command(["sysctl", "-qw", "net.ipv4.ip_forward=1"]))
            inner = Machine(f"rl-{name}", f"192.168.{number}.2", f"192.168.{number}.1")
            self._behind(inner, nat)
            self.inner[name], self.nat[name] = inner, nat
            self.set_nat(name)

    def set_forwarding(self, on: bool) -> None:
        """Set the relay's switch, as its operator does."""
        do(*self.relay.command(["sysctl", "-qw", f"net.ipv4.ip_forward={int(on)}"]))

    def remove(self) -> None:
        """Remove all of it."""
        for name in self.names:
            do("ip", "netns", "del", name)

    def _machine(self, name: str, number: int) -> Machine:
        """Make a machine on the Internet."""
        self._namespace(name)
        made = Machine(name, f"198.18.0.{number}", "")
        do("ip", "link", "add", "eth0", "netns", name, "type", "veth",
           "peer", "name", f"to-{number}", "netns", SWITCH)  # fmt: skip
        do("ip", "-n", SWITCH, "link", "set", f"to-{number}", "master", "switch", "up")
        do("ip", "-n", name, "address", "add", f"{made.address}/24", "dev", "eth0")
        do("ip", "-n", name, "link", "set", "eth0", "up")
        return made

    def _namespace(self, name: str) -> None:
        do("ip", "netns", "add", name)
        self.names.append(name)
        do("ip", "-n", name, "link", "set", "lo", "up")

    def _behind(self, machine: Machine, nat: Machine) -> None:
        """Put a machine behind a NAT."""
        self._namespace(machine.name)
        do("ip", "link", "add", "eth0", "netns", machine.name, "type", "veth",
           "peer", "name", "home", "netns", nat.name)  # fmt: skip
        for namespace, end, address in (
            (machine.name, "eth0", machine.address),
            (nat.name, "home", machine.gateway),
        ):
            do("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", end)
            do("ip", "-n", namespace, "link", "set", end, "up")
        do("ip", "-n", machine.name, "route", "add", "default", "via", machine.gateway)

    def set_nat(self, name: str, *, udp: bool = True, forward_port: bool = False) -> None:
        """Make the NAT anew, without its flows. `udp` False drops all UDP; or forward a port."""
        inner = self.inner[name]
        blocked = "" if udp else "meta l4proto udp drop;"
        forwarded = f"udp dport {WIREGUARD_PORT} dnat ip to {inner.address}" if forward_port else ""
        nat = self.nat[name]
        do(*nat.command(["nft", "-f", "-"]), stdin=f"""
            table inet nat
            delete table inet nat
            table inet nat {{
              chain out {{
                type nat hook postrouting priority srcnat;
                oifname "eth0" masquerade fully-random
              }}
              chain in {{ type nat hook prerouting priority dstnat; iifname "eth0" {forwarded}; }}
              chain through {{
                type filter hook forward priority filter; policy drop;
                {blocked}
                ct status dnat accept
                iifname "home" accept
                ct state established,related accept
              }}
            }}
        """)  # fmt: skip
        self.forget_flows(name)

    def forget_flows(self, name: str) -> None:
        """Let the NAT lose its table, as one that starts again: each flow gets a new port."""
        code = "from pyroute2 import NFCTSocket as S\nwith S() as s: s.flush()"
        do(*self.nat[name].command([sys.executable, "-c", code]))

    def tables(self) -> str:
        """Return the relay's nftables, all of them."""
        return do(*self.relay.command(["nft", "list", "tables"]))


class Running:
    """A process of ours on a machine, and the JSON lines that it has said."""

    def __init__(
        self, machine: Machine, script: str, arguments: dict[str, Any], by: Sequence[str] = ()
    ) -> None:
        self.log = ROOT / f"{machine.name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as output:
            self.process = machine.spawn(
                [*by, sys.executable, str(HERE / script), json.dumps(arguments)], output=output
            )

    def said(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def until(self, event: str, count: int = 1, within_s: float = START_S) -> dict[str, Any]:
        """Return the `count`th event of that name."""
        deadline = time.monotonic() + within_s
        while True:
            found = [each for each in self.said() if each["event"] == event]
            if len(found) >= count:
                return found[count - 1]
            alive = self.process.poll() is None
            assert alive and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, *, kill: bool = False) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill() if kill else self.process.terminate()
        self.process.wait(timeout=15)


class Echo:
    """A UDP socket on each machine's overlay address: what one sends, the other has, or not."""

    PORT = 9

    def __init__(self, net: Net) -> None:
        self.sockets: dict[str, socket.socket] = {}
        for name, address in OVERLAY.items():
            made = socket_in(net.inner[name], socket.SOCK_DGRAM)
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # before WireGuard is there
            made.bind((address, self.PORT))
            self.sockets[name] = made

    def passes(self, sender: str, within_s: float = 0.3) -> bool:
        """Say whether a datagram arrives at the peer."""
        mark = time.monotonic_ns().to_bytes(8, "big")
        receiver = self.sockets[PEER[sender]]
        try:
            self.sockets[sender].sendto(mark, (OVERLAY[PEER[sender]], self.PORT))
        except OSError:  # no WireGuard yet, or no more
            time.sleep(0.005)
            return False
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            if select.select([receiver], [], [], left)[0] and receiver.recv(64) == mark:
                return True
        return False

    def wait(self, sender: str, within_s: float) -> float:
        """Return the seconds until a datagram of `sender` arrives."""
        began = time.monotonic()
        while not self.passes(sender, 0.02):
            assert time.monotonic() < began + within_s, f"nothing of {sender} arrives"
        return time.monotonic() - began

    def wait_silent(self, within_s: float) -> None:
        """Wait until nothing of anybody arrives."""
        deadline = time.monotonic() + within_s
        while any(self.passes(name) for name in OVERLAY):
            assert time.monotonic() < deadline, "it still arrives"

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()


def socket_in(machine: Machine, kind: int) -> socket.socket:
    """Return an IPv4 socket of a machine, to be used from here."""
    with ThreadPoolExecutor(1) as pool:  # a thread of its own, which ends in that namespace
        return pool.submit(_made_there, machine.name, kind).result()


def _made_there(name: str, kind: int) -> socket.socket:
    with open(f"/run/netns/{name}") as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    return socket.socket(socket.AF_INET, kind)


def throughput(net: Net, seconds: float, *, sender: str = "anna", streams: int = 1) -> float:
    """Return Mbit/s of TCP from one machine to the other over WireGuard."""
    script = str(HERE / "relay_stream.py")
    receiving: Sequence[str] = [sys.executable, script, "receive", OVERLAY[PEER[sender]]]
    receiver = subprocess.Popen(
        net.inner[PEER[sender]].command(receiving), stdout=subprocess.PIPE, text=True
    )
    try:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "listening\n"
        sent = net.inner[sender].run(
            [sys.executable, script, "send", OVERLAY[PEER[sender]], str(seconds), str(streams)],
            timeout_s=seconds + START_S,
        )
        assert sent.returncode == 0, sent.stderr
        return float(receiver.communicate(timeout=30)[0])
    finally:
        receiver.kill()
        receiver.wait()
