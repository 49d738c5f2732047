"""Who is found to be reached from outside, and who is not: whole nodes behind simulated NATs."""

from __future__ import annotations

import asyncio

import pytest
from dht.root import key_of
from dht.world import PORT, World, virtual

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.reach import Verdict

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
