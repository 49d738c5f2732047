"""Peers that misbehave at every layer: none stops the node, hangs a caller or fills the memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import trio
from Crypto.Cipher import Salsa20

from agent.control import ControlPlane
from agent.control import host as control_host
from agent.control.bridge import Guest, TrioThread
from agent.control.frames import MAX_PAYLOAD_BYTES
from agent.control.setup import Setup
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

NETWORK_KEY = bytes(range(32))
KEYS = NetworkKeys.single(NETWORK_KEY)
GOOD, EVIL, CLIENT, NEWCOMER, NOBODY = (NodeKey(bytes([n]) * 32) for n in range(11, 16))
EVERYONE = [each.id for each in (GOOD, EVIL, CLIENT, NEWCOMER)]
SOON_S = 5.0
HANDSHAKE_LIMIT_S = 5.0
ECHO = "/test/echo/1"


def member(who: NodeKey, listen: list[str]) -> ControlPlane:
    plane = ControlPlane(who, KEYS, listen)
    plane.set_members(EVERYONE)
    return plane


class EvilPlane(ControlPlane):
    """A member of the mesh: what it says on a stream is up to `reply` and `raw`."""

    reply = b""

    async def _answer(self, protocol: str, peer: str, request: bytes) -> bytes:
        return self.reply

    async def raw(self, peer: NodeId, *chunks: bytes) -> bytes:
        """Write to a new stream of the connection to `peer`, negotiate nothing; what came back."""
        answer = await self._bridge.call("raw", str(peer), *chunks, timeout_s=SOON_S)
        assert isinstance(answer, bytes)
        return answer

    async def frame(self, peer: NodeId, frame: bytes) -> None:
        """Write bytes in place of a yamux frame."""
        await self._bridge.call("frame", str(peer), frame, timeout_s=SOON_S)

    async def oversized(self, peer: NodeId) -> bytes:
        """Send a request that is one byte too long."""
        answer = await self._bridge.call(
            "request", str(peer), ECHO, bytes(MAX_PAYLOAD_BYTES + 1), SOON_S, timeout_s=SOON_S
        )
        assert isinstance(answer, bytes)
        return answer


def load_evil(bridge: TrioThread, *, made_with: Setup) -> Guest:
    from agent.control.node import Node

    class EvilNode(Node):
        def link(self, peer: str) -> Any:
            link = self._links.kept(NodeId.parse(peer))
            assert link is not None
            return link.connection

        async def raw(self, peer: str, *chunks: bytes) -> bytes:
            stream = await self.link(peer).new_stream()
            got = b""
            with contextlib.suppress(Exception), trio.move_on_after(0.5):
                for chunk in chunks:
                    await stream.write(chunk)
                while True:
                    got += await stream.read(65536)
            return got

        async def frame(self, peer: str, frame: bytes) -> None:
            await self.link(peer).muxed_conn.secured_conn.write(frame)

    node = EvilNode(bridge, made_with)
    node.commands = {**node.commands, "raw": node.raw, "frame": node.frame}
    return node


async def echo(peer: NodeId, request: bytes) -> bytes:
    return request


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def good() -> AsyncIterator[ControlPlane]:
    plane = member(GOOD, ["127.0.0.1:0"])
    plane.serve(ECHO, echo)
    await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def evil() -> AsyncIterator[EvilPlane]:
    plane = EvilPlane(EVIL, KEYS, ["127.0.0.1:0"])
    plane.set_members(EVERYONE)
    plane.serve(ECHO, echo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_host, "_load", load_evil)
        await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[ControlPlane]:
    plane = member(CLIENT, [])
    await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def connected(
    good: ControlPlane, evil: EvilPlane, client: ControlPlane
) -> AsyncIterator[EvilPlane]:
    """The evil node with a connection to the good one, which must be unharmed afterwards."""
    evil.reply = b"\0\0\0\1\0"
    assert await evil.request(GOOD.id, good.addresses, ECHO, b"1", timeout_s=SOON_S) == b"1"
    yield evil
    assert await client.request(GOOD.id, good.addresses, ECHO, b"2", timeout_s=SOON_S) == b"2"
    assert good.running


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (b"\x00\x40\x00\x02", "a frame of 4194306 bytes"),
        (b"\0\0\0\1\7", "neither an answer nor an error"),
        (b"\0\0\0\0", "neither an answer nor an error"),
        (b"\0\0\0\3\1ab", "an error that cannot be read"),
        (b"\0\0\0\2\0", "did not answer"),
    ],
)
async def test_nonsense_for_an_answer(
    good: ControlPlane, connected: EvilPlane, reply: bytes, said: str
) -> None:
    connected.reply = reply
    with pytest.raises(PeerError) as caught:
        await good.request(EVIL.id, [], ECHO, b"", timeout_s=0.3)
    assert said in caught.value.message
    assert "\n" not in caught.value.line()


async def test_a_request_one_byte_too_long(connected: EvilPlane) -> None:
    with pytest.raises(PeerError, match="the connection broke"):
        await connected.oversized(GOOD.id)


@pytest.mark.parametrize(
    "chunks",
    [
        (b"\x13/multistream/1.0.0\n\x03\xff\xfe\n",),  # not UTF-8: libp2p's own host dies of it
        (b"\xff" * 20,),
        (b"\x80\x80\x80\x80\x08" + bytes(8000),),  # announces 2 GiB
        (b"\x13/multistream/1.0.0\n" + b"\x03na\n" * 2000,),
        (b"\x13/multistream/1.0.0\n\x0d" + ECHO.encode() + b"\n\xff\xff\xff\xff",),
        (b"\x13/multistream/1.0.0\n\x0d" + ECHO.encode() + b"\n\0\0\0\1xmore",),
        (b"\0" * 100,),
    ],
)
async def test_nonsense_on_a_stream(connected: EvilPlane, chunks: tuple[bytes, ...]) -> None:
    answer = await connected.raw(GOOD.id, *chunks)
    assert len(answer) < 10_000


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff" * 12,
        struct.pack("!BBHII", 0, 0, 0, 1, 2**32 - 1),  # 4 GiB of data
        struct.pack("!BBHII", 0, 9, 0, 0, 0),  # no such type
        struct.pack("!BBHII", 0, 0, 1, 99, 4) + b"data",  # data with SYN
        struct.pack("!BBHII", 0, 1, 9, 101, 0),  # SYN and RST at once
        struct.pack("!BBHII", 0, 3, 0, 0, 77),  # goodbye, unknown reason
    ],
)
async def test_nonsense_in_yamux(connected: EvilPlane, frame: bytes) -> None:
    await connected.frame(GOOD.id, frame)


async def test_unread_data_beyond_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.control import swarm

    monkeypatch.setattr(swarm, "UNREAD_BYTES", 100_000)
    buffers = swarm._Buffers(lambda: 0)
    for stream in (1, 3):
        buffers[stream] = bytearray()
        buffers[stream].extend(bytes(50_000))
    with pytest.raises(Exception, match="ignores the receive window"):
        buffers[1].extend(b"x")
    assert [len(each) for each in buffers.values()] == [50_000, 50_000]
    del buffers[1][:10_000]  # read by somebody
    buffers[3].extend(bytes(10_000))
    assert len(buffers[3]) == 60_000


async def test_a_stream_that_has_ended_leaves_no_event_behind() -> None:
    from agent.control.swarm import _Events

    streams: dict[int, str] = {1: "open"}
    events = _Events(streams)
    for number in (1, 3):
        events[number] = trio.Event()
    assert list(events) == [1]


async def test_too_many_streams_and_requests_at_once(
    good: ControlPlane, connected: EvilPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.control import answers

    monkeypatch.setattr(answers, "MAX_STREAMS_PER_CONNECTION", 13)  # one is gossip's
    monkeypatch.setattr(answers, "MAX_REQUESTS", 4)
    gate = asyncio.Event()
    waiting = 0

    async def wait(peer: NodeId, request: bytes) -> bytes:
        nonlocal waiting
        waiting += 1
        await gate.wait()
        return b"done"

    good.serve("/test/wait/1", wait)
    tasks = [
        asyncio.create_task(
            connected.request(GOOD.id, good.addresses, "/test/wait/1", b"", timeout_s=SOON_S)
        )
        for _ in range(16)
    ]
    refused = 0
    while refused < 12:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=SOON_S)
        refused = len(tasks) - len(pending)
        await asyncio.sleep(0.001)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results.count(b"done") == waiting == 4
    errors = [str(each) for each in results if isinstance(each, PeerError)]
    assert len(errors) == 12
    assert {each.partition(" (")[0] for each in errors} == {
        "the node is busy",
        "the node takes no more requests from here now",
    }
    assert await connected.connections() == 1


@contextlib.asynccontextmanager
async def speaker(words: bytes, *, hang_up: bool) -> AsyncIterator[str]:
    """A port that says `words` to whoever connects."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(words)
            await writer.drain()
            if not hang_up:
                await reader.read()
        writer.close()

    listener = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with listener:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 200_000])
