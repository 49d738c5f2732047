"""Gossip between real nodes, with libp2p's own GossipSub, and against hostile members."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import trio

from agent.control import ControlPlane, envelope, rpc
from agent.control import host as control_host
from agent.control.bridge import Guest, TrioThread
from agent.control.rpc import Rpc
from agent.control.setup import Setup
from agent.errors import NotRunning, PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

KEYS = NetworkKeys.single(bytes(range(32)))
NODES = [NodeKey(bytes([n]) * 32) for n in range(71, 76)]
EVIL, STRANGER = NodeKey(b"e" * 32), NodeKey(b"s" * 32)
MEMBERS = [each.id for each in (*NODES, EVIL)]
TOPIC = "health"
SOON_S = 8.0

Got = list[tuple[NodeId, bytes]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - it changes in another thread
            await asyncio.sleep(0.002)


class Listener:
    """A node and what it has heard."""

    def __init__(self, key: NodeKey) -> None:
        self.key = key
        self.plane = ControlPlane(key, KEYS, ["127.0.0.1:0"])
        self.plane.set_members(MEMBERS)
        self.plane.subscribe(TOPIC, self.take)
        self.plane.serve("/test/echo/1", self.echo)
        self.got: Got = []

    async def take(self, author: NodeId, payload: bytes) -> bool:
        self.got.append((author, payload))
        if payload == b"raise":
            raise ZeroDivisionError
        if payload == b"refuse":
            raise PeerError("not this")
        return payload != b"nonsense"

    async def echo(self, peer: NodeId, request: bytes) -> bytes:
        return request

    def heard(self, payload: bytes) -> int:
        return [p for _, p in self.got].count(payload)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def line() -> AsyncIterator[list[Listener]]:
    """Five nodes in a line: 0 - 1 - 2 - 3 - 4."""
    nodes = [Listener(each) for each in NODES]
    async with contextlib.AsyncExitStack() as stack:
        for each in nodes:
            await each.plane.start()
            stack.push_async_callback(each.plane.stop)
        for one, two in itertools.pairwise(nodes):
            one.plane.keep_links({two.key.id: two.plane.addresses})
        yield nodes


async def test_a_message_reaches_everybody_once_with_its_author(line: list[Listener]) -> None:
    await line[0].plane.publish(TOPIC, b"one")
    await line[3].plane.publish(TOPIC, b"two")
    await until(lambda: all(e.heard(b"one") for e in line[1:]))
    await until(lambda: all(e.heard(b"two") for e in line if e is not line[3]))
    for each in line:
        assert each.got.count((NODES[0].id, b"one")) == (each is not line[0])
        assert each.got.count((NODES[3].id, b"two")) == (each is not line[3])


async def test_the_largest_message(line: list[Listener]) -> None:
    payload = bytes(envelope.MAX_PAYLOAD_BYTES)
    await line[4].plane.publish(TOPIC, payload)
    await until(lambda: line[0].heard(payload) == 1)
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        await line[4].plane.publish(TOPIC, payload + b"x")
    with pytest.raises(ValueError, match="not a topic name"):
        await line[4].plane.publish("", b"")
    with pytest.raises(ValueError, match="not a topic name"):
        line[4].plane.subscribe("é", line[4].take)


@pytest.mark.parametrize("payload", [b"nonsense", b"raise", b"refuse"])
async def test_what_a_subscriber_does_not_take_goes_no_further(
    line: list[Listener], payload: bytes
) -> None:
    await line[0].plane.publish(TOPIC, payload)
    await line[0].plane.publish(TOPIC, b"after " + payload)
    await until(lambda: line[4].heard(b"after " + payload) == 1)
    assert [each.heard(payload) for each in line] == [0, 1, 0, 0, 0]


async def test_a_topic_that_only_some_want(line: list[Listener]) -> None:
    got: Got = []

    async def take(author: NodeId, payload: bytes) -> bool:
        got.append((author, payload))
        return True

    line[1].plane.subscribe("load", take)
    await line[0].plane.publish("load", b"x")
    await until(lambda: got == [(NODES[0].id, b"x")])


async def test_who_was_away_hears_what_it_missed(line: list[Listener]) -> None:
    line[2].plane.keep_links({})
    await until_links(line[3], 1)
    await line[0].plane.publish(TOPIC, b"missed")
    await until(lambda: line[2].heard(b"missed") == 1)
    assert line[3].heard(b"missed") == 0
    line[2].plane.keep_links({NODES[3].id: line[3].plane.addresses})
    await until(lambda: line[4].heard(b"missed") == 1)


async def until_links(node: Listener, count: int) -> None:
    async with asyncio.timeout(SOON_S):
        while len(await node.plane.links()) != count:  # noqa: ASYNC110 - it changes in another thread
            await asyncio.sleep(0.005)


async def test_publishing_needs_a_running_node() -> None:
    with pytest.raises(NotRunning):
        await Listener(NODES[0]).plane.publish(TOPIC, b"x")


async def test_a_node_does_not_publish_faster_than_others_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from agent.control import publishing

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(publishing.asyncio, "sleep", sleep)
    publisher = publishing.Publisher(NODES[0])
    names = set()
    for _ in range(int(publishing.BURST) + 20):
        found = envelope.decode(await publisher.seal(TOPIC, b"x"))
        names.add((found.sent_ms, found.sequence))
    assert len(names) == publishing.BURST + 20
    assert 15 <= len(slept) <= 20
    assert sum(slept) > 10


# With libp2p's own GossipSub.


async def test_libp2ps_gossipsub_takes_part(line: list[Listener]) -> None:
    """The wire is its; only the name of a message must be the hash that we use.

    Both sides publish until they are heard: on a busy machine the library loses some.
    """
    got: list[bytes] = []
    done = trio.Event()
    token: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        from libp2p.host.basic_host import BasicHost
        from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
        from libp2p.pubsub.pubsub import Pubsub
        from libp2p.tools.anyio_service import background_trio_service

        from agent.control.gate import Gate
        from agent.control.links import Links
        from agent.control.swarm import Host

        token.append(trio.lowlevel.current_trio_token())
        ours = Host(EVIL.seed)
        host = BasicHost(ours.swarm, disable_identify_address_discovery=True)
        router = GossipSub([PROTOCOL_ID_V11], 6, 4, 12, heartbeat_interval=1)
        pubsub = Pubsub(
            host,
            router,
            strict_signing=False,
            msg_id_constructor=lambda m: hashlib.sha256(m.data).digest()[:20],
        )
        gate = Gate()
        gate.set_members([each.ed25519 for each in MEMBERS])
        links = Links(ours, EVIL.id, gate, KEYS)
        async with (
            background_trio_service(ours.swarm),
            background_trio_service(pubsub),
            background_trio_service(router),
            trio.open_nursery() as nursery,
        ):
            await pubsub.wait_until_ready()
            subscription = await pubsub.subscribe(TOPIC)
            await links.listen([], nursery)
            await links.connect(NODES[0].id, line[0].plane.addresses, {})

            async def read() -> None:
                while True:
                    got.append((await subscription.get()).data)

            nursery.start_soon(read)
            with trio.fail_after(SOON_S):
                await pubsub.wait_for_subscription(
                    host.get_network()
                    .connections[next(iter(host.get_network().connections))][0]
                    .muxed_conn.peer_id,
                    TOPIC,
                )
            for sequence in itertools.count():
                now_ms = int(time.time() * 1000)
                sealed = envelope.seal(EVIL, TOPIC, b"from libp2p", now_ms, sequence)
                await pubsub.publish(TOPIC, sealed)
                with trio.move_on_after(0.3):
                    await done.wait()
                    break
            nursery.cancel_scope.cancel()

    running = asyncio.create_task(asyncio.to_thread(trio.run, main))
    try:
        await until(lambda: line[4].heard(b"from libp2p") > 0)
        async with asyncio.timeout(SOON_S):
            while not any(envelope.decode(raw).payload == b"to libp2p" for raw in got):
                await line[4].plane.publish(TOPIC, b"to libp2p")
                await asyncio.sleep(0.1)
    finally:
        if token:
            token[0].run_sync_soon(done.set)
        async with asyncio.timeout(SOON_S):
            await running


# Hostile members.


def load_evil(bridge: TrioThread, *, made_with: Setup) -> Guest:
    from agent.control import streams
    from agent.control.node import Node

    class EvilNode(Node):
        talks: dict[str, Any]

        async def speak(self, peer: str, *chunks: bytes) -> int:
            """Write on a gossip stream of our own; 1 if the node has ended it."""
            link = self._links.kept(NodeId.parse(peer))
            assert link is not None
            talk = await streams.open_stream(link.connection, streams.GOSSIP)
            with trio.move_on_after(0.3):
                try:
                    for chunk in chunks:
                        await talk.write(chunk)
                    await talk.read(1)
                except Exception:
                    return 1
            await streams.reset(talk.stream)
            return 0

        async def flood(self, peer: str, count: int) -> None:
            """Open streams, leave them half open, and in the end hang up."""
            link = self._links.kept(NodeId.parse(peer))
            assert link is not None
            for number in range(count):
                # A node may well end such a stream while we write.
                with trio.move_on_after(1.0), contextlib.suppress(Exception):
                    stream = await link.connection.new_stream()
                    await stream.write(b"\x13/multistream/1.0.0\n"[: number % 21])
            self._links.drop(link)

    node = EvilNode(bridge, made_with)
    node.commands = {**node.commands, "speak": node.speak, "flood": node.flood}
    return node


class EvilPlane(ControlPlane):
    async def speak(self, peer: NodeId, *chunks: bytes) -> bool:
        return bool(await self._bridge.call("speak", str(peer), *chunks, timeout_s=SOON_S))

    async def flood(self, peer: NodeId, count: int) -> None:
        await self._bridge.call("flood", str(peer), count, timeout_s=30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def evil(line: list[Listener]) -> AsyncIterator[EvilPlane]:
    plane = EvilPlane(EVIL, KEYS, ["127.0.0.1:0"])
    plane.set_members(MEMBERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_host, "_load", load_evil)
        await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def joined(line: list[Listener], evil: EvilPlane) -> AsyncIterator[EvilPlane]:
    """The evil node with a link to the first; afterwards all must work as before."""
    target = line[0]
    await evil.request(target.key.id, target.plane.addresses, "/test/echo/1", b"", timeout_s=SOON_S)
    yield evil
    sent = b"still here %d" % time.monotonic_ns()
    await line[1].plane.publish(TOPIC, sent)
    await until(lambda: target.heard(sent) == 1)
    await until(lambda: line[4].heard(sent) == 1)


def framed(raw: bytes) -> bytes:
    return rpc.encode_length(len(raw)) + raw


@pytest.mark.parametrize(
    "words",
    [
        b"\xff\xff\xff\xff\xff",
        rpc.encode_length(rpc.MAX_RPC_BYTES + 1) + bytes(100),
        framed(b"\xff" * 50),
        framed(rpc.encode(Rpc(iwant=[b"i"] * 2000))),
        framed(b"\x28\x01" * 5000),
    ],
)
async def test_what_is_no_rpc_ends_the_stream(
    line: list[Listener], joined: EvilPlane, words: bytes
) -> None:
    assert await joined.speak(line[0].key.id, words)


async def test_messages_of_strangers_forged_and_repeated_ones_are_not_delivered(
    line: list[Listener], joined: EvilPlane
) -> None:
    now_ms = int(time.time() * 1000)
    good = envelope.seal(EVIL, TOPIC, b"good", now_ms, 50)
    forged = good[:-1] + bytes([good[-1] ^ 1])
    stranger = envelope.seal(STRANGER, TOPIC, b"stranger", now_ms, 51)
    old = envelope.seal(EVIL, TOPIC, b"old", now_ms - 3_600_000, 52)
    published = [(TOPIC, each) for each in (forged, stranger, old, good, good)]
    words = framed(rpc.encode(Rpc(published=published)))
    assert not await joined.speak(line[0].key.id, words, words)
    await until(lambda: line[4].heard(b"good") == 1)
    for each in line:
        assert [each.heard(p) for p in (b"good", b"stranger", b"old")] == [1, 0, 0]


async def test_floods_of_control_messages_and_of_half_open_streams(
    line: list[Listener], joined: EvilPlane
) -> None:
    flood = Rpc(
        subscriptions=[(f"t{n}", True) for n in range(200)],
        ihave=[(TOPIC, [n.to_bytes(20, "big") for n in range(500)])],
        iwant=[n.to_bytes(20, "big") for n in range(500)],
        graft=[f"t{n}" for n in range(100)],
    )
    await joined.speak(line[0].key.id, *[framed(rpc.encode(flood))] * 20)
    await joined.flood(line[0].key.id, 100)
    answer = await line[1].plane.request(
        line[0].key.id, line[0].plane.addresses, "/test/echo/1", b"x", timeout_s=SOON_S
    )
    assert answer == b"x"


async def test_a_member_that_is_revoked_is_not_heard_any_more(
    line: list[Listener], joined: EvilPlane
) -> None:
    for each in line:
        each.plane.set_members([m for m in MEMBERS if m != EVIL.id])
    await joined.publish(TOPIC, b"revoked")
    with pytest.raises(PeerError):
        await joined.request(
            line[0].key.id, line[0].plane.addresses, "/test/echo/1", b"", timeout_s=SOON_S
        )
    await line[0].plane.publish(TOPIC, b"between us")
    await until(lambda: line[4].heard(b"between us") == 1)
    assert all(each.heard(b"revoked") == 0 for each in line)
    for each in line:
        each.plane.set_members(MEMBERS)
