"""The three ports hold one contract; what only the raw and the plain one do stands below."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from agent.errors import EnvironmentFault
from agent.probing import sockets
from agent.probing.plainport import PlainPort
from agent.probing.port import DATAGRAM_MAX, MAGIC, FakeNetwork, FakePort, Place, Port, Sent
from agent.probing.rawport import RawPort

LOOPBACKS = ["127.0.0.1", "::1"]
Heard = list[tuple[Place, bytes, str]]


def may_share_ports() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP).close()
    except PermissionError:
        return False
    return True


needs_raw = pytest.mark.skipif(not may_share_ports(), reason="needs CAP_NET_RAW")


@contextmanager
def wireguard(*hosts: str) -> Iterator[tuple[int, list[socket.socket]]]:
    """Sockets that hold one UDP port, as WireGuard does."""
    with ExitStack() as stack:
        port, held = 0, []
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((host, port))
            sock.setblocking(False)
            port = sock.getsockname()[1]
            held.append(sock)
        yield port, held


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.002)


class Pair:
    """Two open ports at one loopback address, and what they heard."""

    def __init__(self, ports: tuple[Port, Port], host: str) -> None:
        self.ports = ports
        self.heard: tuple[Heard, Heard] = ([], [])
        self.places = [(host, 0), (host, 0)]
        for number, port in enumerate(ports):
            port.open(lambda *said, to=self.heard[number]: to.append(said))
            self.places[number] = (host, port.port)


@pytest.fixture(
    params=["fake", "plain", pytest.param("raw", marks=needs_raw)],
)
async def pair(request: pytest.FixtureRequest, host: str) -> AsyncIterator[Pair]:
    with ExitStack() as stack:
        ports: tuple[Port, Port]
        if request.param == "fake":
            network = FakeNetwork(later=asyncio.get_running_loop().call_soon)
            ports = FakePort(network, host, 51820), FakePort(network, host, 51821)
        elif request.param == "plain":
            ports = PlainPort(0), PlainPort(0)
        else:
            held = [stack.enter_context(wireguard(host))[0] for _ in range(2)]
            ports = RawPort(held[0]), RawPort(held[1])
        made = Pair(ports, host)
        yield made
        for port in ports:
            port.close()
            port.close()


@pytest.fixture(params=LOOPBACKS)
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_datagram_comes_with_its_place_and_our_address(pair: Pair, host: str) -> None:
    payload = MAGIC + bytes(range(256))
    assert pair.ports[0].send(pair.places[1], payload) is Sent.SENT
    await until(lambda: pair.heard[1])
    assert pair.heard[1] == [(pair.places[0], payload, host)]
    # And back to where it came from, from the address that it came to.
    place, _, local = pair.heard[1][0]
    assert pair.ports[1].send(place, MAGIC, local=local, whole=True) is Sent.SENT
    await until(lambda: pair.heard[0])
    assert pair.heard[0] == [(pair.places[1], MAGIC, host)]
    assert len(pair.heard[1]) == 1


async def test_what_is_not_ours_is_not_heard(pair: Pair) -> None:
    for payload in (b"", b"CVY", b"CVY\x02 other", b"\x01\x00\x00\x00 WireGuard"):
        pair.ports[0].send(pair.places[1], payload)
    pair.ports[0].send(pair.places[1], MAGIC + b"last")
    await until(lambda: pair.heard[1])
    assert [said[1] for said in pair.heard[1]] == [MAGIC + b"last"]


async def test_a_closed_port_neither_hears_nor_sends(pair: Pair) -> None:
    pair.ports[1].close()
    pair.ports[0].send(pair.places[1], MAGIC)
    assert pair.ports[1].send(pair.places[0], MAGIC) is Sent.NO_ROUTE
    await asyncio.sleep(0.02)
    assert pair.heard == ([], [])


async def test_a_foreign_source_address_is_an_outcome(pair: Pair, host: str) -> None:
    foreign = "2001:db8::1" if ":" in host else "192.0.2.1"
    assert pair.ports[0].send(pair.places[1], MAGIC, local=foreign) is Sent.NO_ROUTE


@pytest.mark.parametrize("kind", [PlainPort, pytest.param(RawPort, marks=needs_raw)])
@pytest.mark.parametrize("place", [("host", 1), ("127.0.0.1", 0), ("::1", 65536), ("1.2.3", 5)])
async def test_what_is_no_place_is_refused(kind: type[Port], place: Place) -> None:
    with wireguard("127.0.0.1") as (port, _):
        opened = kind(0 if kind is PlainPort else port)  # type: ignore[call-arg]
        opened.open(lambda *_: None)
        try:
            with pytest.raises(ValueError, match="not a"):
                opened.send(place, MAGIC)
        finally:
            opened.close()


@pytest.mark.parametrize("kind", [PlainPort, pytest.param(RawPort, marks=needs_raw)])
async def test_opened_twice_is_a_mistake_and_a_wrong_number_too(kind: type[RawPort]) -> None:
    with wireguard("127.0.0.1") as (port, _):
        opened = kind(port if kind is RawPort else 0)
        opened.open(lambda *_: None)
        with pytest.raises(ValueError, match="already"):
            opened.open(lambda *_: None)
        opened.close()
    for number in (-1, 65536):
        with pytest.raises(ValueError, match="not a UDP port"):
            kind(number)


@pytest.mark.parametrize("kind", [PlainPort, pytest.param(RawPort, marks=needs_raw)])
async def test_close_leaves_no_descriptor(kind: type[RawPort]) -> None:
    with wireguard("127.0.0.1") as (port, _):
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            opened = kind(port if kind is RawPort else 0)
            opened.open(lambda *_: None)
            opened.send(("127.0.0.1", port), MAGIC)
            assert set(os.listdir("/proc/self/fd")) > before
            opened.close()
        assert set(os.listdir("/proc/self/fd")) == before


@needs_raw
async def test_wireguard_hears_its_own_and_the_raw_port_only_ours(host: str) -> None:
    heard: Heard = []
    with wireguard(host) as (port, [held]), socket.socket(held.family, socket.SOCK_DGRAM) as peer:
        raw = RawPort(port)
        raw.open(lambda *said: heard.append(said))
        try:
            peer.bind((host, 0))
            for payload in (b"\x01\0\0\0 initiation", MAGIC + b"probe", b"\x04\0\0\0 data"):
                peer.sendto(payload, (host, port))
            await until(lambda: heard)
            assert [(place, said) for place, said, _ in heard] == [
                (peer.getsockname()[:2], MAGIC + b"probe")
            ]
            # It is a copy: WireGuard gets all three, and drops the middle one itself.
            assert [held.recv(100)[:4] for _ in range(3)] == [b"\x01\0\0\0", MAGIC, b"\x04\0\0\0"]
            # And what we send comes from WireGuard's port, with a checksum that its kernel takes.
            assert raw.send(peer.getsockname()[:2], MAGIC + b"odd", whole=False) is Sent.SENT
            peer.settimeout(5)
            payload, sender = peer.recvfrom(100)
            assert (payload, sender[1]) == (MAGIC + b"odd", port)
        finally:
            raw.close()


@needs_raw
async def test_what_was_queued_before_the_filter_is_never_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the socket's making and its filter everything queues; here it is made to happen."""
    heard: Heard = []
    original, drained = sockets.attach, []
    with wireguard("127.0.0.1") as (port, _), socket.socket(type=socket.SOCK_DGRAM) as peer:

        def attach_late(sock: socket.socket, program: object) -> None:
            if sock.family == socket.AF_INET and not drained:
                peer.sendto(MAGIC + b"early", ("127.0.0.1", port))
                assert MAGIC + b"early" in sock.recv(2000, socket.MSG_PEEK)
                drained.append(sock)
            original(sock, program)  # type: ignore[arg-type]

        monkeypatch.setattr(sockets, "attach", attach_late)
        raw = RawPort(port)
        raw.open(lambda *said: heard.append(said))
        peer.sendto(MAGIC + b"late", ("127.0.0.1", port))
        await until(lambda: heard)
        raw.close()
    assert [payload for _, payload, _ in heard] == [MAGIC + b"late"]