@pytest.mark.parametrize("hang_up", [True, False])
async def test_a_port_that_speaks_something_else(
    good: ControlPlane, words: bytes, hang_up: bool
) -> None:
    async with speaker(words, hang_up=hang_up) as address:
        with pytest.raises(PeerError) as caught:
            await good.request(NOBODY.id, [address], ECHO, b"", timeout_s=0.2)
    assert address in caught.value.message
    assert "same mesh" in caught.value.hint


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1_000_000])
async def test_a_stranger_at_the_door(
    connected: EvilPlane, good: ControlPlane, words: bytes
) -> None:
    """The fixture checks that the node still answers members."""
    host, _, port = good.addresses[0].rpartition(":")
    with socket.create_connection((host, int(port))) as door, contextlib.suppress(OSError):
        door.settimeout(SOON_S)
        await asyncio.to_thread(door.sendall, words)


async def test_a_long_word_before_the_handshake_is_not_collected(
    good: ControlPlane, connected: EvilPlane
) -> None:
    """Whoever has the network key can announce 2 GiB before it has said who it is."""
    from agent.control.preamble import GREETING, make_nonce

    nonce = make_nonce(NETWORK_KEY, GOOD.id.ed25519, time.time(), b"1234")
    cipher = Salsa20.new(key=NETWORK_KEY, nonce=nonce)
    words = nonce + cipher.encrypt(GREETING + b"\x80\x80\x80\x80\x08" + bytes(100_000))
    host, _, port = good.addresses[0].rpartition(":")
    with socket.create_connection((host, int(port))) as door:
        door.settimeout(HANDSHAKE_LIMIT_S / 2)  # it must not be this limit that ends it
        with contextlib.suppress(ConnectionError):
            await asyncio.to_thread(door.sendall, words)
            while await asyncio.to_thread(door.recv, 1000):
                pass


async def test_callers_who_wait_at_the_door_are_bounded(
    good: ControlPlane, connected: EvilPlane
) -> None:
    """At most MAX_CALLERS wait; the oldest are dropped, and a member still gets in."""
    from agent.control import gate

    host, _, port = good.addresses[0].rpartition(":")
    doors = [socket.create_connection((host, int(port))) for _ in range(gate.MAX_CALLERS + 1)]
    try:
        doors[0].settimeout(SOON_S)
        assert await asyncio.to_thread(doors[0].recv, 1) == b""
        newcomer = member(NEWCOMER, [])
        await newcomer.start()
        answer = await newcomer.request(GOOD.id, good.addresses, ECHO, b"in", timeout_s=SOON_S)
        assert answer == b"in"
        await newcomer.stop()
    finally:
        for door in doors:
            door.close()
