"""The clamp in a real kernel: c ── d ═ overlay (1280) ═ e; c and e think that links take 1500."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from probing_lab import Host, do

from agent.probing.mss import MssClamp

C, E = "198.18.201.2", "198.18.202.2"
MTU = 1280
_TCP_MAXSEG_OF_PEER = 1460


@pytest.fixture
def line() -> Iterator[dict[str, Host]]:
    hosts: dict[str, Host] = {}
    try:
        for name in "cde":
            hosts[name] = Host(name)
        for end, link, network in (("c", "lan", "198.18.201"), ("e", "covey0", "198.18.202")):
            do("ip", "link", "add", "eth0", "netns", end, "type", "veth",
               "peer", "name", link, "netns", "d")  # fmt: skip
            for name, device, address in ((end, "eth0", 2), ("d", link, 1)):
                hosts[name].ip("address", "add", f"{network}.{address}/24", "dev", device)
                hosts[name].ip("link", "set", device, "up")
            hosts[end].ip("route", "add", "default", "via", f"{network}.1")
        hosts["d"].ip("link", "set", "covey0", "mtu", str(MTU))
        hosts["d"].do("sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield hosts
    finally:
        for host in hosts.values():
            host.close()


def offered(server: Host, address: str, client: Host) -> tuple[int, int]:
    """Return how large segments the server and the client of a new connection will send."""

    @contextmanager
    def tcp(host: Host) -> Iterator[socket.socket]:
        with host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as made:
            made.settimeout(5)
            yield made

    with tcp(server) as listening, tcp(client) as calling:
        listening.bind((address, 0))
        listening.listen()
        calling.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            # Less the 12 bytes of TCP's timestamps.
            return tuple(  # type: ignore[return-value]
                end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) + 12
                for end in (accepted, calling)
            )


def test_forwarded_connections_fit_the_overlay_both_ways(line: dict[str, Host]) -> None:
    operator = "table inet operator {\n  chain none {\n  }\n}\n"
    line["d"].nft("-f", "-", stdin=operator)
    before = line["d"].nft("list", "ruleset")
    fits = MTU - 40
    assert offered(line["e"], E, line["c"]) == (_TCP_MAXSEG_OF_PEER, _TCP_MAXSEG_OF_PEER)
    clamp = MssClamp("covey0")
    line["d"].wait(clamp.start())
    assert offered(line["e"], E, line["c"]) == (fits, fits)
    assert offered(line["c"], C, line["e"]) == (fits, fits)
    # What this machine sends itself, and what does not go by the overlay.
    assert offered(line["e"], E, line["d"])[0] == fits
    assert offered(line["c"], C, line["d"]) == (_TCP_MAXSEG_OF_PEER, _TCP_MAXSEG_OF_PEER)
    # Once the overlay takes more, so do connections, without us.
    line["d"].ip("link", "set", "covey0", "mtu", "1400")
    assert offered(line["e"], E, line["c"]) == (1360, 1360)
    line["d"].wait(MssClamp("covey0").start())  # another agent, after this one was killed
    line["d"].wait(clamp.stop())
    line["d"].wait(clamp.stop())
    assert line["d"].nft("list", "ruleset") == before
