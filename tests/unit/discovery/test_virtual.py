"""Whole nodes in a simulated network, on virtual time: NATs, keys that change, members that go.

Nothing here waits: `run` jumps from timer to timer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from dht.root import Root, key_of
from dht.virtual import Host, Nat, Network, run

from agent.discovery import messages, rejoin, store, upkeep
from agent.discovery.contact import Contact
from agent.discovery.dhtkeys import member_key
from agent.discovery.node import Discovery
from agent.discovery.reach import Verdict
from agent.discovery.record import MemberRecord
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

EPOCH = 1_800_000_000.0
PORT = 4001
OLD_KEY, NEW_KEY = b"o" * 32, b"n" * 32
Test = Callable[["World"], Any]


class World:
    """A simulated network and the nodes in it, by number."""

    def __init__(self) -> None:
        self.network = Network(random.Random(1))
        self.root = Root("world")
        self.loop = asyncio.get_running_loop()
        self.nodes: list[Discovery] = []
        self.keys: list[NodeKey] = []
        self.hosts: list[Host] = []

    def clock(self) -> float:
        return EPOCH + self.loop.time()

    async def add(
        self,
        *via: int | str,
        address: str = "",
        nat: Nat | None = None,
        publish: bool = False,
        number: int | None = None,
        **options: Any,
    ) -> Discovery:
        """Start a node, and let it join via others (numbers) or addresses."""
        name = len(self.nodes) if number is None else number
        key = key_of(f"node {name}")
        host = self.network.host(address or f"20.0.0.{len(self.nodes)}", nat)
        root = self.root
        node = Discovery(
            key,
            root.mesh_id,
            options.pop("network_keys", root.keys),
            options.pop("verify", root.verify),
            (host.address, PORT),
            options.pop("certificate", None) or root.certify(key.id),
            clock=self.clock,
            ports=host,
            rng=random.Random(name),
            **options,
        )
        await node.start()
        self.nodes.append(node)
        self.keys.append(key)
        self.hosts.append(host)
        endpoints = [one if isinstance(one, str) else self.endpoint(one) for one in via]
        if endpoints:
            await node.bootstrap(endpoints)
        if publish:
            await node.publish_member(root.record(key, name + 1))
        return node

    def endpoint(self, number: int) -> str:
        return f"{self.hosts[number].address}:{PORT}"

    def id(self, number: int) -> NodeId:
        return self.keys[number].id

    def kill(self, number: int) -> None:
        """End a node as a power cut does."""
        parts = self.nodes[number]._running()
        parts.maintenance.cancel()
        parts.rejoin.close()
        parts.protocol.transport.abort()
        parts.protocol._questions.close()
        self.nodes[number]._parts = None

    def knows(self, number: int) -> set[int]:
        """Return who is in a node's routing table."""
        numbers = {key.id: n for n, key in enumerate(self.keys)}
        return {numbers[node] for node, _ in self.nodes[number].contacts()}

    def count(self, name: str) -> int:
        """Return a counter's sum over all nodes."""
        return sum(node.counters.get(name, 0) for node in self.nodes)


def virtual(test: Test) -> Callable[[], None]:
    """Run a test on virtual time, and stop its nodes."""

    async def main() -> None:
        world = World()
        await test(world)
        await asyncio.gather(*(node.stop() for node in world.nodes))

    def run_it() -> None:
        run(main())

    run_it.__name__ = test.__name__
    return run_it


# -- who is reached from outside


@virtual
async def test_alone_it_serves_until_shown_otherwise(world: World) -> None:
    node = await world.add(publish=True)
    assert node.reachable
    assert set(await node.members()) == {world.id(0)}


@virtual
async def test_two_and_three_serve_at_once(world: World) -> None:
    for size in (2, 3):
        if not world.nodes:
            await world.add(publish=True)
        await world.add(0, publish=True)
        everyone = set(range(size))
        assert all(world.knows(n) == everyone - {n} for n in everyone)
        assert all(node.reachable for node in world.nodes)
        for node in world.nodes:
            assert len(await node.members()) == size
    assert world.count("timeouts") == 0


