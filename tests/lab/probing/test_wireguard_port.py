"""RawPort beside a real wireguard-go, behind real NATs: one flow, one mapping, no answer to us."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from probing_lab import (
    INSIDE6,
    PUBLIC,
    R4,
    R6,
    WG,
    Inbox,
    World,
    observed,
    punched,
    world,
)

from agent.probing.plainport import PlainPort
from agent.probing.port import MAGIC, Port, Sent
from agent.probing.rawport import RawPort


@pytest.fixture
def easy() -> Iterator[World]:
    with world(a="easy", b="easy") as made:
        yield made


def raw(made: World, name: str) -> tuple[Port, Inbox]:
    inbox = Inbox()
    return made.open(name, RawPort(WG), inbox), inbox


def test_easy_to_easy_is_punched_and_wireguard_goes_that_way(easy: World) -> None:
    easy.wireguard("a", "b", "r")
    easy.rendezvous()
    ports = {name: raw(easy, name) for name in "ab"}
    places = {name: easy.hosts[name].wait(observed(*ports[name], R4)) for name in "ab"}
    for name in "ab":
        assert places[name] == ((PUBLIC[name], WG),) * 2  # easy: the same to both ports
    works = [
        easy.hosts[me].begin(punched(*ports[me], places[other][0])) for me, other in ("ab", "ba")
    ]
    took = [work.result(20) for work in works]
    told = time.monotonic()
    easy.peers("b", ("a", places["a"][0]), calls=False)
    easy.peers("a", ("b", places["b"][0]))
    assert easy.ping("a", "b") is not None
    ping = time.monotonic() - told
    assert easy.peer("a", "b").endpoint == places["b"][0]
    assert easy.peer("b", "a").endpoint == places["a"][0]
    assert max(took) < 2.0
    print(f"\neasy/easy: punched in {max(took):.3f} s, ping {ping:.3f} s after WireGuard was told")


def test_ipv6_through_two_firewalls(easy: World) -> None:
    easy.wireguard("a", "b", "r")
    easy.rendezvous()
    ports = {name: raw(easy, name) for name in "ab"}
    places = {name: easy.hosts[name].wait(observed(*ports[name], R6))[0] for name in "ab"}
    assert places == {name: (INSIDE6[name], WG) for name in "ab"}
    easy.hosts["a"].call(ports["a"][0].send, places["b"], MAGIC)
    time.sleep(0.2)

    # b's firewall lets nothing new in: r's answers alone.
    assert {place[0] for place, *_ in ports["b"][1].came} == {R6}
    works = [easy.hosts[me].begin(punched(*ports[me], places[to])) for me, to in ("ab", "ba")]
    took = max(work.result(20) for work in works)
    easy.peers("b", ("a", places["a"]), calls=False)
    easy.peers("a", ("b", places["b"]))
    assert easy.ping("a", "b") is not None
    assert easy.peer("b", "a").endpoint == places["a"]
    print(f"\nIPv6 punched in {took:.3f} s")


def test_a_hard_nat_gives_wireguard_the_mapping_that_our_probe_got() -> None:
    """The whole point: to the NAT it is one flow, even where each flow gets a port of its own."""
    with world(a="hard") as made:
        made.wireguard("a", "r")
        made.rendezvous()
        port, inbox = raw(made, "a")
        seen, second = made.hosts["a"].wait(observed(port, inbox, R4))
        assert seen[0] == second[0] == PUBLIC["a"]
        assert seen[1] != second[1] != WG != seen[1]
        made.peers("r", ("a", None))
        made.peers("a", ("r", (R4, WG)))
        assert made.ping("a", "r") is not None
        assert made.peer("r", "a").endpoint == seen
        # And the other way round: what r's raw port sends back comes in by WireGuard's mapping.
        inbox.came.clear()
        again = made.hosts["a"].wait(observed(port, inbox, R4))
        assert again == (seen, second)


def test_wireguard_neither_answers_ours_nor_minds_them(easy: World) -> None:
    easy.wireguard("a", "r")
    inbox = Inbox()
    easy.open("r", RawPort(WG), inbox)
    easy.peers("r", ("a", None))
    easy.peers("a", ("r", (R4, WG)))
    assert easy.ping("a", "r") is not None
    before = easy.peer("r", "a")
    count = 2000
    with easy.hosts["nat-a"].call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect((R4, WG))
        stranger.settimeout(0.5)
        for number in range(count):
            stranger.send(MAGIC + number.to_bytes(4, "big") + bytes(number % 1200))
            deadline = time.monotonic() + 5
            while number - len(inbox.came) > 50 and time.monotonic() < deadline:
                time.sleep(0.001)  # a slow machine's queue is not the question here
        while len(inbox.came) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(TimeoutError):  # nor an ICMP error, which would be ECONNREFUSED
            stranger.recv(100)
    assert len(inbox.came) == count
    after = easy.peer("r", "a")
    assert after.rx_bytes - before.rx_bytes < 500  # a keepalive or two, not 1.2 MB
    assert easy.hosts["r"].block(easy.devices["r"].failure) is None
    assert easy.ping("a", "r") is not None


def test_only_a_whole_datagram_measures_the_path(easy: World) -> None:
    """The link takes 1500, a's router 1400 on its way in: DF vanishes there, the rest arrives."""
    easy.wireguard("a", "r")
    heard = Inbox()
    easy.open("r", RawPort(WG), heard)
    port, _ = raw(easy, "a")
    easy.hosts["nat-a"].ip("link", "set", "wan", "mtu", "1400")
    for host, headers in ((R4, 28), (R6, 48)):

        def send(
            size: int, *, whole: bool, host: str = host, headers: int = headers
        ) -> tuple[Sent, int]:
            heard.came.clear()
            payload = MAGIC + bytes(size - headers - len(MAGIC))
            said = easy.hosts["a"].call(port.send, (host, WG), payload, whole=whole)
            deadline = time.monotonic() + 0.5
            while not heard.came and time.monotonic() < deadline:
                time.sleep(0.01)
            return said, len(heard.came)

        deadline = time.monotonic() + 5
        while send(100, whole=True) != (Sent.SENT, 1):  # neighbours have found each other
            assert time.monotonic() < deadline, host
        assert send(1400, whole=True) == (Sent.SENT, 1), host
        assert send(1401, whole=True) == (Sent.SENT, 0)
        assert send(1501, whole=True) == (Sent.TOO_BIG, 0)
        # The ICMP error that the router sent changes nothing: the next probe is as free.
        assert send(1500, whole=True) == (Sent.SENT, 0)
        assert send(1400, whole=True) == (Sent.SENT, 1)
        if host == R4:  # IPv6 routers do not cut
            assert send(1500, whole=False) == (Sent.SENT, 1)
        assert send(4000, whole=False)[0] is Sent.SENT


