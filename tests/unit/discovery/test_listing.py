"""Finding all members, being told of them, and polling for little: whole nodes on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dht.root import key_of
from dht.world import PORT, World, virtual

from agent.discovery import messages, store
from agent.discovery.record import MemberRecord
from agent.identity.keys import NodeId

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