@virtual
async def test_two_who_start_at_the_same_moment_find_that_they_are_reached(world: World) -> None:
    """Each has sent to the other before it hears of it, so that only probes prove anything."""
    one, two = await world.add(), await world.add()
    await asyncio.gather(one.bootstrap([world.endpoint(1)]), two.bootstrap([world.endpoint(0)]))
    await asyncio.sleep(2)
    assert world.knows(0) == {1}
    assert world.knows(1) == {0}
    assert world.count("probes") >= 1


@pytest.mark.parametrize("symmetric", [False, True], ids=["cone", "symmetric"])
def test_behind_a_nat_it_asks_and_publishes_and_stands_in_no_table(symmetric: bool) -> None:
    @virtual
    async def test(world: World) -> None:
        for number in range(5):
            await world.add(*([0] if number else []), publish=True)
        nat = world.network.nat("20.9.0.1", symmetric=symmetric)
        client = await world.add(0, address="192.168.1.2", nat=nat, publish=True)
        await asyncio.sleep(5)
        assert not client.reachable
        assert client._reach.verdicts() == {"IPv4 global": Verdict.CLIENT}
        assert all(5 not in world.knows(n) for n in range(5))
        assert world.knows(5) <= set(range(5))
        # It is found like anyone else, and finds; nobody waits for it.
        later = await world.add(1, publish=True)
        assert len(await later.members()) == 7
        assert await later.member(world.id(5)) is not None
        assert len(await client.members()) == 7
        assert later.counters.get("timeouts", 0) == 0

    test()


@virtual
async def test_a_forwarded_port_makes_a_server_of_it(world: World) -> None:
    for number in range(4):
        await world.add(*([0] if number else []))
    nat = world.network.nat("20.9.0.1")
    node = await world.add(0, address="192.168.1.2", nat=nat)
    await asyncio.sleep(3)
    assert not node.reachable
    # The operator forwards the port; the next test, less than a minute away, shows it.
    nat.forwarded[PORT] = world.hosts[4]
    nat._out["192.168.1.2", PORT, None] = PORT
    await asyncio.sleep(60)
    assert node.reachable
    assert all(4 in world.knows(n) for n in range(4))
    assert dict(world.nodes[0].contacts())[world.id(4)] == ("20.9.0.1", PORT)


@virtual
async def test_two_behind_one_nat_serve_each_other_and_nobody_else(world: World) -> None:
    for number in range(4):
        await world.add(*([0] if number else []))
    nat = world.network.nat("20.9.0.1")
    one = await world.add(0, address="192.168.1.2", nat=nat)
    two = await world.add(0, "192.168.1.2:4001", address="192.168.1.3", nat=nat)
    await asyncio.sleep(5)
    both = {"IPv4 global": Verdict.CLIENT, "IPv4 private": Verdict.REACHED}
    assert one._reach.verdicts() == two._reach.verdicts() == both
    assert 5 in world.knows(4)
    assert 4 in world.knows(5)
    assert all(not {4, 5} & world.knows(n) for n in range(4))
    assert one.reachable, "it serves somebody"


@virtual
async def test_addresses_of_a_lan_are_not_offered_to_who_asks_from_outside(world: World) -> None:
    server = await world.add()
    protocol = server._running().protocol
    mesh_id = world.root.mesh_id
    near = Contact(mesh_id, key_of("near").id, "192.168.1.9", PORT)
    far = Contact(mesh_id, key_of("far").id, "20.0.7.7", PORT)
    for contact in (near, far):
        protocol.router.add_contact(contact)
    asker = key_of("asker").id
    for host, offered in (("192.168.1.2", {near.packed, far.packed}), ("20.5.5.5", {far.packed})):
        reply = protocol._answers.reply(asker, (host, 1), messages.FindNode(bytes(20)), 1000)
        assert set(reply.contacts) == offered


