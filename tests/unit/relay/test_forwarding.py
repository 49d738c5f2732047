"""What is put into nftables and when, with a program in nft's place that keeps what it was told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from random import Random

import pytest
from relay_ends import ANNA, BERT, CARL, RELAY, seal_of

from agent.acl.firewall import Finished
from agent.errors import EnvironmentFault
from agent.relay import ruleset
from agent.relay.allocation import Allocation, Allocations, Limits
from agent.relay.door import Door
from agent.relay.forwarding import (
    BLOCKED_PACKETS,
    BLOCKED_S,
    LOOK_S,
    RETRY_S,
    REWRITE_S,
    Forwarding,
    forwarding_off,
)
from agent.relay.pairs import Seat
from agent.relay.ruleset import Route

NOW = 1_800_000_000.0
PORTS = range(23860, 23870)
HOME = Seat(("198.51.100.1", 5000), "192.0.2.9", "eth0")
AWAY = Seat(("198.51.100.2", 6000), "192.0.2.9", "eth0")
SIX = Seat(("2001:db8::1", 7000), "2001:db8::9", "eth0")
LOCAL = Seat(("127.0.0.1", 7000), "127.0.0.1", "lo")


class Nft:
    """Remembers what was run; fails with `fault`, and lists `counters`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fault = ""
        self.counters: dict[str, tuple[int, int]] = {}

    async def __call__(self, arguments: Sequence[str], stdin: bytes) -> Finished:
        if self.fault == "missing":
            raise EnvironmentFault("nft is not installed", hint="Install it.")
        if self.fault:
            return Finished(1, b"", self.fault.encode())
        if arguments[0] == "-j":
            items = [
                {"counter": {"family": "inet", "name": name, "packets": packets, "bytes": size}}
                for name, (packets, size) in self.counters.items()
            ]
            return Finished(0, json.dumps({"nftables": [{"metainfo": {}}, *items]}).encode(), b"")
        self.texts.append(stdin.decode())
        return Finished(0, b"", b"")


class World:
    def __init__(self) -> None:
        self.nft = Nft()
        self.off = ""
        self.forwarding = Forwarding(
            "covey0", PORTS, lambda *_: None, run=self.nft, switches=lambda _: self.off
        )
        self.allocations = Allocations(RELAY.id, Limits(ports=PORTS), Random(1))
        self.allocations.set_members([ANNA.id, BERT.id, CARL.id])

    async def pair(self, first: Seat | None = HOME, second: Seat | None = AWAY) -> Allocation:
        made = self.allocations.allocate(ANNA.id, BERT.id, NOW)
        doors = [Door(made.id, seal_of(RELAY, key), bytes(32)) for key in (ANNA, BERT)]
        await self.forwarding.add(made.pair, (doors[0], doors[1]))
        made.seats[:] = [first, second]
        return made

    async def settle(self, now: float) -> None:
        await self.forwarding.settle(self.allocations.all(), now)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.forwarding.start()
    yield made
    await made.forwarding.stop()


async def test_start_removes_what_is_left_and_stop_leaves_nothing(world: World) -> None:
    assert world.nft.texts[0].startswith(ruleset.removal("covey0"))
    await world.forwarding.stop()
    assert world.nft.texts[-1] == ruleset.removal("covey0")
    count = len(world.nft.texts)
    await world.forwarding.stop()
    assert len(world.nft.texts) == count


async def test_a_pair_goes_into_the_kernel_and_out_again(world: World) -> None:
    made = await world.pair()
    await world.settle(0)
    assert world.forwarding.in_kernel(made.id)
    text = world.nft.texts[-1]
    for part in ("198.51.100.1 . 5000 . 192.0.2.9", "ip daddr set 198.51.100.2 udp dport set 6000",
                 f"ip saddr set 192.0.2.9 udp sport set {made.pair.ports[1]}"):  # fmt: skip
        assert part in text
    count = len(world.nft.texts)
    await world.settle(1)
    assert len(world.nft.texts) == count  # nothing changed
    await world.settle(REWRITE_S)
    assert "add element" in world.nft.texts[-1] and "add rule" not in world.nft.texts[-1]
    world.allocations.release(ANNA.id, made.id)
    await world.settle(REWRITE_S + 1)
    assert not world.forwarding.in_kernel(made.id)
    assert world.nft.texts[-1].count("delete chain") == 4
    assert "add element" not in world.nft.texts[-1]


@pytest.mark.parametrize(
    ("first", "second"), [(HOME, None), (None, None), (HOME, SIX), (HOME, LOCAL), (LOCAL, LOCAL)]
)
async def test_what_the_kernel_cannot_do_stays(
    world: World, first: Seat | None, second: Seat | None
) -> None:
    made = await world.pair(first, second)
    await world.settle(0)
    assert not world.forwarding.in_kernel(made.id)
    assert world.forwarding.reason == ""


