"""Beacons and newcomers on the loopback interface, on a port of their own: real multicast."""

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import EnvironmentFault
from agent.identity.keys import NodeKey
from agent.lan import beacon as beacons
from agent.lan import dns, watch
from agent.lan.beacon import LanBeacon
from agent.lan.interfaces import lan_interfaces
from agent.lan.newcomer import find
from agent.lan.peers import LanPeer, Refusal
from agent.membership.networkkeys import NetworkKeys

A, B, C = (NodeKey(bytes([n]) * 32) for n in (1, 2, 3))
LO = ["lo"]
OLD, NEW = NetworkKeys.single(b"o" * 32), NetworkKeys.single(b"n" * 32)
Start = Callable[..., Awaitable["Node"]]


class Node:
    """A beacon and what it was told."""

    def __init__(self, key: NodeKey, mesh: bytes, **over: Any) -> None:
        self.found: list[LanPeer] = []
        self.faults: list[EnvironmentFault | None] = []
        self.news = asyncio.Event()
        options = {"network_keys": OLD, "interfaces": LO, "found": self.on_found} | over
        self.beacon = LanBeacon(
            key, mesh, options.pop("network_keys"), control_port=4000, discovery_port=4001,
            wireguard_port=51820, on_fault=self.on_fault, **options,
        )  # fmt: skip

    def on_found(self, peer: LanPeer) -> None:
        self.found.append(peer)
        self.news.set()

    def on_fault(self, fault: EnvironmentFault | None) -> None:
        self.faults.append(fault)
        self.news.set()

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not what():
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self.news.wait()