@virtual
async def test_when_nobody_can_test_it_serves(world: World) -> None:
    busy, _ = await world.add(), await world.add(0)
    busy._running().protocol._answers._tests._rate = 0.0
    busy._running().protocol._answers._tests._left = 0.0
    node = await world.add(0)
    await asyncio.sleep(2)
    assert node._reach.verdicts() == {"IPv4 global": Verdict.ASSUMED}
    assert world.knows(0) == {1, 2}
    busy._running().protocol._answers._tests._rate = 10.0
    await asyncio.sleep(40)
    assert node._reach.verdicts() == {"IPv4 global": Verdict.REACHED}


@virtual
async def test_tests_for_others_are_few_and_small(world: World) -> None:
    for number in range(3):
        await world.add(*([0] if number else []))
    asker, tester = world.nodes[2]._running().protocol, world.nodes[0]
    before = world.count("knocks")
    size_before, sent_before = world.network.sent_bytes, world.network.sent
    for _ in range(300):
        asker.ask(world.id(0), (world.hosts[0].address, PORT), messages.TestMe(b"12345678"))
    await asyncio.sleep(3)
    assert 0 < world.count("knocks") - before <= 64 + 16 * 4
    assert tester.counters["question_testme"] >= 300
    # No amplifier: what the tests made others send is less than what was sent to ask for them.
    assert world.network.sent - sent_before < 300 * 4
    assert (world.network.sent_bytes - size_before) / 300 < 2 * 4 * 200


@virtual
async def test_an_operator_who_says_so_is_believed(world: World) -> None:
    await world.add()
    never, always = await world.add(0, reachable=False), await world.add(0, reachable=True)
    await asyncio.sleep(1)
    assert not never.reachable
    assert always.reachable
    assert world.knows(0) == {2}


# -- the network key changes


@virtual
async def test_a_new_network_key_costs_no_contact_and_no_answer(world: World) -> None:
    old = NetworkKeys.single(OLD_KEY)
    for number in range(4):
        await world.add(*([0] if number else []), publish=True, network_keys=old)
    both_old, both_new = (NetworkKeys(k, (NEW_KEY, OLD_KEY)) for k in (OLD_KEY, NEW_KEY))
    for keys in (both_old, both_new, NetworkKeys.single(NEW_KEY)):
        for node in world.nodes:
            node.set_network_keys(keys)
            # Now some have it and some do not, in each order.
            for asker in world.nodes:
                assert len(await asker.members()) == 4
                assert await asker.member(world.id(0)) is not None
            await asyncio.sleep(40)
            assert all(len(world.knows(n)) == 3 for n in range(4))
    assert world.count("refused_foreign") == 0
    assert world.count("timeouts") == 0


@virtual
async def test_a_late_member_is_served_until_the_old_key_is_retired(world: World) -> None:
    old, both = NetworkKeys.single(OLD_KEY), NetworkKeys(NEW_KEY, (NEW_KEY, OLD_KEY))
    for number in range(4):
        await world.add(*([0] if number else []), publish=True, network_keys=old)
    late = world.nodes[3]
    for node in world.nodes[:3]:
        node.set_network_keys(both)
    assert len(await late.members()) == 4
    await asyncio.sleep(120)
    assert late.counters.get("timeouts", 0) == 0, "answers come under the key that it has"
    assert world.knows(3) == {0, 1, 2}
    assert all(3 in world.knows(n) for n in range(3)), "a repeat reaches it under the old one"
    for node in world.nodes[:3]:
        node.set_network_keys(NetworkKeys.single(NEW_KEY))
    await asyncio.sleep(120)
    assert world.knows(3) == set()
    assert all(3 not in world.knows(n) for n in range(3))


@virtual
async def test_a_newcomer_with_the_old_key_alone_still_gets_in(world: World) -> None:
    both = NetworkKeys(NEW_KEY, (NEW_KEY, OLD_KEY))
    await world.add(network_keys=both)
    await world.add(0, network_keys=NetworkKeys.single(OLD_KEY))
    assert world.knows(1) == {0}
    await world.add(0, network_keys=NetworkKeys(OLD_KEY, (NEW_KEY, OLD_KEY)))
    await asyncio.sleep(1)
    assert world.knows(0) == {1, 2}