async def test_ipv6_is_written_as_such(world: World) -> None:
    await world.pair(SIX, Seat(("2001:db8::2", 8000), "2001:db8::9", "eth0"))
    await world.settle(0)
    text = world.nft.texts[-1]
    assert "in6 { 2001:db8::1 . 7000 . 2001:db8::9" in text
    assert "ip6 daddr set 2001:db8::2 udp dport set 8000" in text


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "nft is not installed"),
        ("Error: Operation not permitted", "CAP_NET_ADMIN"),
        ("Error: no such thing\nmore", "nft failed: Error: no such thing"),
    ],
)
async def test_without_nft_it_says_why_and_tries_again(fault: str, said: str) -> None:
    world = World()
    world.nft.fault = fault
    await world.forwarding.start()
    try:
        made = await world.pair()
        await world.settle(1)
        assert said in world.forwarding.reason
        world.nft.fault = ""
        await world.settle(RETRY_S - 1)
        assert not world.forwarding.in_kernel(made.id)
        await world.settle(RETRY_S + 1)
        assert world.forwarding.in_kernel(made.id)
        await world.settle(RETRY_S + 2)
        assert world.forwarding.reason == ""
    finally:
        await world.forwarding.stop()


async def test_the_operators_switch_is_followed(world: World) -> None:
    world.off = "forwarding is off (net.ipv4.conf.eth0.forwarding = 0)"
    made = await world.pair()
    await world.settle(0)
    assert world.forwarding.reason == world.off
    world.off = ""
    await world.settle(LOOK_S - 1)
    assert not world.forwarding.in_kernel(made.id)
    await world.settle(LOOK_S)
    assert world.forwarding.in_kernel(made.id)
    world.off = "off again"
    await world.settle(2 * LOOK_S)
    assert not world.forwarding.in_kernel(made.id)


async def test_counts_go_on_over_all_changes(world: World) -> None:
    made = await world.pair()
    await world.settle(0)
    name = made.id.hex()
    world.nft.counters = {f"in-{name}a": (10, 10 * 28 + 1000), f"in-{name}b": (5, 5 * 28 + 500)}
    world.nft.counters |= {f"out-{name}a": (10, 1280), f"out-{name}b": (5, 640)}
    assert (await world.forwarding.counts(1))[made.id] == (1000, 500)
    world.off = "off"
    await world.settle(LOOK_S)
    world.nft.counters = {}
    assert (await world.forwarding.counts(LOOK_S))[made.id] == (1000, 500)
    world.off = ""
    await world.settle(3 * LOOK_S)
    world.nft.counters = {f"in-{name}a": (1, 28 + 7)}
    assert (await world.forwarding.counts(3 * LOOK_S))[made.id] == (1007, 500)


async def test_packets_that_never_leave_are_noticed(world: World) -> None:
    made = await world.pair()
    await world.settle(0)
    name = made.id.hex()
    world.nft.counters = {f"in-{name}a": (BLOCKED_PACKETS, 9999), f"out-{name}a": (1, 99)}
    await world.forwarding.counts(1)
    await world.settle(1)
    assert world.forwarding.in_kernel(made.id)
    world.nft.counters[f"in-{name}a"] = (2 * BLOCKED_PACKETS, 99999)
    await world.forwarding.counts(2)
    await world.settle(2)
    assert not world.forwarding.in_kernel(made.id)
    assert "another packet filter" in world.forwarding.reason
    await world.settle(2 + BLOCKED_S)
    assert world.forwarding.in_kernel(made.id)


async def test_a_table_that_somebody_removed_is_made_again(world: World) -> None:
    made = await world.pair()
    await world.settle(0)
    run = world.nft.__call__
    fails = iter([True, False, False])

    async def once(arguments: Sequence[str], stdin: bytes) -> Finished:
        if arguments[0] == "-f" and next(fails, False):
            return Finished(1, b"", b"Error: No such file or directory")
        return await run(arguments, stdin)

    world.forwarding._run = once
    await world.settle(REWRITE_S)
    assert world.forwarding.in_kernel(made.id)
    assert "add rule" in world.nft.texts[-1]
    assert world.nft.texts[-2].startswith(ruleset.removal("covey0"))


def test_names_of_interfaces_that_nft_does_not_take() -> None:
    assert ruleset.table_name("wg+a=b") == "covey-relay-wg/pa/eb"


def test_equal_routes_are_written_as_elements_alone() -> None:
    allocations = Allocations(RELAY.id, Limits(), Random(1))
    allocations.set_members([ANNA.id, BERT.id])
    pair = allocations.allocate(ANNA.id, BERT.id, NOW).pair
    route, moved = Route(pair, (HOME, AWAY)), Route(pair, (AWAY, HOME))
    same = ruleset.change("covey0", [route], [route])
    assert "rule" not in same and same.count("add element") == 4
    assert ruleset.change("covey0", [route], [moved]).count("flush chain") == 4


def test_the_switch_of_an_interface_that_is_not_there_is_off() -> None:
    seat = Seat(HOME.place, HOME.local, "nosuch0")
    assert forwarding_off(seat) == "forwarding is off (net.ipv4.conf.nosuch0.forwarding = 0)"
