"""Punching and WireGuard over a line that is slow and loses packets, by the kernel's netem."""

from __future__ import annotations

import socket
import struct
import time

from probing_lab import PUBLIC, R4, WG, Inbox, World, observed, overlay, punched, world

from agent.probing.port import Port
from agent.probing.rawport import RawPort

DELAY_S, LOSS_PERCENT = 0.05, 5
TIMES, INTERVAL_S, LATE_S = 40, 0.05, 2.0
# 9 of 10 round trips survive two lossy ways; fewer than 26 of 40 do once in some 20,000 runs.
ANSWERED_MIN = 26


def weather(made: World) -> None:
    """Let a's line take 50 ms and lose 5 % each way: on its router, and where the line begins."""
    netem = ["netem", "delay", f"{DELAY_S * 1000:.0f}ms", "loss", f"{LOSS_PERCENT}%"]
    for name, link in (("nat-a", "wan"), ("internet", "to-nat-a")):
        made.hosts[name].do("tc", "qdisc", "add", "dev", link, "root", *netem)


def raw(made: World, name: str) -> tuple[Port, Inbox]:
    inbox = Inbox()
    return made.open(name, RawPort(WG), inbox), inbox


def echoes(address: str) -> list[float]:
    """Send so many ICMP echoes, and return the round trips of those that came back."""
    sent: dict[int, float] = {}
    took: dict[int, float] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        while len(sent) < TIMES or time.monotonic() < max(sent.values()) + LATE_S:
            if len(sent) < TIMES:
                number = len(sent)
                # Type, code, checksum, identifier and number: all words sum to all ones.
                head = struct.pack("!BBH", 8, 0, 0xFFFF - 0x0800 - TIMES)
                raw.sendto(head + struct.pack("!HH", TIMES - number, number), (address, 0))
                sent[number] = time.monotonic()
            deadline = time.monotonic() + INTERVAL_S
            while (left := deadline - time.monotonic()) > 0:
                raw.settimeout(left)
                try:
                    packet = raw.recv(2000)
                except TimeoutError:
                    break
                kind, (mark, number) = packet[20], struct.unpack_from("!HH", packet, 24)
                if kind == 0 and number in sent and mark == TIMES - number:
                    took.setdefault(number, time.monotonic() - sent[number])
    return list(took.values())


def test_easy_to_easy_over_50_ms_and_5_percent_loss() -> None:
    with world(a="easy", b="easy") as made:
        made.wireguard("a", "b", "r")
        made.rendezvous()
        weather(made)
        ports = {name: raw(made, name) for name in "ab"}
        places = {name: made.hosts[name].wait(observed(*ports[name], R4)) for name in "ab"}
        for name in "ab":
            assert places[name] == ((PUBLIC[name], WG),) * 2
        works = [
            made.hosts[me].begin(punched(*ports[me], places[other][0]))
            for me, other in ("ab", "ba")
        ]
        took = max(work.result(20) for work in works)
        told = time.monotonic()
        made.peers("b", ("a", places["a"][0]), calls=False)
        made.peers("a", ("b", places["b"][0]))
        # WireGuard's own next try, should one of its first packets be lost, comes after 5 s.
        assert made.ping("a", "b", 20.0) is not None
        first = time.monotonic() - told
        assert made.peer("a", "b").endpoint == places["b"][0]
        assert made.peer("b", "a").endpoint == places["a"][0]
        assert made.peer("b", "a").last_handshake is not None
        came = made.hosts["a"].block(echoes, str(overlay("b")[1].ip))
        assert len(came) >= ANSWERED_MIN
        assert min(came) >= 2 * DELAY_S  # the weather is there
        print(
            f"punched in {took:.2f} s, first ping {first:.2f} s after WireGuard was told;"
            f" {len(came)} of {TIMES} echoes, {min(came) * 1000:.0f} ms at best"
        )