# -- members that are none any more, and certificates that change


@virtual
async def test_after_a_recheck_a_revoked_member_is_out_at_once(world: World) -> None:
    for number in range(5):
        await world.add(*([0] if number else []), publish=True)
    everyone, gone = set(map(world.id, range(5))), world.id(2)
    for node in world.nodes:
        assert set(await node.members()) == everyone
    seen = world.loop.time()
    world.root.revoked.add(gone)
    for number in (0, 1, 3, 4):
        world.nodes[number].recheck()
    assert world.loop.time() == seen, "no time has passed"
    for number in (0, 1, 3, 4):
        node, protocol = world.nodes[number], world.nodes[number]._running().protocol
        assert 2 not in world.knows(number)
        assert not protocol.roster.knows(gone)
        assert gone.ed25519 not in node._store._per_node
        assert gone.ed25519 not in node._found._per_node
        assert gone not in node._told
        assert set(await node.members()) == everyone - {gone}
        assert await node.member(gone) is None
    sent = [world.nodes[n].counters["sent"] for n in (0, 1, 3, 4)]
    assert await world.nodes[2].ping(world.id(0), (world.hosts[0].address, PORT)) is None
    assert world.nodes[0].counters["sent"] == sent[0], "not an answer"
    assert world.nodes[0].counters["refused_not_member"] >= 1
    assert await world.nodes[0].ping(gone, (world.hosts[2].address, PORT)) is None


@virtual
async def test_questions_to_a_revoked_member_end_at_once(world: World) -> None:
    one, _ = await world.add(), await world.add(0)
    asked = one._running().protocol.ask(
        world.id(1), (world.hosts[1].address, PORT), messages.Ping()
    )
    world.root.revoked.add(world.id(1))
    one.recheck()
    assert asked.done()
    assert asked.result() is None


@virtual
async def test_an_expired_member_is_out_within_seconds_by_itself(world: World) -> None:
    for number in range(3):
        await world.add(*([0] if number else []), publish=True)
    key = key_of("node 3")
    until = world.clock() + 60
    node = await world.add(
        0, number=3, certificate=world.root.certify(key.id, until), publish=False
    )
    record = MemberRecord(node=key.id.ed25519, certificate=world.root.certify(key.id, until))
    await node.publish_member(record)
    assert len(await world.nodes[1].members()) == 4
    await asyncio.sleep(until - world.clock() + 3)
    assert len(await world.nodes[1].members()) == 3
    refused = world.nodes[0].counters.get("refused_not_member", 0)
    assert await node.ping(world.id(0), (world.hosts[0].address, PORT)) is None
    assert world.nodes[0].counters["refused_not_member"] > refused
    await asyncio.sleep(90)
    assert all(3 not in world.knows(n) for n in range(3))


@virtual
async def test_a_cheap_look_at_the_members_spares_the_certificates(world: World) -> None:
    verified: list[bytes] = []
    gone: set[NodeId] = set()

    def verify(certificate: bytes, now: float) -> NodeId:
        verified.append(certificate)
        return world.root.verify(certificate, now)

    def is_member(node: NodeId, now: float) -> bool:
        return node not in gone

    one = await world.add(publish=True, verify=verify, is_member=is_member)
    await world.add(0, publish=True)
    await world.add(0, publish=True)
    await asyncio.sleep(5)
    before = len(verified)
    for _ in range(30):
        assert len(await one.members()) == 3
        await asyncio.sleep(3)
    assert len(verified) == before
    gone.add(world.id(1))
    world.root.revoked.add(world.id(1))
    await asyncio.sleep(3)
    assert set(await one.members()) == {world.id(0), world.id(2)}


@virtual
async def test_a_new_certificate_is_in_all_that_is_said(world: World) -> None:
    one, two = await world.add(publish=True), await world.add(0, publish=True)
    await one.announce("heads", b"", 60)
    renewed = world.root.certify(world.id(0), EPOCH * 2)
    one.set_certificate(renewed)
    one.set_certificate(renewed)
    await asyncio.sleep(2)
    found = await two.member(world.id(0))
    assert found is not None
    assert found.certificate == renewed
    assert [r.certificate for r in await two.providers("heads")] == [renewed]
    assert two._running().protocol.roster._known[world.id(0)].certificate == renewed