def test_a_plain_port_hands_its_mapping_over(easy: World) -> None:
    easy.wireguard("r")
    easy.rendezvous()
    inbox = Inbox()
    plain = easy.open("a", PlainPort(WG), inbox)
    seen, _ = easy.hosts["a"].wait(observed(plain, inbox, R4))
    easy.hosts["a"].call(plain.close)
    easy.wireguard("a")
    easy.peers("r", ("a", None))
    easy.peers("a", ("r", (R4, WG)))
    assert easy.ping("a", "r") is not None
    assert easy.peer("r", "a").endpoint == seen


def test_a_reply_leaves_from_the_address_that_was_asked(easy: World) -> None:
    second = "198.18.200.2"
    easy.hosts["r"].ip("address", "add", f"{second}/24", "dev", "wan")
    easy.wireguard("a", "r")
    easy.rendezvous()
    port, inbox = raw(easy, "a")
    assert easy.hosts["a"].wait(observed(port, inbox, second))[0] == (PUBLIC["a"], WG)


def test_a_changed_address_is_found_by_the_next_send(easy: World) -> None:
    easy.wireguard("a", "r")
    heard = Inbox()
    easy.open("r", RawPort(WG), heard)
    port, _ = raw(easy, "a")
    a = easy.hosts["a"]
    assert a.call(port.send, (R4, WG), MAGIC) is Sent.SENT
    a.ip("address", "del", "192.168.10.2/24", "dev", "wan")
    a.ip("address", "add", "192.168.10.3/24", "dev", "wan")
    a.ip("route", "replace", "default", "via", "192.168.10.1")
    assert a.call(port.send, (R4, WG), MAGIC + b"again") is Sent.SENT
    deadline = time.monotonic() + 2
    while len(heard.came) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [payload for _, payload, _ in heard.came] == [MAGIC, MAGIC + b"again"]
    a.ip("route", "del", "default")
    assert a.call(port.send, ("203.0.113.1", WG), MAGIC) is Sent.NO_ROUTE


def test_without_cap_net_raw_a_program_says_so(easy: World) -> None:
    """As a service without the capability is: root in name, and everything else."""
    program = (
        "import asyncio\nfrom agent.errors import EnvironmentFault\n"
        "from agent.probing.rawport import RawPort\n"
        "async def main():\n"
        "    try:\n        RawPort(51820).open(lambda *_: None)\n"
        "    except EnvironmentFault as fault:\n        print(fault.line())\n"
        "asyncio.run(main())\n"
    )
    capability = ["--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    done = subprocess.run(
        ["setpriv", *capability, sys.executable, "-c", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == (
        "cannot share UDP port 51820 with WireGuard: this needs CAP_NET_RAW. Run the agent as"
        " root, or give its service AmbientCapabilities=CAP_NET_RAW, or its container"
        " `--cap-add NET_RAW`.\n"
    ), done.stderr
