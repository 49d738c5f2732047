"""Real nodes on loopback. Waits have bounds that only end a test that hangs; none measures time."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from agent.discovery import liveness, messages
from agent.discovery.dhtkeys import member_key, service_key
from agent.discovery.messages import Answered, Asked, Message
from agent.discovery.node import Discovery
from agent.discovery.seal import Opened, Seal
from agent.errors import EnvironmentFault, NotRunning
from agent.identity.keys import NodeId, NodeKey

if TYPE_CHECKING:
    from conftest import Mesh

HANG_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():  # noqa: ASYNC110  # conditions in others' insides have no event
            await asyncio.sleep(0.005)


def kill(node: Discovery) -> None:
    """End a node as a power cut does: no goodbye."""
    parts = node._parts
    assert parts is not None
    parts.maintenance.cancel()
    parts.rejoin.close()
    parts.protocol.transport.abort()
    node._parts = None


class Wire:
    """A bare socket that speaks to one node."""

    def __init__(self, node: Discovery) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect(("127.0.0.1", node.port))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, datagram: bytes) -> None:
        self._socket.send(datagram)

    async def receive(self) -> bytes:
        async with asyncio.timeout(HANG_S):
            return await asyncio.get_running_loop().sock_recv(self._socket, 2000)


def ping(certificate: bytes = b"", question: Any = None) -> bytes:
    asked = Asked(question or messages.Ping(), True, False, certificate)
    return messages.encode(Message(b"12345678", asked))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon, for tests whose peers are never going to answer."""
    monkeypatch.setattr(liveness, "REPEAT_MIN_S", 0.1)
    monkeypatch.setattr(liveness, "TIMEOUT_MIN_S", 0.3)


# -- one and two nodes


async def test_a_mesh_of_one_finds_itself(mesh: Mesh) -> None:
    node = await mesh.add()
    assert await node.publish_member(mesh.record(0)) == 1
    assert await node.announce("head", b"\x80", 60) == 1
    me = mesh.keys[0].id
    found = await node.member(me)
    assert found is not None
    assert found.wireguard_endpoints == ("192.0.2.1:1",)
    assert set(await node.members()) == {me}
    assert [r.id for r in await node.providers("head")] == [me]
    await node.withdraw("head")
    await node.withdraw("head")
    assert await node.providers("head") == []
    assert await node.member(NodeKey(b"x" * 32).id) is None
    assert await node.bootstrap([]) == 0


async def test_before_start_and_after_stop_it_is_not_running(mesh: Mesh) -> None:
    node = await mesh.add()
    await node.stop()
    await node.stop()
    with pytest.raises(NotRunning):
        await node.providers("head")
    assert node.counters == {}
    await node.start()
    assert await node.announce("head", b"", 60) == 1


async def test_a_port_in_use_is_an_environment_fault(mesh: Mesh) -> None:
    node = await mesh.add()
    with pytest.raises(EnvironmentFault, match=f"UDP port {node.port} .discovery. is in use"):
        await mesh.add(listen=("127.0.0.1", node.port))


async def test_limits_are_the_callers_fault_and_leave_nothing(mesh: Mesh) -> None:
    node = await mesh.add()
    for service, payload, ttl_s in (("s", bytes(301), 60), ("s", b"", 1), ("", b"", 60)):
        with pytest.raises(ValueError, match=r"ttl|payload|name"):
            await node.announce(service, payload, ttl_s)
    assert await node.providers("s") == []


async def test_the_newest_word_is_found_and_a_withdrawal_is_believed(mesh: Mesh) -> None:
    a, b = await mesh.add(), await mesh.add()
    await a.announce("head", b"one", 60)
    assert [r.payload for r in await b.providers("head")] == [b"one"]
    await a.announce("head", b"two", 60)
    assert [r.payload for r in await b.providers("head")] == [b"two"]
    await a.withdraw("head")
    assert await b.providers("head") == []
    assert await a.providers("head") == []


async def test_a_withdrawal_outlives_all_that_it_takes_back(mesh: Mesh) -> None:
    a, b = await mesh.add(), await mesh.add()
    await a.announce("head", b"long", 3600)
    key = service_key(mesh.root.mesh_id, "head")
    long = b._store.records(key, mesh.clock())[0].raw
    await a.announce("head", b"short", 60)
    await a.withdraw("head")
    mesh.ahead_s += 600
    assert not b._store.put(key, long, mesh.clock()).accepted
    assert await b.providers("head") == []


async def test_a_word_dies_with_its_time(mesh: Mesh) -> None:
    a, b = await mesh.add(), await mesh.add()
    await a.announce("head", b"", 60)
    assert len(await b.providers("head")) == 1
    mesh.ahead_s += 62
    assert await b.providers("head") == []


async def test_a_poll_fetches_nothing_twice(mesh: Mesh) -> None:
    a, b, c = [await mesh.add() for _ in range(3)]
    for node in (a, b):
        await node.announce("head", bytes(300), 60)
    stored = c._parts.protocol  # type: ignore[union-attr]  # it runs
    assert len(await c.providers("head")) == 2
    replies = []
    real = stored.ask

    def ask(*arguments: Any) -> Any:
        future = real(*arguments)
        future.add_done_callback(lambda f: replies.append(f.result()[1]))
        return future

    stored.ask = ask
    assert len(await c.providers("head")) == 2
    assert replies
    assert all(reply.records == () and reply.left_out == 0 for reply in replies)