# -- what is told to the daemon


@virtual
async def test_members_are_told_once_and_again_when_they_say_something_new(world: World) -> None:
    told: list[tuple[int, tuple[str, ...]]] = []

    def on_member(record: MemberRecord) -> None:
        number = next(n for n, key in enumerate(world.keys) if key.id == record.id)
        told.append((number, record.wireguard_endpoints))
        raise RuntimeError("what goes wrong there does no harm here")

    await world.add(publish=True, on_member=on_member)
    await world.add(0, publish=True)
    record = world.root.record(world.keys[1], 2)
    assert told == [(1, record.wireguard_endpoints)]
    await asyncio.sleep(400)  # it has repeated its record meanwhile
    assert len(told) == 1
    changed = world.root.record(world.keys[1], 7)
    await world.nodes[1].publish_member(changed)
    assert told[1:] == [(1, changed.wireguard_endpoints)]
    assert (await world.nodes[0].members()).keys() == {world.id(0), world.id(1)}
    assert len(told) == 2


@virtual
async def test_a_record_that_came_by_gossip_is_taken_in(world: World) -> None:
    told: list[NodeId] = []
    here = await world.add(on_member=lambda record: told.append(record.id))
    elsewhere = await world.add(publish=True)  # not connected
    raw = elsewhere.own_record()
    assert raw is not None
    assert here.own_record() is None
    assert here.take_member(raw)
    assert here.take_member(raw), "again it is as genuine"
    assert not here.take_member(raw[:-1])
    assert told == [world.id(1)]
    assert set(await here.members()) == {world.id(1)}


@virtual
async def test_a_ping_tells_the_round_trip(world: World) -> None:
    one, _ = await world.add(), await world.add(0)
    round_trip = await one.ping(world.id(1))
    assert round_trip is not None
    assert 0.002 <= round_trip < 0.3
    assert await one.ping(world.id(1), (world.hosts[1].address, PORT), 0.0001) is None
    assert await one.ping(key_of("nobody").id) is None
    before = world.loop.time()
    assert await one.ping(world.id(1), ("20.0.5.5", PORT), 0.5) is None
    assert world.loop.time() - before == pytest.approx(0.5)


# -- coming back