async def test_what_nobody_would_hear_is_too_big(pair: Pair) -> None:
    for size in (DATAGRAM_MAX + 1, 65508, 70000):
        assert pair.ports[0].send(pair.places[1], bytes(size)) is Sent.TOO_BIG
    largest = MAGIC + bytes(DATAGRAM_MAX - len(MAGIC))
    assert pair.ports[0].send(pair.places[1], largest) is Sent.SENT
    await until(lambda: pair.heard[1])
    assert pair.heard[1][0][1] == largest


@needs_raw
async def test_a_callback_that_fails_does_not_end_the_hearing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = []

    def fails(place: Place, payload: bytes, local: str) -> None:
        heard.append(payload)
        raise RuntimeError("no")

    with wireguard("127.0.0.1") as (port, _), socket.socket(type=socket.SOCK_DGRAM) as peer:
        raw = RawPort(port)
        raw.open(fails)
        peer.sendto(MAGIC, ("127.0.0.1", port))
        peer.sendto(MAGIC, ("127.0.0.1", port))
        await until(lambda: len(heard) == 2)
        raw.close()
    assert caplog.text.count("taking in a datagram from 127.0.0.1 failed") == 2


@needs_raw
async def test_a_flood_does_not_keep_the_loop() -> None:
    """Other work gets its turn after each batch, however much is queued."""
    turns: list[int] = []
    heard: Heard = []
    with wireguard("127.0.0.1") as (port, _), socket.socket(type=socket.SOCK_DGRAM) as peer:
        raw = RawPort(port)
        raw.open(lambda *said: heard.append(said))
        count = 3 * sockets.BATCH // 2
        for _ in range(count):
            peer.sendto(MAGIC, ("127.0.0.1", port))
        while len(heard) < count:
            before = len(heard)
            await asyncio.sleep(0)
            turns.append(len(heard) - before)
        raw.close()
    assert max(turns) == sockets.BATCH


