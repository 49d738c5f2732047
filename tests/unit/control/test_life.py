"""A control plane that a fault has ended comes back by itself, with all that it was told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.control import ControlPlane, Down, host, life, redial
from agent.control import bridge as bridge_module
from agent.control.bridge import Crossing, GuestFault, TrioThread
from agent.control.life import FIRST_PAUSE_S, MAX_PAUSE_S, STEADY_S, Life, Pauses
from agent.control.node import Node
from agent.errors import EnvironmentFault, NotRunning, PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

pytestmark = pytest.mark.slow

KEYS = NetworkKeys.single(bytes(range(32)))
SERVER, CLIENT = (NodeKey(bytes([number]) * 32) for number in (1, 2))
SOON_S = 20.0
ECHO, TOPIC = "/test/echo/1", "test"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - it changes in another thread
            await asyncio.sleep(0.005)


def test_pauses_grow_to_a_minute_and_begin_anew_after_a_quiet_time() -> None:
    pauses = Pauses()
    assert [pauses.after(0.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pauses.after(STEADY_S - 1) == MAX_PAUSE_S
    assert [pauses.after(STEADY_S), pauses.after(5.0)] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S]


# With a guest that is no libp2p.


class Mortal:
    """A guest that dies when it is told to."""

    def __init__(self) -> None:
        self.commands: Mapping[str, Callable[..., Awaitable[Crossing]]] = {"die": self.die}
        self._dead = trio.Event()

    async def run(self, started: Callable[[], None]) -> None:
        started()
        await self._dead.wait()
        raise OSError("the guest died")

    async def die(self) -> None:
        self._dead.set()


class World:
    """A life whose starts fail as often as is wanted."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.begun = 0
        self.fallen = 0
        self.told: list[Down | None] = []
        self.life = Life(lambda: TrioThread("mortal", {}), self.begin, self.fall)
        self.life.follow(self.told.append)

    async def begin(self, bridge: TrioThread) -> None:
        self.begun += 1
        if self.failures:
            raise self.failures.pop()
        await bridge.start(lambda _: Mortal())

    def fall(self) -> None:
        self.fallen += 1


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(life, "FIRST_PAUSE_S", 0.05)
    world = World()
    yield world
    await world.life.stop()
    assert not world.life.bridge.running
    assert not [each for each in threading.enumerate() if each.name == "mortal"]


async def test_a_fault_is_told_with_its_reason_and_mended(world: World) -> None:
    await world.life.start()
    first = world.life.bridge
    before = time.time()
    first.post("die")
    await until(lambda: world.told[-1:] == [None])
    (down, _) = world.told
    assert down is not None
    assert down.reason == "the control plane (libp2p) ended by a fault: OSError: the guest died"
    assert before + 0.05 <= down.again_at < time.time() + 0.05
    assert down.when() == time.strftime("at %H:%M:%S", time.localtime(down.again_at))
    assert world.life.bridge is not first
    assert world.life.bridge.running
    assert (world.begun, world.fallen, world.life.down) == (2, 1, None)