@virtual
async def test_remembered_peers_are_greeted_before_any_address(world: World) -> None:
    for number in range(8):
        await world.add(*([0] if number else []))
    saved = world.nodes[7].save()
    await world.nodes[7].stop()
    unasked = world.network.host("20.8.8.8")
    heard: list[bytes] = []

    class Ear(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            heard.append(data)

    await unasked.open(Ear, "20.8.8.8", PORT)
    await asyncio.sleep(1)
    again = await world.add(number=7)
    again.load(saved)
    assert await again.bootstrap(["20.8.8.8:4001"] * 2) >= rejoin.ENOUGH
    assert heard == []
    assert len(again.contacts()) == 7


@virtual
async def test_a_restart_works_without_any_of_its_bootstraps(world: World) -> None:
    for number in range(6):
        await world.add(*([0, 1] if number > 1 else [0] if number else []))
    saved = world.nodes[5].save()
    await world.nodes[5].stop()
    for number in (0, 1, 2):
        world.kill(number)
    again = await world.add(number=5)
    again.load(saved)
    assert await again.bootstrap([world.endpoint(0), world.endpoint(1)]) == 2
    assert world.knows(6) >= {3, 4}


@virtual
async def test_names_are_resolved_anew_at_each_try(world: World) -> None:
    await world.add()
    asked: list[float] = []

    async def resolve(endpoints: Any) -> list[tuple[str, int]]:
        asked.append(world.loop.time())
        return [(world.hosts[0].address, PORT)] if len(asked) > 3 else []

    real, rejoin.resolve = rejoin.resolve, resolve
    try:
        node = await world.add("mesh.example:4001")
        assert node.contacts() == []
        await asyncio.sleep(60)
    finally:
        rejoin.resolve = real
    assert world.knows(1) == {0}
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert waits[:3] == sorted(waits[:3]), "less and less often"


@virtual
async def test_two_halves_of_a_mesh_grow_together_again(world: World) -> None:
    for number in range(3):
        await world.add(*([0] if number else []))
    await world.add(address="20.0.1.3")
    # It knows the others' address, but nobody was there when it started.
    wall = world.network.hosts.pop(world.hosts[0].address)
    await world.add(3, 0, address="20.0.1.4")
    assert world.knows(4) == {3}
    world.network.hosts[wall.address] = wall
    await asyncio.sleep(upkeep.FIRST_REFRESH_S * 1.5 + upkeep.REFRESH_S * 3)
    assert world.knows(4) == {0, 1, 2, 3}
    assert 4 in world.knows(0)


# -- upkeep


@virtual
async def test_pings_are_bounded_whatever_the_size_of_the_table(world: World) -> None:
    node = await world.add()
    protocol = node._running().protocol
    asked: list[NodeId] = []
    real = protocol.ask

    def ask(peer: Any, address: Any, question: messages.Question) -> Any:
        if isinstance(question, messages.Ping):
            asked.append(peer)
        return real(peer, address, question)

    protocol.ask = ask
    for number in range(200):
        contact = Contact(world.root.mesh_id, key_of(f"c{number}").id, f"20.1.0.{number}", PORT)
        protocol.router.add_contact(contact)
    known = len(node.contacts())
    assert known > 40
    await asyncio.sleep(20)
    assert 0 < len(asked) <= 20 * upkeep.PINGS_PER_TICK + 1
    assert len(set(asked)) == len(asked), "each in its turn"


@virtual
async def test_polling_costs_a_few_datagrams(world: World) -> None:
    for number in range(16):
        await world.add(*([0] if number else []), publish=True)
    asker = world.nodes[5]
    assert len(await asker.members()) == 16
    await asyncio.sleep(1)
    before = asker.counters["sent"]
    assert len(await asker.members()) == 16
    assert asker.counters["sent"] - before <= 2, "nobody else asks anything meanwhile"


@virtual
async def test_a_poll_sees_news_at_once_and_survives_the_death_of_those_it_asks(
    world: World,
) -> None:
    for number in range(16):
        await world.add(*([0] if number else []), publish=True)
    asker = world.nodes[5]
    assert await asker.providers("heads") == []
    await world.nodes[9].announce("heads", b"new", 60)
    assert [r.payload for r in await asker.providers("heads")] == [b"new"]
    for number in (0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12):
        world.kill(number)
    await world.nodes[9].announce("heads", b"newer", 60)
    for _ in range(3):
        found = await asker.providers("heads")
    assert [r.payload for r in found] == [b"newer"]


# -- the listing


def test_a_listing_beyond_one_set_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LISTING_MAX", 3)
    monkeypatch.setattr("agent.discovery.node.MEMBER_TTL_S", 60.0)
    monkeypatch.setattr("agent.discovery.listing.LISTING_FULL", 2)

    @virtual
    async def test(world: World) -> None:
        for number in range(12):
            await world.add(*([0] if number else []), publish=True)
        everyone = {key.id for key in world.keys}
        for number in (0, 5, 11):
            assert set(await world.nodes[number].members()) == everyone
        # A newcomer finds no room in the root, and is in the news.
        await world.add(1, publish=True)
        assert world.id(12) in await world.nodes[5].members()
        # Who is gone is listed until its record has run out.
        world.kill(12)
        await asyncio.sleep(62)
        for _ in range(20):
            listed = set(await world.nodes[5].members())
        assert listed == everyone

    test()


@virtual
async def test_records_are_stored_anew_when_the_mesh_has_grown(world: World) -> None:
    first = await world.add(publish=True)
    before = first.own_record()
    for _ in range(20):
        await world.add(0)
    await asyncio.sleep(30)
    assert first.own_record() != before
    assert await world.nodes[20].member(world.id(0)) is not None


@virtual
async def test_two_liars_do_not_make_a_node_repeat_itself(world: World) -> None:
    for number in range(8):
        await world.add(*([0] if number else []))
    for liar in (1, 2):
        answers = world.nodes[liar]._running().protocol._answers
        honest = answers.reply

        def reply(*rest: Any, honest: Any = honest) -> Any:
            if isinstance(rest[2], messages.Store):
                return messages.Stored(False, 2**62)
            return honest(*rest)

        answers.reply = reply
    await world.nodes[5].announce("heads", b"", 60)
    found = await world.nodes[6].providers("heads")
    assert [record.seq for record in found] == [pytest.approx(world.clock() * 1000, abs=3000)]


# -- members that mean harm


def make_hostile(world: World, number: int, stale: dict[bytes, bytes]) -> None:
    """Make a member lie: wrong nodes, forged, old, foreign and oversized records, wrong answers."""
    rng, liar = random.Random(number), key_of("liar")

    def nobody() -> bytes:
        unknown = NodeId(rng.randbytes(32))
        return Contact(world.root.mesh_id, unknown, "20.3.3.3", PORT).packed

    def reply(sender: NodeId, address: Any, question: Any, room: int) -> Any:
        match question:
            case messages.FindNode():
                return messages.Contacts(tuple(nobody() for _ in range(10)))
            case messages.FindRecords(key):
                forged = world.root.record(liar, 1)
                forged = msgspec.structs.replace(forged, node=world.keys[5].id.ed25519)
                raw = b"M" + rng.randbytes(64) + msgspec.msgpack.encode(forged)[:300]
                raws = (raw, rng.randbytes(60), b"", stale.get(key, b""))
                return messages.Records(raws, 256, (), True)
            case messages.Store():
                return messages.Stored(number % 2 == 0, 2**63 - 1)
            case _:
                return messages.Stored(True, 0)

    world.nodes[number]._running().protocol._answers.reply = reply


@virtual
async def test_twenty_nodes_with_three_hostile_and_then_a_third_gone(world: World) -> None:
    for number in range(20):
        await world.add(*([0] if number else []), publish=True)
    everyone = {key.id for key in world.keys}
    for number in (0, 7, 19):
        assert set(await world.nodes[number].members()) == everyone
    assert world.count("timeouts") == 0

    # Three lie; they know the old records and give those out as the newest.
    stale = {}
    for number, node in enumerate(world.nodes):
        raw = node.own_record()
        assert raw is not None
        stale[member_key(world.root.mesh_id, world.id(number))] = raw
    await asyncio.sleep(1)
    hostile = (3, 9, 15)
    for number in hostile:
        make_hostile(world, number, stale)
    honest = [n for n in range(20) if n not in hostile]

    async def change_and_find(number: int) -> None:
        node, asker = world.nodes[number], world.nodes[honest[-1 - number // 3]]
        assert await node.publish_member(world.root.record(world.keys[number], 77)) >= 7
        found = await asker.member(world.id(number))
        assert found is not None
        assert found.wireguard_endpoints[0].endswith(":77")

    await asyncio.gather(*map(change_and_find, honest[:6]))
    everybody, again, nobody = await asyncio.gather(
        world.nodes[1].members(), world.nodes[2].members(), world.nodes[4].providers("nothing")
    )
    assert set(everybody) == set(again) == everyone
    assert nobody == []

    # A third of all dies: what they said stays, what is new is found, and none of it takes 2 s.
    for number in (0, 4, 6, 8, 11, 14, 17):
        world.kill(number)
    began = world.loop.time()
    kept, found_by = await asyncio.gather(
        world.nodes[1].announce("head", b"after", 60), world.nodes[10].member(world.id(5))
    )
    assert kept >= 5
    assert found_by is not None
    assert world.loop.time() - began < 2
    for found in await asyncio.gather(*(world.nodes[n].providers("head") for n in (2, 18))):
        assert [r.payload for r in found] == [b"after"]
