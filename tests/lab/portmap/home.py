"""A home behind a real router: nftables NAT with miniupnpd, a machine inside, one outside.

    home 192.168.77.2 ── 192.168.77.1 router 5.5.5.1 ── 5.5.5.2 outside

The outer addresses are public ones, since a router refuses to map to an address that is not; they
exist in these namespaces only.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from agent.demo.netlab import Machine

HOME = Machine("pm-home", "192.168.77.2", "192.168.77.1")
ROUTER = Machine("pm-router", "192.168.77.1", "")
OUTSIDE = Machine("pm-outside", "5.5.5.2", "")
WAN, NEW_WAN = "5.5.5.1", "5.5.5.77"
CARRIER_WAN = "100.64.3.4"

NAT = """
flush ruleset
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "lan" accept
        jump miniupnpd
    }
    chain miniupnpd { }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
        oifname "wan" masquerade
    }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""
CONFIG = """
ext_ifname=wan
listening_ip=lan
ipv6_disable=yes
enable_natpmp={pmp}
enable_upnp={upnp}
secure_mode=yes
system_uptime=no
notify_interval=30
min_lifetime=120
max_lifetime={max_lifetime}
uuid=0e0e1b1c-1111-4b4c-9d9d-c0c0c0c0c0c0
{more}
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


def do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def ip(machine: Machine, *arguments: str) -> None:
    do("ip", "-n", machine.name, *arguments)


class Home:
    """The three machines, and the router's miniupnpd."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemon: subprocess.Popen[bytes] | None = None
        for machine in (HOME, ROUTER, OUTSIDE):
            do("ip", "netns", "add", machine.name)
            ip(machine, "link", "set", "lo", "up")
        for name, machine, address in (("lan", HOME, HOME), ("wan", OUTSIDE, OUTSIDE)):
            do("ip", "link", "add", name, "netns", ROUTER.name, "type", "veth",
               "peer", "name", "eth0", "netns", machine.name)  # fmt: skip
            ip(machine, "address", "add", f"{address.address}/24", "dev", "eth0")
            ip(machine, "link", "set", "eth0", "up")
            ip(ROUTER, "link", "set", name, "up")
        ip(ROUTER, "address", "add", f"{ROUTER.address}/24", "dev", "lan")
        self.set_wan(WAN)
        ip(HOME, "route", "add", "default", "via", ROUTER.address)
        do(*ROUTER.command(["sysctl", "-qw", "net.ipv4.ip_forward=1"]))
        self.forget()

    def set_wan(self, address: str) -> None:
        """Give the router another address outside."""
        ip(ROUTER, "address", "flush", "dev", "wan")
        ip(ROUTER, "address", "add", f"{address}/24", "dev", "wan")

    def forget(self) -> None:
        """Set the NAT up as after a restart: nothing is mapped."""
        rules = self._folder / "nat.nft"
        rules.write_text(NAT)
        do(*ROUTER.command(["nft", "-f", str(rules)]))

    def start(
        self, *, pmp: bool = True, upnp: bool = True, max_lifetime: int = 86400, more: str = ""
    ) -> None:
        """Start miniupnpd, which serves NAT-PMP with PCP, and UPnP."""
        config = self._folder / "miniupnpd.conf"
        words = {True: "yes", False: "no"}
        config.write_text(
            CONFIG.format(pmp=words[pmp], upnp=words[upnp], max_lifetime=max_lifetime, more=more)
        )
        with (self._folder / "miniupnpd.log").open("ab") as log:
            # -d: it stays in the foreground and tells what it does.
            self._daemon = ROUTER.spawn(
                ["miniupnpd", "-d", "-f", str(config), "-P", str(self._folder / "pid")], output=log
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End miniupnpd; with SIGKILL it says goodbye to nobody."""
        if self._daemon is not None:
            self._daemon.send_signal(number)
            self._daemon.wait(timeout=10)
            self._daemon = None

    def redirects(self) -> str:
        """Return the rules that let something in."""
        shown = ROUTER.run(["nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"])
        assert shown.returncode == 0, shown.stderr
        return shown.stdout

    def wait_redirect(self, port: int, present: bool, within_s: float = 10) -> None:
        """Wait until a port is let in, or is not."""
        deadline = time.monotonic() + within_s
        while (f"dport {port} " in self.redirects()) is not present:
            assert time.monotonic() < deadline, self.redirects()
            time.sleep(0.05)

    def send_in(self, place: tuple[str, int], text: str) -> None:
        """Send one datagram from outside."""
        code = (
            "import socket,sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            "s.sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))"
        )
        sent = OUTSIDE.run(["python3", "-c", code, place[0], str(place[1]), text])
        assert sent.returncode == 0, sent.stderr
