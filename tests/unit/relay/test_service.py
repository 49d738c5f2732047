"""A relay on loopback, forwarding in user space, and two sides that use it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from relay_ends import (
    ANNA,
    BERT,
    CARL,
    DATA,
    KEYS,
    MESH,
    OTHER_KEYS,
    RELAY,
    End,
    key_of,
    seal_of,
    until,
)

from agent.errors import EnvironmentFault, MembershipError, PeerError, UsageError
from agent.membership.networkkeys import NetworkKeys
from agent.probing.port import MAGIC
from agent.relay import messages, service
from agent.relay.allocation import Limits
from agent.relay.client import Ready
from agent.relay.messages import Allocate, Allocated, Refresh, Release
from agent.relay.pairs import PortTaken
from agent.relay.service import Relay, Settings
from agent.relay.wire import Open

pytestmark = pytest.mark.slow

# Away from what the system gives out by itself.
LIMITS = Limits(ports=range(23840, 23850))


def relay_of(limits: Limits = LIMITS) -> Relay:
    made = Relay(RELAY, MESH, KEYS, "relaytest0", Settings(limits, kernel=False, tunnel_port=None))
    made.set_members([ANNA.id, BERT.id, CARL.id, RELAY.id])
    return made


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TICK_S", 0.1)


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    made = relay_of()
    await made.start()
    yield made
    await made.stop()


async def pair(relay: Relay, host: str = "127.0.0.1") -> tuple[End, End]:
    anna, bert = End(ANNA, BERT, relay, host), End(BERT, ANNA, relay, host)
    await anna.open()
    await bert.open()
    return anna, bert


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_ways(relay: Relay, host: str) -> None:
    anna, bert = await pair(relay, host)
    anna.send(DATA + b"hello")
    assert await bert.receive() == [DATA + b"hello"]
    bert.send(DATA + b"hello back")
    assert await anna.receive() == [DATA + b"hello back"]
    assert bert.core.allocated is not None and anna.core.allocated is not None
    assert bert.core.allocated.id == anna.core.allocated.id
    assert (anna.core.allocated.port, anna.core.allocated.peer_port) == (
        bert.core.allocated.peer_port, bert.core.allocated.port,
    )  # fmt: skip


async def test_the_first_message_waits_for_a_peer_that_is_late(relay: Relay) -> None:
    anna = End(ANNA, BERT, relay)
    await anna.open()
    for data in (b"a", b"b"):
        anna.send(DATA + data)
    await asyncio.sleep(0.1)
    bert = End(BERT, ANNA, relay)
    await bert.open()
    assert await bert.receive(2, within_s=0.2) == [DATA + b"b"]


async def test_bursts_arrive_whole_and_in_order(relay: Relay) -> None:
    anna, bert = await pair(relay)
    for start in range(0, 1000, 100):
        sent = [DATA + n.to_bytes(4, "big") * (n % 50) for n in range(start, start + 100)]
        for data in sent:
            anna.send(data)
        assert await bert.receive(100) == sent


async def test_probes_of_the_pair_pass_and_too_long_ones_do_not(relay: Relay) -> None:
    anna, bert = await pair(relay)
    probe = MAGIC + b"sealed for bert"
    for data in (DATA + b"1", probe, DATA + b"x" * 2100, DATA + b"2"):
        anna.send(data)
    assert await bert.receive(3) == [DATA + b"1", probe, DATA + b"2"]


async def test_strangers_get_neither_through_nor_an_answer(relay: Relay) -> None:
    anna, bert = await pair(relay)
    assert anna.core.allocated is not None
    to = ("127.0.0.1", anna.core.allocated.port)
    identity = anna.core.allocated.id
    now_us = int(time.time() * 1e6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.bind(("127.0.0.1", 0))
        for data in (
            DATA + b"let me in", MAGIC + b"x" * 92, b"", MAGIC,
            seal_of(CARL, RELAY).seal(Open(identity, now_us), bytes(24)),  # not of the pair
            seal_of(BERT, RELAY).seal(Open(identity, now_us), bytes(24)),  # the other side's port
            seal_of(ANNA, RELAY, OTHER_KEYS).seal(Open(identity, now_us), bytes(24)),
            seal_of(ANNA, RELAY).seal(Open(b"another!", now_us), bytes(24)),
        ):  # fmt: skip
            stranger.sendto(data, to)
        anna.send(DATA + b"after them")
        assert await bert.receive(2, within_s=0.3) == [DATA + b"after them"]
        with pytest.raises(BlockingIOError):
            stranger.recv(2048)


async def test_a_captured_open_does_not_move_the_seat(relay: Relay) -> None:
    anna, bert = await pair(relay)
    assert anna.core.allocated is not None
    # Not seen by the relay yet, as if it had been held up: the worst case.
    captured = seal_of(ANNA, RELAY).seal(
        Open(anna.core.allocated.id, int(time.time() * 1e6) + 1), bytes(24)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.bind(("127.0.0.1", 0))
        thief.settimeout(2)
        for _ in range(5):
            thief.sendto(captured, ("127.0.0.1", anna.core.allocated.port))
        assert len(thief.recv(2048)) == len(captured)  # a challenge that only Anna can open
        thief.settimeout(0.1)
        with pytest.raises(TimeoutError):
            thief.recv(2048)
        bert.send(DATA + b"for anna")
        assert await anna.receive() == [DATA + b"for anna"]


async def test_a_side_that_moves_opens_again(relay: Relay) -> None:
    anna, bert = await pair(relay)
    anna.move()
    anna.send(DATA + b"from an unproved place")
    assert await bert.receive(within_s=0.2) == []
    anna.core.reopen(time.time())
    await until_ready(anna)
    anna.send(DATA + b"from there")
    assert await bert.receive() == [DATA + b"from there"]
    bert.send(DATA + b"to there")
    assert await anna.receive() == [DATA + b"to there"]


async def until_ready(end: End) -> None:
    for _ in range(300):
        await end.step()
        if any(isinstance(each, Ready) and each.seen == end.place for each in end.events):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it was not opened again")


async def test_a_revoked_member_is_cut_off_at_once(relay: Relay) -> None:
    anna, bert = await pair(relay)
    relay.set_members([ANNA.id, CARL.id, RELAY.id])
    await until(lambda: free(LIMITS.ports))
    anna.send(DATA + b"still there?")
    assert await bert.receive(within_s=0.2) == []
    with pytest.raises(MembershipError):
        await relay.answer(ANNA.id, messages.encode(Allocate(BERT.id.ed25519)))
    with pytest.raises(MembershipError):
        await relay.answer(BERT.id, messages.encode(Allocate(ANNA.id.ed25519)))


async def test_who_is_revoked_while_ports_are_opened_leaves_none_open(relay: Relay) -> None:
    request = messages.encode(Allocate(BERT.id.ed25519))
    asked = asyncio.create_task(relay.answer(ANNA.id, request))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    relay.set_members([ANNA.id, RELAY.id])
    with pytest.raises(MembershipError):
        await asked
    await until(lambda: free(LIMITS.ports))
    assert relay.describe()["pairs"] == []
    assert relay._counted == {}


def free(ports: range) -> bool:
    """Say whether nobody holds any of these UDP ports."""
    for port in ports:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
            try:
                made.bind(("::", port))
            except OSError:
                return False
    return True


async def test_what_is_not_refreshed_ends() -> None:
    relay = relay_of(replace(LIMITS, lifetime_s=0.5))
    await relay.start()
    try:
        await pair(relay)
        assert not free(LIMITS.ports)
        await until(lambda: free(LIMITS.ports))
        assert relay.describe()["pairs"] == []
    finally:
        await relay.stop()


async def test_refreshing_keeps_it() -> None:
    relay = relay_of(replace(LIMITS, lifetime_s=0.6))
    await relay.start()
    try:
        anna, bert = await pair(relay)
        for _ in range(18):  # the client core refreshes at a third of the lifetime
            await anna.step()
            await asyncio.sleep(0.05)
        anna.send(DATA)
        assert await bert.receive() == [DATA]
    finally:
        await relay.stop()


async def test_the_rate_is_kept() -> None:
    relay = relay_of(replace(LIMITS, rate_bytes_s=200_000))
    await relay.start()
    try:
        anna, bert = await pair(relay)
        began, sent, got = time.monotonic(), 0, 0
        while time.monotonic() < began + 1.0:
            for _ in range(10):
                anna.send(DATA + bytes(996))
                sent += 1000
            got += sum(map(len, await bert.receive(10, within_s=0.01)))
        assert sent > 2 * got
        assert 130_000 <= got <= 200_000 + 2 * 65_536
    finally:
        await relay.stop()


async def test_a_spent_quota_ends_the_pair_for_the_day() -> None:
    relay = relay_of(replace(LIMITS, pair_bytes_day=50_000))
    await relay.start()
    try:
        anna, _ = await pair(relay)
        for _ in range(60):
            anna.send(DATA + bytes(996))
        await until(lambda: relay.describe()["pairs"] == [])
        with pytest.raises(EnvironmentFault, match="has used up"):
            await relay.answer(ANNA.id, messages.encode(Allocate(BERT.id.ed25519)))
        await relay.answer(ANNA.id, messages.encode(Allocate(CARL.id.ed25519)))
    finally:
        await relay.stop()


async def test_a_port_of_another_program_is_passed_over(relay: Relay) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", LIMITS.ports[1]))
        anna, bert = await pair(relay)
        assert anna.core.allocated is not None
        assert LIMITS.ports[1] not in (anna.core.allocated.port, anna.core.allocated.peer_port)
        anna.send(DATA)
        assert await bert.receive() == [DATA]


async def test_two_relays_do_not_share_a_port(relay: Relay) -> None:
    await pair(relay)
    other = relay_of(replace(LIMITS, ports=range(LIMITS.ports[0], LIMITS.ports[2])))
    await other.start()
    try:
        with pytest.raises(EnvironmentFault):
            await other.answer(ANNA.id, messages.encode(Allocate(BERT.id.ed25519)))
    finally:
        await other.stop()


async def test_requests_that_make_no_sense(relay: Relay) -> None:
    for raw in (b"", b"\xc1", b"\x81\xa3say\xa5other", bytes(1000)):
        with pytest.raises(PeerError):
            await relay.answer(ANNA.id, raw)
    for request in (Refresh(b"12345678"), Release(b"12345678")):
        with pytest.raises(UsageError):
            await relay.answer(ANNA.id, messages.encode(request))
    raw = await relay.answer(ANNA.id, messages.encode(Allocate(BERT.id.ed25519)))
    identity = messages.decode_answer(raw, Allocated).id
    with pytest.raises(UsageError):
        await relay.answer(CARL.id, messages.encode(Release(identity)))
    with pytest.raises(MembershipError):
        stranger = key_of("stranger").id.ed25519
        await relay.answer(ANNA.id, messages.encode(Allocate(stranger)))


async def test_a_peer_that_is_no_point_of_the_curve_costs_nothing() -> None:
    from agent.identity.keys import NodeId

    bad = NodeId(b"\x02" + bytes(31))
    relay = relay_of()
    relay.set_members([ANNA.id, bad])
    await relay.start()
    try:
        with pytest.raises(UsageError):
            await relay.answer(ANNA.id, messages.encode(Allocate(bad.ed25519)))
        assert relay.describe()["pairs"] == []
    finally:
        await relay.stop()


async def test_release_closes_the_ports(relay: Relay) -> None:
    anna, _ = await pair(relay)
    anna.core.close()
    await anna.step()
    await until(lambda: free(LIMITS.ports))


async def test_new_network_keys_hold_for_pairs_that_are_there(relay: Relay) -> None:
    anna, bert = await pair(relay)
    relay.set_network_keys(NetworkKeys(OTHER_KEYS.sending, (OTHER_KEYS.sending, KEYS.sending)))
    anna.core._seal = seal_of(ANNA, RELAY, OTHER_KEYS)
    anna.move()
    anna.core.reopen(time.time())
    await until_ready(anna)
    anna.send(DATA)
    assert await bert.receive() == [DATA]


async def test_it_says_how_it_forwards(relay: Relay) -> None:
    anna, _ = await pair(relay)
    anna.send(DATA + bytes(96))
    await until(lambda: sum(relay.describe()["pairs"][0]["sent_bytes"]) == 100)
    described = relay.describe()
    assert described["forwarding"] == "userspace"
    assert "switched off" in described["reason"]
    assert described["pairs"][0]["open"] == [True, True]


async def test_nothing_is_left_after_stop(relay: Relay) -> None:
    await pair(relay)
    await relay.stop()
    assert free(LIMITS.ports)
    with pytest.raises(EnvironmentFault):
        await relay.answer(ANNA.id, messages.encode(Allocate(CARL.id.ed25519)))


def test_a_taken_port_says_which() -> None:
    assert "23840" in PortTaken(23840, "in use").line()
