"""What changes while nodes run: the network key, who is a member, certificates."""

from __future__ import annotations

import asyncio

from dht.root import key_of
from dht.world import EPOCH, PORT, World, virtual

from agent.discovery import messages
from agent.discovery.record import MemberRecord
from agent.identity.keys import NodeId
from agent.membership.networkkeys import NetworkKeys

OLD_KEY, NEW_KEY = b"o" * 32, b"n" * 32


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
        assert gone not in node._told._told
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
    assert two._running().protocol.roster._known[world.id(0).ed25519].certificate == renewed


@virtual
async def test_who_was_refused_and_has_a_certificate_now_gets_in(world: World) -> None:
    one = await world.add()
    wrong = world.root.certify(key_of("somebody else").id)
    two = await world.add(certificate=wrong)
    assert await two.bootstrap([world.endpoint(0)]) == 0
    assert one.counters.keys() == {"refused_not_member"}
    await two.publish_member(world.root.record(world.keys[1], 1))
    assert await two.bootstrap([world.endpoint(0)]) == 1
    assert world.knows(0) == {1}


@virtual
async def test_a_member_that_was_forgotten_shows_its_certificate_again(world: World) -> None:
    one, two = await world.add(), await world.add(0)
    protocol = one._running().protocol
    for question in (messages.Ping(), messages.FindRecords(bytes(20), bytes(8), bytes(1000))):
        protocol.roster._known.clear()
        reply = await two._running().protocol.ask(
            world.id(0), (world.hosts[0].address, PORT), question
        )
        assert reply is not None
        assert protocol.roster.knows(world.id(1))
    assert two.counters.get("timeouts", 0) == 0
