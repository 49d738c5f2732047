"""The tunnel over loopback: who gets in, what an outsider sees, what is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_ends import ANNA, BERT, CARL, DATA, KEYS, MESH, OTHER_KEYS, RELAY, End, until

from agent.errors import EnvironmentFault
from agent.identity.keys import NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.relay import messages, tunnel
from agent.relay.allocation import Limits
from agent.relay.hello import Hello
from agent.relay.messages import Allocate, Allocated, Release
from agent.relay.service import Relay, Settings
from agent.relay.tunnel import MAX_AGE_S, MAX_WAITING, Waiting, datagrams
from agent.relay.tunnelclient import TunnelClient
from agent.relay.tunnelserver import TunnelServer

LIMITS = Limits(ports=range(23880, 23890))


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    made = Relay(
        RELAY, MESH, KEYS, "relaytest1",
        Settings(LIMITS, kernel=False, tunnel_port=0, tunnel_host="127.0.0.1"),
    )  # fmt: skip
    made.set_members([ANNA.id, BERT.id, CARL.id, RELAY.id])
    await made.start()
    yield made
    await made.stop()


class Tunnelled:
    """An end whose WireGuard is a plain socket, and that reaches the relay by a tunnel."""

    def __init__(
        self,
        key: NodeKey,
        allocated: Allocated,
        *,
        relay: NodeKey = RELAY,
        keys: NetworkKeys = KEYS,
    ) -> None:
        assert allocated.tunnel_port is not None
        self.wireguard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.wireguard.setblocking(False)
        self.wireguard.bind(("127.0.0.1", 0))
        self.changes: list[str | None] = []
        self.client = TunnelClient(
            key, MESH, keys, relay.id, ("127.0.0.1", allocated.tunnel_port), allocated.id,
            self.wireguard.getsockname()[1], self.changes.append, random=Random(1),
        )  # fmt: skip
        self.task = asyncio.create_task(self.client.run())

    async def up(self, count: int = 1) -> None:
        await until(lambda: self.changes.count(None) == count)

    async def refused(self) -> str:
        await until(lambda: self.changes)
        assert self.changes[0] is not None
        return self.changes[0]

    def send(self, data: bytes) -> None:
        self.wireguard.sendto(data, self.client.endpoint)

    async def receive(self) -> bytes:
        async with asyncio.timeout(3):
            return await asyncio.get_running_loop().sock_recv(self.wireguard, 4096)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.wireguard.close()


async def allocated(relay: Relay, key: NodeKey, peer: NodeKey) -> Allocated:
    raw = await relay.answer(key.id, messages.encode(Allocate(peer.id.ed25519)))
    return messages.decode_answer(raw, Allocated)


@contextlib.asynccontextmanager
async def tunnelled(*arguments: object, **more: object) -> AsyncIterator[Tunnelled]:
    made = Tunnelled(*arguments, **more)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


async def test_one_side_by_a_tunnel_and_one_by_udp(relay: Relay) -> None:
    async with tunnelled(ANNA, await allocated(relay, ANNA, BERT)) as anna:
        await anna.up()
        bert = End(BERT, ANNA, relay)
        await bert.open()
        for data in (DATA, DATA + bytes(1300), b"CVY\x01 a probe"):
            anna.send(data)
            assert await bert.receive() == [data]
            bert.send(data)
            assert await anna.receive() == data
    await until(lambda: relay.describe()["tunnels"] == 0)


async def test_both_by_tunnels(relay: Relay) -> None:
    async with (
        tunnelled(ANNA, await allocated(relay, ANNA, BERT)) as anna,
        tunnelled(BERT, await allocated(relay, BERT, ANNA)) as bert,
    ):
        await anna.up()
        await bert.up()
        await until(lambda: relay.describe()["pairs"][0]["open"] == [True, True])
        for n in range(200):
            anna.send(DATA + bytes([n]))
            assert await bert.receive() == DATA + bytes([n])


async def test_a_connection_that_breaks_is_made_again_at_the_same_endpoint(relay: Relay) -> None:
    async with tunnelled(ANNA, await allocated(relay, ANNA, BERT)) as anna:
        await anna.up()
        endpoint = anna.client.endpoint
        bert = End(BERT, ANNA, relay)
        await bert.open()
        relay._tunnels.close(bert.core.allocated.id if bert.core.allocated else b"")
        await anna.up(2)
        assert anna.changes == [None, "the connection ended", None]
        assert anna.client.endpoint == endpoint
        anna.send(DATA)
        assert await bert.receive() == [DATA]


async def test_who_is_not_let_in(relay: Relay) -> None:
    given_to_anna = await allocated(relay, ANNA, BERT)
    for key, keys, grant in (
        (CARL, KEYS, given_to_anna),  # a member, but not of the pair
        (ANNA, OTHER_KEYS, given_to_anna),  # without the network key
        (ANNA, KEYS, replace_id(given_to_anna)),
    ):
        async with tunnelled(key, grant, keys=keys) as end:
            assert "HTTP 404" in await end.refused()
    async with tunnelled(ANNA, given_to_anna, relay=CARL) as end:
        assert "HTTP 404" in await end.refused()  # meant for another relay
    assert relay.describe()["pairs"][0]["open"] == [False, False]


def replace_id(grant: Allocated) -> Allocated:
    return msgspec.structs.replace(grant, id=b"no such!")


async def test_an_outsider_sees_a_web_server_without_pages(relay: Relay) -> None:
    port = relay.describe()["tunnel_port"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    async with aiohttp.ClientSession() as session:
        for method, path, headers in (
            ("GET", "/", {}), ("GET", "/robots.txt", {}), ("POST", "/", {}), ("GET", "/", upgrade),
            ("GET", "/", {**upgrade, "Authorization": "Bearer " + "A" * 400}),
        ):  # fmt: skip
            url = f"https://127.0.0.1:{port}{path}"
            async with session.request(method, url, ssl=context, headers=headers) as answer:
                assert answer.status == 404
                text = await answer.text()
                assert "404 Not Found" in text
                said = (text + str(answer.headers)).lower()
                assert "covey" not in said and "python" not in said and "aiohttp" not in said
    certificate = await asyncio.to_thread(
        ssl.get_server_certificate, ("127.0.0.1", port), timeout=5
    )
    der = ssl.PEM_cert_to_DER_cert(certificate)
    assert RELAY.id.ed25519 not in der and b"ovey" not in der


async def test_a_middle_with_another_certificate_gets_nowhere(relay: Relay) -> None:
    given_to_anna = await allocated(relay, ANNA, BERT)
    # It has the network key and knows everything but the relay's node key.
    middle = TunnelServer(CARL, MESH, KEYS, lambda *_: 1, _seated)
    await middle.start("127.0.0.1", 0)
    try:
        middle._seal.read_hello = lambda *_: _HELLO  # type: ignore[method-assign]
        grant = replace_port(given_to_anna, middle.port or 0)
        async with tunnelled(ANNA, grant) as end:
            assert "not the relay" in await end.refused()
    finally:
        await middle.stop()


async def _seated(*_: object) -> None:
    pass


_HELLO = Hello(ANNA.id, b"whatever", 1, bytes(16))


def replace_port(grant: Allocated, port: int) -> Allocated:
    return msgspec.structs.replace(grant, tunnel_port=port)


async def test_who_says_nothing_is_closed(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.relay.tunnelserver.PROOF_S", 0.3)
    port = relay.describe()["tunnel_port"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    async with asyncio.timeout(3):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_a_release_ends_the_tunnel(relay: Relay) -> None:
    grant = await allocated(relay, ANNA, BERT)
    async with tunnelled(ANNA, grant) as anna:
        await anna.up()
        await relay.answer(BERT.id, messages.encode(Release(grant.id)))
        await until(lambda: relay.describe()["tunnels"] == 0)
        await until(lambda: len(anna.changes) > 1)


async def test_a_port_in_use_is_said_and_no_fault(relay: Relay) -> None:
    port = relay.describe()["tunnel_port"]
    other = Relay(
        CARL, MESH, KEYS, "relaytest2",
        Settings(replace(LIMITS, ports=range(23890, 23894)), False, port, "127.0.0.1"),
    )  # fmt: skip
    await other.start()
    assert "in use" in other.describe()["tunnel_fault"]
    await other.stop()
    with pytest.raises(EnvironmentFault):
        await TunnelServer(CARL, MESH, KEYS, lambda *_: None, _seated).start("127.0.0.1", port)


# What waits.


@given(st.lists(st.binary(min_size=1, max_size=2048), max_size=40))
def test_messages_hold_what_was_put_in(sent: list[bytes]) -> None:
    waiting = Waiting()
    for data in sent:
        waiting.put(data, 0.0)
    assert list(datagrams(waiting.message(0.05))) == sent
    assert waiting.message(0.05) == b""
    assert waiting.dropped == 0


@given(st.binary(max_size=300))
def test_any_message_is_read_or_refused(raw: bytes) -> None:
    try:
        found = list(datagrams(raw))
    except ValueError:
        return
    assert b"".join(len(d).to_bytes(2, "big") + d for d in found) == raw


def test_the_latest_win() -> None:
    waiting = Waiting()
    waiting.put(b"old", 0.0)
    waiting.put(b"new", MAX_AGE_S)
    assert list(datagrams(waiting.message(MAX_AGE_S + 0.01))) == [b"new"]
    assert waiting.dropped == 1
    for n in range(MAX_WAITING + 5):
        waiting.put(n.to_bytes(2, "big"), 1.0)
    assert len(waiting) == MAX_WAITING
    assert next(iter(datagrams(waiting.message(1.0)))) == (5).to_bytes(2, "big")
    assert waiting.dropped == 6


async def test_a_line_that_is_stuck_holds_up_nothing_old() -> None:
    """What was sent while the other end did not read is gone; what is sent then arrives."""

    class Stuck:
        def __init__(self) -> None:
            self.sent: list[bytes] = []
            self.free = asyncio.Event()

        async def send_bytes(self, data: bytes) -> None:
            self.sent.append(data)
            await self.free.wait()

        async def receive(self) -> aiohttp.WSMessage:
            await asyncio.Event().wait()
            raise AssertionError

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wireguard,
        contextlib.closing(_towards(wireguard)) as udp,
    ):
        web = Stuck()
        task = asyncio.create_task(tunnel.carry(udp, web, None))
        for data in (b"first", b"second", b"third"):
            wireguard.sendto(data, udp.getsockname())
            await asyncio.sleep(0.02)
        await asyncio.sleep(2 * MAX_AGE_S)
        wireguard.sendto(b"fresh", udp.getsockname())
        await asyncio.sleep(0.02)
        began = time.monotonic()
        web.free.set()
        await until(lambda: len(web.sent) > 1)
        assert time.monotonic() - began < 1
        assert [list(datagrams(each)) for each in web.sent] == [[b"first"], [b"fresh"]]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _towards(wireguard: socket.socket) -> socket.socket:
    wireguard.bind(("127.0.0.1", 0))
    return tunnel.loopback(wireguard.getsockname()[1])
