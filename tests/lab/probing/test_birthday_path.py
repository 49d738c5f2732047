"""Easy against hard by birthday, and the rule that WireGuard then goes by, in a real kernel."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator

import pytest
from probing_lab import PUBLIC, R4, WG, Host, Inbox, World, observed, world

from agent.probing.birthday import Birthday, Hit
from agent.probing.port import MAGIC, Place, Port
from agent.probing.rawport import RawPort
from agent.probing.snat import BirthdayPath, BirthdayRules

OPERATOR = """
table inet operator {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname { "lo", "wgp-a", "wgp-b" } accept
    ct state established,related accept
    udp dport 51820 accept
    meta l4proto ipv6-icmp accept
  }
}
table ip covey-paths-other {
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
    ip daddr 203.0.113.1 masquerade
  }
}
"""
PROOF, HERE = MAGIC + b"proof", MAGIC + b"here"
LOCAL_PORT = 40001


@pytest.fixture
def easy() -> Iterator[World]:
    with world(a="easy") as made:
        made.hosts["a"].nft("-f", "-", stdin=OPERATOR)
        yield made


def raw(made: World, name: str) -> tuple[Port, Inbox]:
    inbox = Inbox()
    return made.open(name, RawPort(WG), inbox), inbox


async def spray(port: Port, inbox: Inbox, host: str, seed: int) -> tuple[Place, int]:
    """Do as the easy side: send to random ports of `host` until it answers; return from where."""
    ports = random.Random(seed).sample(range(1024, 65536), 4000)
    for sent, number in enumerate(ports, 1):
        port.send((host, number), PROOF)
        await asyncio.sleep(0.004)
        for place, payload, _ in inbox.came:
            if payload == HERE:
                return place, sent
    raise AssertionError("no hit in 4,000 sends")


async def met(sockets: Birthday) -> Hit:
    sockets.open()
    hit = await sockets.hit(lambda: MAGIC + b"open", 30.0)
    assert hit is not None
    for _ in range(3):
        hit.send(HERE)
        await asyncio.sleep(0.02)
    return hit


def test_easy_against_hard_and_wireguard_goes_that_way() -> None:
    with world(a="easy", b="hard") as made:
        a, b = made.hosts["a"], made.hosts["b"]
        b.nft("-f", "-", stdin=OPERATOR)
        before = b.nft("list", "ruleset")
        made.wireguard("a", "b")
        raw_a, heard_a = raw(made, "a")
        raw_b, heard_b = raw(made, "b")
        easy_place = (PUBLIC["a"], WG)
        b.call(raw_b.send, easy_place, MAGIC + b"a flow that is there already")
        began = time.monotonic()
        hard = b.begin(met(Birthday(easy_place, lambda _, payload: payload == PROOF)))
        time.sleep(0.1)  # the peer is told of it by signal, meanwhile
        found, sends = a.wait(spray(raw_a, heard_a, PUBLIC["b"], os.getpid()))
        hit = hard.result(30)
        took = time.monotonic() - began
        assert found[0] == PUBLIC["b"]
        # The peer does not stop for us: whose packet is first after the rule is chance.
        chatter = a.begin(_keep_sending(raw_a, found))
        rules = BirthdayRules("wgp-b", WG)
        b.wait(rules.start())
        b.wait(rules.add(BirthdayPath(easy_place, hit.local_address, hit.local_port)))
        hit.close()
        heard_a.came.clear()
        b.call(raw_b.send, easy_place, MAGIC + b"by the rule")
        _until(lambda: heard_a.came)
        assert heard_a.came[0][:2] == (found, MAGIC + b"by the rule")
        _until(lambda: (easy_place, MAGIC + b"chatter") in [c[:2] for c in heard_b.came])
        told = time.monotonic()
        made.peers("a", ("b", found), calls=False)
        made.peers("b", ("a", easy_place))
        assert made.ping("b", "a") is not None
        ping = time.monotonic() - told
        assert made.ping("a", "b") is not None
        assert made.peer("a", "b").endpoint == found
        assert made.peer("b", "a").endpoint == easy_place
        chatter.cancel()
        print(
            f"\nbirthday: {sends} sends, {took:.2f} s with signalling;"
            f" first ping {ping:.3f} s after WireGuard was told"
        )
        b.wait(rules.stop())
        assert b.nft("list", "ruleset") == before


async def _keep_sending(port: Port, to: Place) -> None:
    while True:
        port.send(to, MAGIC + b"chatter")
        await asyncio.sleep(0.002)


def _until(condition: object, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def seen_at(made: World, port: Port, inbox: Inbox) -> tuple[int, int]:
    """Return the ports by which both of the rendezvous' ports see `a`."""
    inbox.came.clear()
    first, second = made.hosts["a"].wait(observed(port, inbox, R4))
    return first[1], second[1]