@pytest.fixture(autouse=True)
def escaped(event_loop_faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return event_loop_faults


@pytest.fixture
async def event_loop_faults() -> AsyncIterator[list[dict[str, Any]]]:
    """Whatever gets into the loop's exception handler fails the test."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    yield faults
    assert faults == []


@pytest.fixture(autouse=True)
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port that no other test and no mDNS program of this machine uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        number = int(free.getsockname()[1])
    monkeypatch.setattr(dns, "PORT", number)
    return number


@pytest.fixture
async def start(escaped: Any) -> AsyncIterator[Start]:
    nodes: list[Node] = []
    mesh = secrets.token_bytes(32)

    async def begin(key: NodeKey, mesh_id: bytes = mesh, **over: Any) -> Node:
        node = Node(key, mesh_id, **over)
        nodes.append(node)
        await node.beacon.start()
        return node

    begin.mesh = mesh  # type: ignore[attr-defined]
    yield begin
    for node in nodes:
        await node.beacon.stop()


def outsider(port: int, source: int = 0) -> socket.socket:
    """A socket of someone on the LAN; `source` 0 is any port, else the mDNS port itself."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    lo, index = socket.inet_aton("127.0.0.1"), socket.if_nametoindex("lo")
    sock.setsockopt(
        socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), lo, index)
    )
    sock.setblocking(False)
    if source:
        sock.bind((dns.GROUP_IPV4, source))
        group = struct.pack("=4s4si", socket.inet_aton(dns.GROUP_IPV4), lo, index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    else:
        sock.bind(("127.0.0.1", 0))
    return sock


async def receive(sock: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(sock, 65536)


def nodes(peers: list[LanPeer]) -> set[Any]:
    return {peer.node for peer in peers}


async def test_members_find_each_other_and_tell_where_they_are(start: Start) -> None:
    a = await start(A)
    b = await start(B)
    c = await start(C)
    for one, others in ((a, {B.id, C.id}), (b, {A.id, C.id}), (c, {A.id, B.id})):
        await one.until(lambda one=one, others=others: nodes(one.found) == others)
        assert nodes(one.beacon.peers()) == others
        assert one.beacon.fault is None
    (peer,) = [peer for peer in b.found if peer.node == A.id]
    assert peer.addresses[0] == "127.0.0.1"
    assert (peer.control_port, peer.discovery_port, peer.wireguard_port) == (4000, 4001, 51820)
    assert abs(peer.seen_at - time.time()) < 60


async def test_another_mesh_stays_unknown_and_is_only_counted(start: Start) -> None:
    a = await start(A)
    foreign = await start(B, secrets.token_bytes(32))
    await a.until(lambda: a.beacon.refusals[Refusal.FOREIGN] > 0)
    await foreign.until(lambda: foreign.beacon.refusals[Refusal.FOREIGN] > 0)
    assert a.found == foreign.found == []


async def test_who_stops_is_gone_at_once(start: Start) -> None:
    a, b = await start(A), await start(B)
    await a.until(lambda: bool(a.found))
    await b.beacon.stop()
    await a.until(lambda: a.beacon.peers() == [])
    assert a.beacon.refusals[Refusal.UNPROVEN] == 0


async def test_a_restarted_node_is_found_again(start: Start) -> None:
    a, b = await start(A), await start(B)
    await a.until(lambda: bool(a.found))
    await b.beacon.stop()
    await b.beacon.stop()
    await b.beacon.start()
    await a.until(lambda: len(a.found) == 2)
    await b.until(lambda: len(b.found) >= 1)


async def test_a_key_change_reaches_those_that_accept_the_new_key(start: Start) -> None:
    a, b = await start(A), await start(B, network_keys=NEW)
    await a.until(lambda: a.beacon.refusals[Refusal.FOREIGN] > 0)
    both = NetworkKeys(OLD.sending, (NEW.sending, OLD.sending))
    a.beacon.set_network_keys(both)
    await a.until(lambda: bool(a.found))
    assert b.found == []
    a.beacon.set_network_keys(NetworkKeys(NEW.sending, both.accepting))
    await b.until(lambda: bool(b.found))


async def test_keys_can_be_set_before_the_start(start: Start) -> None:
    a = await start(A, network_keys=NEW)
    b = Node(B, start.mesh)  # type: ignore[attr-defined]
    b.beacon.set_network_keys(NEW)
    await b.beacon.start()
    await a.until(lambda: bool(a.found))
    await b.beacon.stop()


async def test_a_newcomer_finds_members_and_says_nothing_itself(start: Start) -> None:
    a = await start(A)
    await start(B)
    seen = set()
    mesh = start.mesh  # type: ignore[attr-defined]
    async with contextlib.aclosing(
        find(mesh, OLD.sending, timeout_s=10, interfaces=LO)
    ) as searching:
        async for peer in searching:
            seen.add(peer.node)
            if seen == {A.id, B.id}:
                break
    assert seen == {A.id, B.id}
    assert nodes(a.found) <= {B.id}


async def test_a_newcomer_with_another_key_finds_nothing_until_its_time_is_over(
    start: Start,
) -> None:
    await start(A)
    mesh = start.mesh  # type: ignore[attr-defined]
    assert [p async for p in find(mesh, NEW.sending, timeout_s=0.3, interfaces=LO)] == []


async def test_a_newcomer_without_a_lan_is_told_so() -> None:
    with pytest.raises(EnvironmentFault, match="no network interface"):
        async for _ in find(bytes(32), bytes(32), timeout_s=0.05, interfaces=["nonesuch0"]):
            pytest.fail("there is nothing to find")


async def test_a_lan_that_comes_later_is_used(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await start(A)
    there = False
    monkeypatch.setattr(
        watch, "lan_interfaces", lambda *args: lan_interfaces(*args) if there else []
    )
    laptop = await start(B)
    assert [fault.message for fault in laptop.faults if fault] == [
        "no network interface here is up and takes multicast"
    ]
    assert laptop.beacon.fault is laptop.faults[0]
    there = True
    laptop.beacon._watch.look_again()
    await laptop.until(lambda: nodes(laptop.found) == {A.id})
    await a.until(lambda: nodes(a.found) == {B.id})
    assert laptop.faults[1:] == [None]
    there = False
    laptop.beacon._watch.look_again()
    await laptop.until(lambda: len(laptop.faults) == 3)
    assert laptop.beacon._watch.links == []


async def test_a_port_that_another_program_keeps_is_a_fault_that_passes(
    start: Start, port: int
) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as greedy:
        greedy.bind(("::", port))
        node = await start(A)
        assert node.beacon.fault is not None
        assert f"port {port}" in node.beacon.fault.message
        assert "in use" in node.beacon.fault.message
        assert "avahi" in node.beacon.fault.hint
    node.beacon._watch.look_again()
    await node.until(lambda: node.faults[-1] is None)


async def test_a_machine_without_a_listing_of_interfaces_is_a_fault(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(watch, "lan_interfaces", fail)
    node = await start(A)
    assert node.beacon.fault is not None
    assert "Cannot allocate memory" in node.beacon.fault.message


async def test_a_start_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    node, never = Node(A, bytes(32)), asyncio.Event()

    async def hang(*_: Any) -> None:
        await never.wait()

    monkeypatch.setattr(watch.asyncio, "to_thread", hang)
    starting = asyncio.create_task(node.beacon.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert node.beacon._watch._changes._events is None
    assert node.beacon._watch.links == []
    await node.beacon.stop()


async def test_what_a_callback_does_wrong_is_logged_and_stays_here(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: LanPeer) -> None:
        raise RuntimeError("of the callback")

    a = await start(A, found=fail)
    b = await start(B)
    await a.until(lambda: nodes(a.beacon.peers()) == {B.id})
    assert any("taking in the LAN peer" in record.message for record in caplog.records)
    await b.until(lambda: bool(b.found))


async def test_an_outsiders_question_gets_names_and_noise_alone(start: Start, port: int) -> None:
    await start(A)
    with outsider(port) as asking:
        asking.sendto(dns.question(0x1234), (dns.GROUP_IPV4, port))
        packet = await receive(asking)
    assert packet[:2] == b"\x12\x34"
    read = dns.read(packet)
    assert isinstance(read, dns.Answer)
    mesh = start.mesh  # type: ignore[attr-defined]
    # The sealed text comes last, cut into strings; two bytes come up in it by chance.
    bare = packet[: packet.index(read.texts[0][:200])]
    for secret in (A.id.ed25519, str(A.id).encode(), mesh, mesh.hex().encode(), OLD.sending,
                   A.id.wireguard_public, socket.gethostname().encode(), b"127.0.0.1",
                   socket.inet_aton("127.0.0.1"), (51820).to_bytes(2, "big")):  # fmt: skip
        assert secret not in (packet if len(secret) > 2 else bare)
    assert A.id.ed25519 not in packet


async def test_names_are_others_in_each_run(start: Start) -> None:
    one, other = await start(A), await start(A)
    assert one.beacon._names.instance != other.beacon._names.instance
    assert one.beacon._names.host != other.beacon._names.host


async def test_questions_for_other_instances_or_from_off_link_get_no_answer(
    start: Start, port: int
) -> None:
    node = await start(A)
    link = node.beacon._watch.links[0]
    sent: list[bytes] = []
    link.reply = lambda packet, to: sent.append(packet)  # type: ignore[method-assign]
    link.multicast = sent.append  # type: ignore[method-assign]
    link.answered_at = float("-inf")
    receive = node.beacon._watch._received
    receive(link, dns.question(), ("8.8.8.8", 40000))
    node.beacon._on_query(link, dns.Query(0, 16, False, b"another"), ("127.0.0.1", port))
    assert sent == []
    receive(link, dns.question(), ("127.0.0.1", 40000))
    assert len(sent) == 1


async def test_the_link_is_told_once_a_second_and_direct_answers_are_bounded(
    start: Start, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start(A)
    link = node.beacon._watch.links[0]
    monkeypatch.setattr(beacons.time, "monotonic", lambda: 1e9)
    multicast: list[bytes] = []
    replied: list[bytes] = []
    link.reply = lambda packet, to: replied.append(packet)  # type: ignore[method-assign]
    link.multicast = multicast.append  # type: ignore[method-assign]
    group, own = dns.Query(0, 12, False), dns.Query(0, 16, True, node.beacon._names.instance)
    for _ in range(1000):
        node.beacon._on_query(link, group, ("127.0.0.1", port))
        node.beacon._on_query(link, own, ("127.0.0.1", port))
        node.beacon._on_query(link, group, ("127.0.0.1", 40000))
    assert len(multicast) == 1
    assert len(replied) == beacons._REPLIES_BURST
    assert len({dns.read(packet) for packet in replied}) == 1  # sealed once, not 200 times


async def test_answers_are_sealed_anew_as_time_goes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start(A)
    link, now = node.beacon._watch.links[0], time.monotonic()
    first = node.beacon._answer_text(link, now)
    assert node.beacon._answer_text(link, now + 10) == first
    assert node.beacon._answer_text(link, now + beacons.RESEAL_S + 11) != first


async def test_a_replay_from_elsewhere_changes_nothing(start: Start, port: int) -> None:
    a, b = await start(A), await start(B)
    await a.until(lambda: bool(a.found))
    before = a.beacon.peers()
    with outsider(port) as asking, outsider(port, source=port) as replaying:
        asking.sendto(dns.question(), (dns.GROUP_IPV4, port))
        answers = [await receive(asking), await receive(asking)]
        old = a.beacon.refusals[Refusal.OLD]
        for packet in answers * 5:
            replaying.sendto(packet, (dns.GROUP_IPV4, port))
        await a.until(lambda: a.beacon.refusals[Refusal.OLD] > old)
    assert a.beacon.peers() == before
    assert len(a.found) == len(b.found) == 1


async def test_junk_and_thousands_of_services_leave_no_trace(
    start: Start, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    a = await start(A)
    b = await start(B)
    await a.until(lambda: bool(a.found))
    lines = len(caplog.records)
    with outsider(port, source=port) as sock:
        for number in range(3000):
            names = dns.Names(secrets.token_hex(8).encode(), b"host")
            text = secrets.token_bytes(296 if number % 2 else 40)
            packet = dns.answer(names, text, ttl_s=2**31 - 1)
            if number % 3 == 0:
                packet = packet[:100] + secrets.token_bytes(100)
            with contextlib.suppress(BlockingIOError):
                sock.sendto(packet, (dns.GROUP_IPV4, port))
            if number % 50 == 0:
                await asyncio.sleep(0)
    refused = a.beacon.refusals[Refusal.FOREIGN]
    assert 0 < refused <= watch.PACKETS_BURST + 60 * watch.PACKETS_PER_S
    assert nodes(a.beacon.peers()) == {B.id}
    assert len(a.beacon._watch.book._known) == len(b.beacon._watch.book._known) == 1
    assert len(caplog.records) - lines < 5


@settings(max_examples=100)
@given(st.data())
def test_no_packet_raises_into_the_loop(data: st.DataObject) -> None:
    """Cut, changed and made up; from the mDNS port and others, of link-local and other senders."""
    node = Node(A, bytes(32))
    (interface,) = lan_interfaces(only=LO)
    link: Any = SimpleNamespace(interface=interface, answered_at=0.0, multicast=len, reply=zip)
    text = data.draw(st.binary(max_size=300))
    packet = bytearray(
        data.draw(
            st.sampled_from([dns.question(), dns.answer(dns.Names(b"a", b"b"), text)])
            | st.binary(max_size=300).map(lambda junk: dns.question() + junk)
        )
    )
    for _ in range(data.draw(st.integers(0, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    sender = data.draw(
        st.tuples(st.sampled_from(["127.0.0.1", "fe80::1%lo", "::1", "8.8.8.8"]),
                  st.sampled_from([dns.PORT, 40000]))
    )  # fmt: skip
    node.beacon._watch._received(link, bytes(packet), sender)
    assert node.found == []


async def test_a_watch_that_fails_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = await start(A)

    def fail(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(watch, "lan_interfaces", fail)
    node.beacon._watch.look_again()
    await node.until(lambda: "watching the LAN has ended" in caplog.text)


async def test_a_wrong_clock_is_told_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    a = await start(A)
    ahead = await start(B, clock=lambda: time.time() + 3600.0)
    await a.until(lambda: a.beacon.refusals[Refusal.CLOCK] > 0)
    ahead.beacon._watch.begin_anew()
    await a.until(lambda: a.beacon.refusals[Refusal.CLOCK] > 1)
    lines = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert 1 <= len(lines) <= 2  # one for each of the two
    assert "clock" in lines[0].message


async def test_a_silent_peer_is_gone_from_the_list(start: Start) -> None:
    shift = 0.0
    a = await start(A, clock=lambda: time.time() + shift)
    b = await start(B)
    await a.until(lambda: bool(a.found))
    await b.until(lambda: bool(b.found))
    shift = 201.0
    assert a.beacon.peers() == []


async def test_stop_before_start_is_nothing() -> None:
    await Node(A, bytes(32)).beacon.stop()
