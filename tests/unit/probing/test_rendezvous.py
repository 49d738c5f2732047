"""Answers go out from the port that was asked, to who may ask so often, and to nobody else."""

from __future__ import annotations

import pytest

from agent.errors import EnvironmentFault
from agent.probing import rendezvous
from agent.probing.plainport import PlainPort
from agent.probing.port import MAGIC, FakeNetwork, FakePort, Place
from agent.probing.rendezvous import Asked, Rendezvous

HERE = "192.0.2.1"
QUESTION, SAID = MAGIC + b"where am I?", MAGIC + b"there"


class World:
    """A rendezvous on a fake network, a clock, and what it was asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.network = FakeNetwork()
        self.asked: list[tuple[Place, bytes, Asked]] = []
        first, second = FakePort(self.network, HERE, 51820), FakePort(self.network, HERE, 51821)
        self.rendezvous = Rendezvous(first, second, self._answer, clock=lambda: self.now)
        first.open(self.rendezvous.heard)
        self.rendezvous.start()

    def _answer(self, place: Place, payload: bytes, asked: Asked) -> bytes | None:
        self.asked.append((place, payload, asked))
        return SAID if payload == QUESTION else None

    def asker(self, host: str, port: int = 4000) -> tuple[FakePort, list[Place]]:
        heard: list[Place] = []
        made = FakePort(self.network, host, port)
        made.open(lambda place, payload, _: heard.append(place) if payload == SAID else None)
        return made, heard

    def ask(self, asker: FakePort, port: int, times: int = 1, payload: bytes = QUESTION) -> None:
        for _ in range(times):
            asker.send((HERE, port), payload)


@pytest.fixture
def world() -> World:
    return World()


def test_the_port_that_was_asked_answers(world: World) -> None:
    asker, heard = world.asker("198.51.100.1")
    for port, asked in ((51820, Asked.WIREGUARD), (51821, Asked.SECOND)):
        world.ask(asker, port)
        assert heard.pop() == (HERE, port)
        assert world.asked.pop() == (("198.51.100.1", 4000), QUESTION, asked)
    assert world.rendezvous.answered == 2


def test_what_is_rejected_gets_no_answer(world: World) -> None:
    asker, heard = world.asker("198.51.100.1")
    world.ask(asker, 51821, payload=MAGIC + b"garbage")
    assert (heard, world.rendezvous.rejected) == ([], 1)


def test_a_source_may_ask_so_often_on_both_ports_together(world: World) -> None:
    loud, heard = world.asker("198.51.100.1")
    loud_too, _ = world.asker("198.51.100.1", 4001)  # another port is no other source
    other, other_heard = world.asker("198.51.100.2")
    burst = int(rendezvous.SOURCE_BURST)
    world.ask(loud, 51820, burst // 2)
    world.ask(loud, 51821, burst // 2 + 1)
    world.ask(loud_too, 51821)
    assert len(heard) == burst
    assert world.rendezvous.too_many == 2
    assert len(world.asked) == burst  # what is too much is not even opened
    world.ask(other, 51820)
    assert len(other_heard) == 1
    world.now += 1.0
    world.ask(loud, 51820, burst)
    assert len(heard) == burst + int(rendezvous.SOURCE_PER_S)


def test_ipv6_counts_by_the_customer(world: World) -> None:
    network = "2001:db8:0:1::"
    first, _ = world.asker(f"{network}1")
    second, _ = world.asker(f"{network}ffff:2")
    neighbour, _ = world.asker("2001:db8:0:2::1")
    world.ask(first, 51820, int(rendezvous.SOURCE_BURST))
    world.ask(second, 51820)
    assert world.rendezvous.too_many == 1
    world.ask(neighbour, 51820)
    assert world.rendezvous.too_many == 1


def test_all_together_are_bounded_and_so_is_what_is_remembered(world: World) -> None:
    hosts = [f"198.18.{number >> 8}.{number & 255}" for number in range(rendezvous.SOURCES_MAX + 9)]
    for host in hosts:
        world.rendezvous.heard((host, 1), QUESTION, HERE)
    assert len(world.asked) == int(rendezvous.ALL_BURST)
    assert len(world.rendezvous._sources) == rendezvous.SOURCES_MAX
    world.now += 1.0
    for host in hosts:
        world.rendezvous.heard((host, 1), QUESTION, HERE)
    assert len(world.asked) == int(rendezvous.ALL_BURST + rendezvous.ALL_PER_S)


def test_what_cannot_be_sent_is_counted(world: World) -> None:
    world.rendezvous.heard(("198.51.100.1", 4000), QUESTION, "203.0.113.9")  # not an address of it
    assert (world.rendezvous.answered, world.rendezvous.unsent) == (0, 1)


def test_stopped_it_leaves_the_first_port_to_its_owner(world: World) -> None:
    world.rendezvous.stop()
    world.rendezvous.stop()
    assert set(world.network.ports) == {(HERE, 51820)}


async def test_a_taken_second_port_is_a_fault() -> None:
    taken = PlainPort(0)
    taken.open(lambda *_: None)
    asked = Rendezvous(FakePort(FakeNetwork(), HERE, 1), PlainPort(taken.port), lambda *_: None)
    with pytest.raises(EnvironmentFault, match="is in use"):
        asked.start()
    taken.close()