def tracked(host: Host) -> int:
    """Return how many flows the machine tracks."""
    return int(host.do("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))


def test_a_path_is_one_peers_alone_and_holds_for_flows_that_exist(easy: World) -> None:
    easy.wireguard("a", "r")
    easy.rendezvous()
    port, inbox = raw(easy, "a")
    a = easy.hosts["a"]
    before = a.nft("list", "ruleset")
    easy.peers("r", ("a", None))
    easy.peers("a", ("r", (R4, WG)))
    assert easy.ping("a", "r") is not None
    assert seen_at(easy, port, inbox) == (WG, WG)
    count = tracked(a)
    rules = BirthdayRules("wgp-a", WG)
    a.wait(rules.start())
    local = BirthdayPath((R4, WG), "192.168.10.2", LOCAL_PORT)
    a.wait(rules.add(local))
    assert tracked(a) == count - 1  # the one with the peer is forgotten, and only that
    # To r's WireGuard port we are another now, to the port beside it the same as before.
    assert seen_at(easy, port, inbox) == (LOCAL_PORT, WG)
    assert easy.ping("a", "r") is not None
    assert easy.ping("r", "a") is not None
    assert easy.peer("r", "a").endpoint == (PUBLIC["a"], LOCAL_PORT)
    assert a.nft("list", "table", "inet", "operator") in before
    a.wait(rules.add(BirthdayPath((R4, WG), "192.168.10.2", LOCAL_PORT + 1)))
    assert seen_at(easy, port, inbox) == (LOCAL_PORT + 1, WG)
    a.wait(rules.remove((R4, WG)))
    assert seen_at(easy, port, inbox) == (WG, WG)
    assert easy.ping("a", "r") is not None
    assert a.nft("list", "ruleset") == before


def test_the_peers_packet_may_be_first(easy: World) -> None:
    """r's comes in by the open mapping before we have sent anything under the rule."""
    easy.wireguard("a", "r")
    rendezvous = Inbox()
    raw_r = easy.open("r", RawPort(WG), rendezvous)
    port, inbox = raw(easy, "a")
    a, r = easy.hosts["a"], easy.hosts["r"]
    sockets = Birthday((R4, WG), lambda *_: True, count=1)
    a.call(sockets.open)
    assert a.wait(sockets.send(MAGIC)) == 1
    _until(lambda: rendezvous.came)
    place = rendezvous.came[0][0]
    hit = a.begin(sockets.hit(lambda: MAGIC, 5.0))
    r.call(raw_r.send, place, MAGIC)
    found = hit.result(5)
    assert found is not None
    assert found.local_port == place[1]  # an easy NAT keeps it
    rules = BirthdayRules("wgp-a", WG)
    a.wait(rules.add(BirthdayPath((R4, WG), found.local_address, found.local_port)))
    r.call(raw_r.send, place, MAGIC + b"first")
    _until(lambda: inbox.came)
    assert inbox.came[0][:2] == ((R4, WG), MAGIC + b"first")
    rendezvous.came.clear()
    a.call(port.send, (R4, WG), MAGIC + b"back")
    _until(lambda: rendezvous.came)
    assert rendezvous.came[0][:2] == (place, MAGIC + b"back")
    found.close()
    a.wait(rules.stop())


def test_what_a_killed_agent_left_is_removed_with_its_flows(easy: World) -> None:
    easy.wireguard("a", "r")
    easy.rendezvous()
    port, inbox = raw(easy, "a")
    a = easy.hosts["a"]
    before = a.nft("list", "ruleset")
    killed = BirthdayRules("wgp-a", WG)
    a.wait(killed.add(BirthdayPath((R4, WG), "192.168.10.2", LOCAL_PORT)))
    assert seen_at(easy, port, inbox) == (LOCAL_PORT, WG)
    a.wait(BirthdayRules("wgp-a", WG).start())
    assert a.nft("list", "ruleset") == before
    assert seen_at(easy, port, inbox) == (WG, WG)


def test_closed_it_all_leaves_nothing(easy: World) -> None:
    a = easy.hosts["a"]
    before, descriptors = a.nft("list", "ruleset"), set(os.listdir("/proc/self/fd"))
    easy.wireguard("a")
    port, _ = raw(easy, "a")
    rules = BirthdayRules("wgp-a", WG)
    sockets = Birthday((R4, WG), lambda *_: True)
    a.wait(rules.start())
    a.call(sockets.open)
    a.wait(rules.add(BirthdayPath((R4, WG), "192.168.10.2", LOCAL_PORT)))
    began = time.monotonic()
    a.call(sockets.close)
    a.call(port.close)
    closing = time.monotonic() - began
    a.wait(rules.stop())
    a.wait(rules.stop())
    easy.hosts["a"].block(easy.devices.pop("a").close)
    assert closing < 1.0
    assert a.nft("list", "ruleset") == before
    assert a.do("ss", "-Hanu") == a.do("ss", "-Hanw") == ""
    left = set(os.listdir("/proc/self/fd")) - descriptors
    assert not [fd for fd in left if "socket" in os.readlink(f"/proc/self/fd/{fd}")]