async def test_a_newcomer_is_given_the_records_it_should_store(mesh: Mesh) -> None:
    first = await mesh.add()
    await first.publish_member(mesh.record(0))
    second = await mesh.add()
    key = member_key(mesh.root.mesh_id, mesh.keys[0].id)
    await until(lambda: bool(second._store.records(key, mesh.clock())))


async def test_a_node_with_a_lower_sequence_is_not_locked_out(mesh: Mesh) -> None:
    """Its clock ran ahead, it restarts with the right one and no memory."""
    other = await mesh.add()
    ahead = await mesh.add(clock=lambda: mesh.clock() + 60)
    key = mesh.keys[1]
    await ahead.publish_member(mesh.record(1, port=1))
    await ahead.stop()
    again = await mesh.add(key=key)
    assert await again.publish_member(mesh.record(1, port=2)) == 2
    found = await other.member(key.id)
    assert found is not None
    assert found.wireguard_endpoints == ("192.0.2.1:2",)


async def test_a_restarted_node_is_found_at_its_new_port(mesh: Mesh) -> None:
    first, second = await mesh.add(), await mesh.add()
    key, old = mesh.keys[1], second.port
    kill(second)
    again = await mesh.add(key=key)
    assert again.port != old
    await until(lambda: first.contacts() == [(key.id, ("127.0.0.1", again.port))])


async def test_a_stopped_node_remembers_whom_it_knew(mesh: Mesh) -> None:
    _, node = await mesh.add(), await mesh.add()
    await node.stop()
    await node.start()
    node._memory.endpoints = []
    assert await node.bootstrap([]) == 1


async def test_who_was_silent_and_speaks_again_is_asked_again(mesh: Mesh) -> None:
    a, b = await mesh.add(), await mesh.add()
    await until(lambda: len(a.contacts()) == 1)
    protocol = a._parts.protocol  # type: ignore[union-attr]  # it runs
    contact = protocol.router.contacts()[0]
    protocol._bury(contact)
    assert protocol.is_dead(contact)
    assert a.contacts() == []
    await b.providers("head")
    assert not protocol.is_dead(contact)


async def test_goodbye_empties_tables_at_once(mesh: Mesh) -> None:
    nodes = [await mesh.add() for _ in range(4)]
    await until(lambda: all(len(node.contacts()) == 3 for node in nodes))
    await nodes[3].stop()
    await until(lambda: all(len(node.contacts()) == 2 for node in nodes[:3]))
    assert sum(node.counters.get("timeouts", 0) for node in nodes[:3]) == 0


async def test_a_node_that_cannot_be_reached_asks_but_is_not_asked(mesh: Mesh) -> None:
    server, client = await mesh.add(), await mesh.add(reachable=False)
    await client.publish_member(mesh.record(1))
    await server.publish_member(mesh.record(0))
    assert set(await client.members()) == {key.id for key in mesh.keys}
    assert set(await server.members()) == {key.id for key in mesh.keys}
    assert server.contacts() == []


async def test_a_lost_datagram_is_sent_again(mesh: Mesh) -> None:
    a, b = await mesh.add(), await mesh.add()
    protocol = b._parts.protocol  # type: ignore[union-attr]  # it runs
    received, lost = protocol.datagram_received, []

    def lossy(data: bytes, addr: tuple[str, int]) -> None:
        if lost:
            received(data, addr)
        else:
            lost.append(data)

    protocol.datagram_received = lossy
    await a.announce("head", b"", 60)
    assert lost
    assert [r.id for r in await b.providers("head")] == [mesh.keys[0].id]
    assert len(a.contacts()) == 1


async def test_ipv4_and_ipv6_sockets_meet(mesh: Mesh) -> None:
    both = await mesh.add(listen=("::", 0))
    four = await mesh.add()
    await four.announce("head", b"", 60)
    assert [r.id for r in await both.providers("head")] == [mesh.keys[1].id]
    assert both.contacts() == [(mesh.keys[1].id, ("127.0.0.1", four.port))]


# -- those who get nothing