@needs_raw
async def test_crooked_lengths_are_ignored() -> None:
    """A UDP length other than the packet's: sent by a raw socket, as the kernel writes none."""
    heard: Heard = []
    with wireguard(*LOOPBACKS) as (port, _):
        raw = RawPort(port)
        raw.open(lambda *said: heard.append(said))
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP) as crooked:
                if family == socket.AF_INET6:
                    crooked.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, 6)
                for length in (0, 8, 11, 13, 40000):
                    head = struct.pack("!HHHH", 4000, port, length, 0)
                    crooked.sendto(head + MAGIC, (host, 0))
                crooked.sendto(struct.pack("!HHHH", 0, port, 12, 0) + MAGIC, (host, 0))
                crooked.sendto(struct.pack("!HHHH", 4000, port, 15, 0) + MAGIC + b"end", (host, 0))
            await until(lambda: heard)
            assert [(place, payload) for place, payload, _ in heard] == [
                ((host, 4000), MAGIC + b"end")
            ]
            heard.clear()
        raw.close()


def test_without_the_capability_it_says_what_is_missing() -> None:
    """In a thread of its own: capabilities are a thread's, and this one gives them up."""
    faults: list[EnvironmentFault] = []

    def without() -> None:
        drop_net_raw()

        async def opened() -> None:
            descriptors = len(os.listdir("/proc/self/fd"))
            with pytest.raises(EnvironmentFault) as caught:
                RawPort(51820).open(lambda *_: None)
            faults.append(caught.value)
            assert len(os.listdir("/proc/self/fd")) == descriptors

        asyncio.run(opened())

    thread = threading.Thread(target=without)
    thread.start()
    thread.join()
    assert [fault.line() for fault in faults] == [
        "cannot share UDP port 51820 with WireGuard: this needs CAP_NET_RAW. Run the agent as"
        " root, or give its service AmbientCapabilities=CAP_NET_RAW, or its container"
        " `--cap-add NET_RAW`."
    ]


def drop_net_raw() -> None:
    """Take CAP_NET_RAW (13) from the calling thread."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    head = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(head, data) == 0
    words = list(struct.unpack("6I", data.raw))
    words[:3] = [word & ~(1 << 13) for word in words[:3]]
    assert libc.capset(head, struct.pack("6I", *words)) == 0


async def test_a_taken_port_is_named() -> None:
    first, second = PlainPort(0), PlainPort(0)
    first.open(lambda *_: None)
    taken = PlainPort(first.port)
    with pytest.raises(EnvironmentFault, match=f"UDP port {first.port} is in use"):
        taken.open(lambda *_: None)
    number = first.port
    first.close()
    assert first.port == 0
    taken.open(lambda *_: None)  # it is free at once, as WireGuard needs it
    assert taken.port == number
    taken.close()
    second.close()


async def test_a_fake_network_loses_and_refuses_what_it_is_told_to() -> None:
    heard: Heard = []
    network = FakeNetwork(mtu=1280, lossy=lambda _, to, payload: payload.endswith(b"lost"))
    a, b = FakePort(network, "192.0.2.1", 1), FakePort(network, "2001:db8::1", 2)
    a.open(lambda *_: None)
    b.open(lambda *said: heard.append(said))
    assert a.send(("2001:DB8::1", 2), MAGIC + b"lost") is Sent.SENT
    assert a.send(("2001:db8::1", 2), MAGIC + bytes(1229), whole=True) is Sent.TOO_BIG
    assert heard == []
    assert a.send(("2001:db8::1", 2), MAGIC + bytes(1228), whole=True) is Sent.SENT
    assert len(heard) == 1
    with pytest.raises(ValueError, match="open already"):
        FakePort(network, "192.0.2.1", 1).open(lambda *_: None)
