"""Coming back, and keeping in touch: whole nodes on virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from dht.root import key_of
from dht.world import PORT, World, virtual

from agent.discovery import messages, rejoin, upkeep
from agent.discovery.contact import Contact
from agent.identity.keys import NodeId

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


@virtual
async def test_when_all_were_gone_it_comes_back_by_itself(world: World) -> None:
    first, _ = await world.add(), await world.add(0)
    await first.stop()
    await asyncio.sleep(20)
    assert world.knows(1) == set()
    await first.start()
    await asyncio.sleep(upkeep.RETRY_MAX_S + 2)
    assert world.knows(1) == {0}


# -- upkeep


@virtual
async def test_quiet_contacts_are_asked_and_records_repeated(world: World) -> None:
    first, _ = await world.add(), await world.add(0)
    await first.announce("head", b"", 60)
    before = (await world.nodes[1].providers("head"))[0].seq
    await asyncio.sleep(22)
    assert (await world.nodes[1].providers("head"))[0].seq > before
    world.kill(1)
    await asyncio.sleep(upkeep.QUIET_S + 3)
    assert first.contacts() == []


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
