"""Who has no network key gets not one byte, whatever it sends; members change keys and go on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from Crypto.Cipher import Salsa20

from agent.control import ControlPlane
from agent.control.preamble import GREETING, make_nonce
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

OLD, NEW, FOREIGN = (bytes([n]) * 32 for n in (1, 2, 3))
NODES = [NodeKey(bytes([n]) * 32) for n in range(31, 35)]
ECHO = "/test/echo/1"
SOON_S = 5.0
# An answer on loopback comes within a millisecond.
ANSWER_S = 0.15


async def echo(peer: NodeId, request: bytes) -> bytes:
    return request


def plane(number: int, keys: NetworkKeys | None = None) -> ControlPlane:
    made = ControlPlane(NODES[number], keys or NetworkKeys.single(OLD), ["127.0.0.1:0"])
    made.serve(ECHO, echo)
    made.set_members(each.id for each in NODES)
    return made


@contextlib.asynccontextmanager
async def running(*planes: ControlPlane) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for each in planes:
            await each.start()
            stack.push_async_callback(each.stop)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door() -> AsyncIterator[ControlPlane]:
    made = plane(0)
    async with running(made):
        yield made


async def knock(plane: ControlPlane, words: bytes, *, then_eof: bool = False) -> bytes:
    """Return what comes back on a connection on which `words` were sent."""
    host, _, port = plane.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(words)
        if then_eof:
            writer.write_eof()
        got = b""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(ANSWER_S):
                while data := await reader.read(4096):
                    got += data
        return got
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)  # it closes in the loop's next turn


def call(key: bytes, called: bytes, wall: float) -> bytes:
    nonce = make_nonce(key, called, wall, b"rand")
    return nonce + Salsa20.new(key=key, nonce=nonce).encrypt(GREETING + b"\x07/noise\n")


async def test_the_right_call_is_answered(door: ControlPlane) -> None:
    """Without this the other tests would say nothing."""
    assert await knock(door, call(OLD, NODES[0].id.ed25519, time.time()))


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        GREETING + b"\x07/noise\n",  # libp2p without a private network
        bytes(28),
        b"\x16\x03\x01" + bytes(200),
    ],
)
@pytest.mark.parametrize("then_eof", [False, True])
async def test_other_words_get_no_byte(door: ControlPlane, words: bytes, then_eof: bool) -> None:
    assert await knock(door, words, then_eof=then_eof) == b""


async def test_random_bytes_get_no_byte(door: ControlPlane) -> None:
    chance = random.Random(7)
    calls = [knock(door, chance.randbytes(chance.randrange(1, 300))) for _ in range(30)]
    assert b"".join(await asyncio.gather(*calls)) == b""


async def test_another_meshs_key_an_old_call_and_a_call_to_another_get_no_byte(
    door: ControlPlane,
) -> None:
    own, now = NODES[0].id.ed25519, time.time()
    for words in (
        call(FOREIGN, own, now),
        call(OLD, own, now - 3600),
        call(OLD, own, now + 3600),
        call(OLD, NODES[1].id.ed25519, now),
    ):
        assert await knock(door, words) == b""


class Tap:
    """A relay in front of a node that records what the caller says."""

    def __init__(self, to: str) -> None:
        self._to = to.rsplit(":", 1)
        self.heard: list[bytearray] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Tap:
        self._listener = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = bytearray()
        self.heard.append(heard)
        far_reader, far_writer = await asyncio.open_connection(self._to[0], int(self._to[1]))
        for source, sink, record in ((reader, far_writer, heard), (far_reader, writer, None)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink, record)))

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: bytearray | None
    ) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if record is not None:
                        record += data
                    sink.write(data)
        finally:
            sink.transport.abort()


async def test_a_recorded_handshake_gets_no_byte_here_and_none_elsewhere(
    door: ControlPlane,
) -> None:
    caller, other = plane(1), plane(2)
    async with Tap(door.addresses[0]) as tap, running(caller, other):
        where = [tap.address]
        assert await caller.request(NODES[0].id, where, ECHO, b"x", timeout_s=SOON_S) == b"x"
        recorded = bytes(tap.heard[0])
        assert len(recorded) > 300
        for target in (door, other):
            for words in (recorded, recorded[:28], recorded[:100]):
                assert await knock(target, words) == b""


async def test_what_is_wrong_is_left_waiting_like_what_is_silent(door: ControlPlane) -> None:
    """Closing at once would tell a prober that its 28 bytes had been judged."""
    host, _, port = door.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(bytes(100))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            await reader.read(1)
    writer.transport.abort()
    await asyncio.sleep(0)


async def test_a_new_key_is_taken_while_running(door: ControlPlane) -> None:
    """Sending stays with the old one until all have the new one; nobody is cut off."""
    both_old_first = NetworkKeys(OLD, (NEW, OLD))
    both_new_first = NetworkKeys(NEW, (NEW, OLD))
    late, ready = plane(1), plane(2, both_old_first)
    async with running(late, ready):

        async def ask(who: ControlPlane, to: ControlPlane, number: int) -> bytes:
            return await who.request(
                NODES[number].id, to.addresses, ECHO, b"x", timeout_s=SOON_S
            )  # fmt: skip

        # The new key sends; the late one does not know it yet and is reached with the old one.
        ready.set_network_keys(both_new_first)
        assert await ask(ready, late, 1) == b"x"
        newcomer = plane(3, NetworkKeys.single(NEW))
        async with running(newcomer):
            assert await ask(newcomer, ready, 2) == b"x"
            assert await knock(late, call(NEW, NODES[1].id.ed25519, time.time())) == b""
            late.set_network_keys(both_new_first)
            assert await ask(newcomer, late, 1) == b"x"
        # The old one is retired: whoever has only that gets nothing.
        ready.set_network_keys(NetworkKeys.single(NEW))
        await ready.links()
        assert await knock(ready, call(OLD, NODES[2].id.ed25519, time.time())) == b""
        assert await knock(ready, call(NEW, NODES[2].id.ed25519, time.time()))
        straggler = plane(3)
        async with running(straggler):
            with pytest.raises(PeerError, match="did not answer within"):
                await straggler.request(NODES[2].id, ready.addresses, ECHO, b"", timeout_s=0.5)
        # What was open when the key was retired goes on.
        assert await ask(ready, late, 1) == b"x"