async def test_outsiders_and_replays_get_no_answer(mesh: Mesh, make_root: Any) -> None:
    node, member = await mesh.add(), NodeKey(b"z" * 32)
    root, other = mesh.root, make_root("other")
    to, rng = node._key.id, random.Random(3)

    def sealed(
        payload: bytes, to: NodeId | None, seal: Seal | None = None, ago: float = 0
    ) -> bytes:
        return (seal or inside).seal(payload, to, mesh.clock() - ago, rng.randbytes(24))

    inside = Seal(member, root.mesh_id, root.keys)
    foreign = Seal(member, root.mesh_id, other.keys)
    greeting = ping(root.certify(member.id))
    genuine = sealed(greeting, to)
    hostile = [rng.randbytes(size) for size in (0, 1, 21, 22, 97, 500, 1232, 1400, 9000)]
    hostile += [b"\x00" + bytes(20) + b"\x92\xa4ping\x91\xc4\x14" + bytes(20)]  # the library's
    hostile += [sealed(greeting, to, foreign), sealed(greeting, None, foreign)]
    hostile += [genuine, genuine[:-1], genuine + b"\0", bytes([genuine[0] ^ 1]) + genuine[1:]]
    hostile += [sealed(greeting, member.id)]  # to somebody else
    hostile += [sealed(greeting, None, Seal(member, root.mesh_id, root.keys), ago=500)]
    hostile += [sealed(rng.randbytes(60), None), sealed(ping(bytes(330)), None)]
    hostile += [sealed(ping(other.certify(member.id)), to)]

    # UDP on loopback keeps its order: two answers and one question come, and nothing between.
    with Wire(node) as wire:
        wire.send(genuine)
        first = [inside.open(await wire.receive(), mesh.clock()) for _ in range(2)]
        for datagram in hostile:
            wire.send(datagram)
        wire.send(sealed(ping(), to))
        last = inside.open(await wire.receive(), mesh.clock())
    kinds = [o.payload[:1] for o in (*first, last) if isinstance(o, Opened)]
    assert kinds == [b"A", b"Q", b"A"]
    refused = {name: n for name, n in node.counters.items() if name.startswith("refused_")}
    assert sum(refused.values()) == len(hostile)
    assert set(refused) == {
        "refused_foreign", "refused_replay", "refused_unproven", "refused_clock",
        "refused_malformed", "refused_not_member",
    }  # fmt: skip
    assert node.counters["sent"] == 3


@pytest.mark.usefixtures("impatient")
async def test_a_mesh_with_another_network_key_stays_apart(mesh: Mesh, make_root: Any) -> None:
    here = await mesh.add()
    there = await mesh.add(network_keys=make_root("other").keys, join=False)
    assert await there.bootstrap([mesh.endpoint(0)]) == 0
    assert here.counters == {"refused_foreign": 2}
    assert here.contacts() == there.contacts() == []


@pytest.mark.usefixtures("impatient")
async def test_without_a_certificate_the_network_key_is_worth_nothing(mesh: Mesh) -> None:
    here = await mesh.add()
    await here.announce("head", b"", 60)
    there = await mesh.add(certificate=bytes(330), join=False)
    assert await there.bootstrap([mesh.endpoint(0)]) == 0
    assert here.counters == {"refused_not_member": 2}
    assert await there.providers("head") == []
    assert here.contacts() == []


# -- members that mean harm


@pytest.mark.usefixtures("impatient")
async def test_one_member_cannot_answer_for_another(mesh: Mesh) -> None:
    node, _ = await mesh.add(), await mesh.add()
    protocol = node._parts.protocol  # type: ignore[union-attr]  # it runs
    root, absent, liar = mesh.root, NodeKey(b"x" * 32), NodeKey(b"z" * 32)
    future = protocol.ask(absent.id, ("127.0.0.1", 1), messages.Ping())
    (ident,) = protocol._questions._pending
    answer = Answered(messages.Pong(bytes(6)), True, root.certify(liar.id))
    payload = messages.encode(Message(ident, answer))
    inside = Seal(liar, root.mesh_id, root.keys)
    datagram = inside.seal(payload, node._key.id, mesh.clock(), bytes(24))
    protocol.datagram_received(datagram, ("127.0.0.1", 1))
    assert await future is None
    assert liar.id not in {known for known, _ in node.contacts()}


async def test_a_flood_of_questions_from_one_member_leaves_bounded_state(mesh: Mesh) -> None:
    node = await mesh.add()
    protocol = node._parts.protocol  # type: ignore[union-attr]  # it runs
    root, member = mesh.root, NodeKey(b"z" * 32)
    inside, rng = Seal(member, root.mesh_id, root.keys), random.Random(1)
    certificate = root.certify(member.id)
    for port in range(1, 200):
        datagram = inside.seal(ping(certificate), node._key.id, mesh.clock(), rng.randbytes(24))
        protocol.datagram_received(datagram, ("127.0.0.1", port))
    assert protocol._proving <= 16
    assert node.contacts() == []
    assert len(protocol.roster) == 1


async def test_an_answer_nobody_asked_for_changes_nothing(mesh: Mesh) -> None:
    node = await mesh.add()
    protocol = node._parts.protocol  # type: ignore[union-attr]  # it runs
    root, member = mesh.root, NodeKey(b"z" * 32)
    inside = Seal(member, root.mesh_id, root.keys)
    answer = Answered(messages.Pong(bytes(6)), True, root.certify(member.id))
    payload = messages.encode(Message(b"12345678", answer))
    protocol.datagram_received(
        inside.seal(payload, node._key.id, mesh.clock(), bytes(24)), ("127.0.0.1", 9)
    )
    assert node.counters == {"answers_unasked": 1}
    assert node.contacts() == []
    with pytest.raises(AttributeError):
        protocol.no_such_remote_call  # noqa: B018  # the attribute is the test
