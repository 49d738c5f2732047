"""Members that mean harm: whole nodes on virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
from dht.root import key_of
from dht.world import PORT, World, virtual

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.dhtkeys import member_key
from agent.identity.keys import NodeId

# -- members that mean harm


def make_hostile(world: World, number: int, stale: dict[bytes, bytes], *, victim: int = 0) -> None:
    """Make a member lie: wrong nodes, forged, old, foreign and oversized records, wrong answers.

    The forged ones are in the name of the victim.
    """
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
                forged = msgspec.structs.replace(forged, node=world.id(victim).ed25519)
                raw = b"M" + rng.randbytes(64) + msgspec.msgpack.encode(forged)[:300]
                raws = (raw, rng.randbytes(60), b"", stale.get(key, b""))
                return messages.Records(raws, 256, (), True)
            case messages.Store():
                return messages.Stored(number % 2 == 0, 2**63 - 1)
            case _:
                return messages.Stored(True, 0)

    world.nodes[number]._running().protocol._answers.reply = reply


@virtual
async def test_a_wrong_address_for_a_known_node_is_not_believed(world: World) -> None:
    for number in range(3):
        await world.add(*([0] if number else []))
    wrong = Contact(world.root.mesh_id, world.id(1), "20.3.3.3", PORT).packed
    world.nodes[2]._running().protocol._answers._near = lambda *_: (wrong,)
    await world.nodes[0].announce("head", b"", 60)
    await world.nodes[0].providers("head")
    assert world.nodes[0].counters.get("timeouts", 0) == 0
    right = (world.hosts[1].address, PORT)
    assert dict(world.nodes[0].contacts())[world.id(1)] == right
    walker = world.nodes[0]._running().walker
    assert [contact.address for contact in walker.usable([wrong])] == [right]


@virtual
async def test_a_hostile_sequence_hint_does_not_use_up_the_numbers(world: World) -> None:
    node, _ = await world.add(), await world.add(0)
    make_hostile(world, 1, {})
    await node.announce("head", b"", 60)
    found = await node.providers("head")
    assert [r.id for r in found] == [world.id(0)]
    assert found[0].seq <= (world.clock() + 121) * 1000


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
        make_hostile(world, number, stale, victim=5)
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