async def test_what_could_not_start_is_tried_again_until_it_can(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.failures = [EnvironmentFault("third"), RuntimeError("second"), EnvironmentFault("first")]
    with pytest.raises(EnvironmentFault, match="first") as caught:
        await world.life.start()
    await asyncio.sleep(0.1)
    assert world.begun == 1  # a start that failed is not tried again unless it is wanted
    world.life.start_later(caught.value)
    await until(lambda: world.told[-1:] == [None])
    downs = [down for down in world.told if down is not None]
    assert [down.reason for down in downs] == [
        "first", "the control plane cannot start: RuntimeError('second')", "third",
    ]  # fmt: skip
    pauses = [later.again_at - down.again_at for down, later in itertools.pairwise(downs)]
    assert pauses[0] > 0.09 and pauses[1] > 0.19  # doubled each time
    assert world.life.bridge.running
    assert "the control plane was not started" in caplog.text  # what nobody expected, in full


async def test_a_stop_ends_the_waiting_too(world: World) -> None:
    world.failures = [EnvironmentFault("no")]
    with pytest.raises(EnvironmentFault) as caught:
        await world.life.start()
    world.life.start_later(caught.value)
    await until(lambda: bool(world.told))
    await world.life.stop()
    await asyncio.sleep(0.1)
    assert world.begun == 1


async def test_no_second_thread_is_started_beside_one_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the disk does not answer while libp2p is imported."""
    monkeypatch.setattr(life, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(bridge_module, "START_LIMIT_S", 0.1)
    monkeypatch.setattr(bridge_module, "STOP_LIMIT_S", 0.05)
    answers = threading.Event()
    loads: list[int] = []

    def load(_: TrioThread) -> Mortal:
        loads.append(1)
        answers.wait(SOON_S)
        return Mortal()

    async def begin(bridge: TrioThread) -> None:
        try:
            await bridge.start(load)
        except GuestFault as error:
            raise EnvironmentFault(str(error)) from None

    made = Life(lambda: TrioThread("stuck", {}), begin, lambda: None)
    try:
        with pytest.raises(EnvironmentFault, match="did not start within") as caught:
            await made.start()
        made.start_later(caught.value)
        await asyncio.sleep(0.5)
        assert len(loads) == 1
        assert made.bridge.left_behind
        answers.set()
        await until(lambda: made.bridge.running)
        assert len(loads) == 2
    finally:
        answers.set()
        await made.stop()


async def test_a_follower_that_fails_does_not_keep_it_down(world: World) -> None:
    def fail(_: Down | None) -> None:
        raise KeyError("follower")

    world.life.follow(fail)
    await world.life.start()
    world.life.bridge.post("die")
    await until(lambda: world.told[-1:] == [None])
    assert world.life.bridge.running


# With libp2p.


class Pair:
    """Two nodes that keep a link, of which one is going to be ended by a fault."""

    def __init__(self) -> None:
        self.server = ControlPlane(SERVER, KEYS, ["127.0.0.1:0", "[::1]:0"])
        self.client = ControlPlane(CLIENT, KEYS, [])
        self.told: list[Down | None] = []
        self.links: list[tuple[NodeId, bool]] = []
        self.heard: dict[NodeId, list[bytes]] = {SERVER.id: [], CLIENT.id: []}
        self.server.on_fault(self.told.append)
        self.server.on_link(lambda node, up: self.links.append((node, up)))
        for plane in (self.server, self.client):
            plane.set_members([SERVER.id, CLIENT.id])
            plane.serve(ECHO, self.echo)
            plane.subscribe(TOPIC, self.take)
        self.client.serve("/test/hang/1", self.hang)
        self.asked = asyncio.Event()

    async def start(self) -> None:
        await self.server.start()
        await self.client.start()
        self.client.keep_links({SERVER.id: self.server.addresses})
        await until(lambda: self.links == [(CLIENT.id, True)])

    async def echo(self, peer: NodeId, request: bytes) -> bytes:
        return request

    async def hang(self, peer: NodeId, request: bytes) -> bytes:
        self.asked.set()
        await asyncio.sleep(3600)
        return b""

    async def take(self, author: NodeId, payload: bytes) -> bool:
        self.heard[author].append(payload)
        return True

    async def kill(self) -> None:
        """End the server's trio host, by what one message makes a task of it raise."""
        down_before = len(self.told)
        with pytest.MonkeyPatch.context() as patch:
            from agent.control.topics import Topics

            async def judge(topics: Topics, arrival: Any) -> None:
                if topics is self.server_topics:
                    raise OSError("a fault in one task")
                await genuine(topics, arrival)

            genuine = Topics._judge
            patch.setattr(Topics, "_judge", judge)
            await self.client.publish(TOPIC, b"deadly")
            await until(lambda: len(self.told) > down_before)

    @property
    def server_topics(self) -> Any:
        inside = self.server._bridge._inside
        assert inside is not None
        guest: Any = inside.guest
        return guest._topics

    async def ask(self, asker: ControlPlane, whom: NodeKey, payload: bytes) -> bytes:
        addresses = self.server.addresses if whom is SERVER else ()
        return await asker.request(whom.id, addresses, ECHO, payload, timeout_s=5)

    async def works(self, word: bytes) -> None:
        """Requests and gossip, both ways."""
        await until(lambda: self.links[-1:] == [(CLIENT.id, True)])
        assert await self.ask(self.client, SERVER, word) == word
        assert await self.ask(self.server, CLIENT, word) == word
        for plane, author in ((self.server, SERVER.id), (self.client, CLIENT.id)):
            await plane.publish(TOPIC, word)
            await until(lambda author=author: word in self.heard[author])  # type: ignore[misc]


@contextlib.asynccontextmanager
async def running(pair: Pair) -> AsyncIterator[Pair]:
    try:
        await pair.start()
        yield pair
    finally:
        await pair.client.stop()
        await pair.server.stop()


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long enough to ask something meanwhile."""
    monkeypatch.setattr(life, "FIRST_PAUSE_S", 0.3)


@pytest.mark.usefixtures("short_pause")
async def test_after_a_fault_requests_gossip_and_links_work_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(Pair()) as pair:
        await pair.works(b"before")
        addresses = pair.server.addresses
        pair.server.keep_links({})
        hanging = asyncio.create_task(
            pair.server.request(CLIENT.id, (), "/test/hang/1", b"", timeout_s=SOON_S)
        )
        await pair.asked.wait()
        await pair.kill()
        with pytest.raises(NotRunning, match="not running") as caught:
            await hanging
        assert caught.value.hint == "A fault ended it; it is started again in a moment."
        assert not pair.server.running
        with pytest.raises(NotRunning, match="not running") as caught:
            await pair.server.publish(TOPIC, b"into nothing")
        (down,) = pair.told
        assert down is not None
        assert down.reason.endswith("ended by a fault: OSError: a fault in one task")
        assert caught.value.hint == f"A fault ended it; it is started again {down.when()}."
        assert pair.links[-1] == (CLIENT.id, False)
        assert await pair.server.links() == []
        # What is said meanwhile counts as well.
        late: list[bytes] = []

        async def take(author: NodeId, payload: bytes) -> bool:
            late.append(payload)
            return True

        async def answer(peer: NodeId, request: bytes) -> bytes:
            return b"late"

        pair.server.serve("/test/late/1", answer)
        pair.server.subscribe("late", take)
        await until(lambda: pair.told[-1] is None)
        assert pair.server.addresses == addresses
        await pair.works(b"after")
        reply = await pair.client.request(SERVER.id, (), "/test/late/1", b"", timeout_s=5)
        assert reply == b"late"
        await pair.client.publish("late", b"news")
        await until(lambda: late == [b"news"])
        assert len(pair.told) == 2
    with pytest.raises(NotRunning) as caught:
        await pair.server.publish(TOPIC, b"after its end")
    assert caught.value.hint == "Start the agent with `agent up`."
    assert caplog.text.count("control plane ended by a fault: OSError") == 1
    assert caplog.text.count("in judge\n") == 1  # where it came from, for who has to find it


@pytest.mark.usefixtures("short_pause")
async def test_members_and_keys_are_kept_over_a_fault() -> None:
    stranger = NodeKey(bytes([9]) * 32)
    async with running(Pair()) as pair:
        changed = NetworkKeys(bytes(32), (bytes(32), KEYS.sending))
        pair.server.set_network_keys(changed)
        await pair.kill()
        await until(lambda: pair.told[-1] is None)
        other = ControlPlane(stranger, NetworkKeys.single(bytes(32)), [])
        await other.start()
        try:
            # It has a network key that the server was told of, and is no member.
            with pytest.raises(PeerError):
                await other.request(SERVER.id, pair.server.addresses, ECHO, b"", timeout_s=3)
            pair.server.set_members([SERVER.id, CLIENT.id, stranger.id])
            other.set_members([SERVER.id])
            reply = await other.request(SERVER.id, pair.server.addresses, ECHO, b"x", timeout_s=3)
            assert reply == b"x"
        finally:
            await other.stop()


@pytest.mark.usefixtures("short_pause")
async def test_a_node_that_dials_keeps_its_wanted_links_over_a_fault() -> None:
    async with running(Pair()) as pair:
        # Here the server is the one who wants the link, to a node that listens.
        listener = ControlPlane(NodeKey(bytes([3]) * 32), KEYS, ["127.0.0.1:0"])
        listener.set_members([SERVER.id])
        await listener.start()
        try:
            third = NodeKey(bytes([3]) * 32).id
            pair.server.set_members([SERVER.id, CLIENT.id, third])
            pair.server.keep_links({third: listener.addresses})
            await until(lambda: (third, True) in pair.links)
            await pair.kill()
            pair.links.clear()
            await until(lambda: (third, True) in pair.links)
        finally:
            await listener.stop()


def open_descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {os.readlink(entry)}")
    return found


async def test_ten_faults_leave_no_thread_no_descriptor_and_no_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(life, "MAX_PAUSE_S", 0.05)
    monkeypatch.setattr(life, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(redial, "MAX_DELAY_S", 0.1)  # else the client dials ever less often
    caplog.set_level(logging.CRITICAL)
    async with running(Pair()) as pair:

        def held() -> tuple[int, int, int]:
            gc.collect()
            nodes = sum(type(each) is Node for each in gc.get_objects())
            return len(open_descriptors()), threading.active_count(), nodes

        async def fault(word: bytes) -> None:
            await pair.kill()
            await until(lambda: pair.told[-1] is None)
            await pair.works(word)

        await fault(b"first")  # what is made once is made
        before = held()
        assert before[2] == 2
        for number in range(10):
            await fault(b"%d" % number)
        # trio keeps an idle thread that looked up a name for 10 s.
        await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
        assert len(pair.told) == 22


async def test_libp2p_that_could_not_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life, "FIRST_PAUSE_S", 0.05)
    tried: list[int] = []
    load = host._load

    def broken(bridge: TrioThread, **made_with: Any) -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise ImportError("no libp2p")
        return load(bridge, **made_with)

    monkeypatch.setattr(host, "_load", broken)
    pair = Pair()
    try:
        with pytest.raises(
            EnvironmentFault, match="cannot start: ImportError: no libp2p"
        ) as caught:
            await pair.server.start()
        pair.server.start_later(caught.value)
        await until(lambda: pair.told[-1:] == [None])
        assert len(tried) == 3
        reasons = [down.reason for down in pair.told if down is not None]
        assert reasons == [caught.value.message] * 2
        await pair.client.start()
        pair.client.keep_links({SERVER.id: pair.server.addresses})
        await pair.works(b"in the end")
    finally:
        await pair.client.stop()
        await pair.server.stop()
