"""The client's half, on virtual time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_ends import ANNA, BERT, RELAY, seal_of

from agent.relay import messages
from agent.relay.client import (
    ASK_AGAIN_S,
    GIVE_UP_S,
    KEEP_S,
    LOST_S,
    Ask,
    Lost,
    Output,
    Ready,
    RelayClient,
    Send,
    State,
)
from agent.relay.door import Door
from agent.relay.messages import Allocate, Allocated, Refresh, Release
from agent.relay.pairs import Place

NOW = 1_800_000_000.0
HOST = "192.0.2.9"
GRANT = Allocated(b"an id :)", 51840, 51841, 120.0, 10**9, 443)
HOME, AWAY = ("198.51.100.7", 6000), ("198.51.100.8", 7000)


class World:
    """A client, and a relay's door that answers after `rtt_s` while it is `up`."""

    def __init__(self, rtt_s: float = 0.02) -> None:
        self.now, self.rtt_s, self.up, self.place = NOW, rtt_s, True, HOME
        self.client = RelayClient(BERT.id, HOST, seal_of(ANNA, RELAY), Random(3), NOW)
        self.door = Door(GRANT.id, seal_of(RELAY, ANNA), bytes(32))
        self.seat: Place | None = None
        self.peer_open = True
        self.out: list[Output] = []
        self.answers: list[tuple[float, bytes]] = []
        self.sent = 0

    def run(self, seconds: float) -> list[Output]:
        """Let time pass; return what the client put out meanwhile."""
        begun, end = len(self.out), self.now + seconds
        self.drain()
        while True:
            moments = [at for at, _ in self.answers]
            if self.client.wakes_at is not None:
                moments.append(self.client.wakes_at)
            if min(moments, default=end) >= end:
                self.now = end
                return self.out[begun:]
            self.now = max(self.now, min(moments))
            while self.answers and self.answers[0][0] <= self.now:
                self.client.received(self.answers.pop(0)[1], (HOST, GRANT.port), self.now)
            self.client.tick(self.now)
            self.drain()

    def drain(self) -> None:
        for output in self.client.take():
            self.out.append(output)
            if isinstance(output, Send) and output.to == (HOST, GRANT.port):
                self.sent += 1
                if self.up:
                    self.hear(output.datagram)

    def hear(self, datagram: bytes) -> None:
        taken = self.door.take(
            datagram, self.place, self.seat, self.now, bytes(24), peer_open=self.peer_open
        )
        if taken.opened:
            self.seat = self.place
        if taken.answer:
            self.answers.append((self.now + self.rtt_s, taken.answer))

    def grant(self) -> None:
        self.client.answered(messages.encode(GRANT), self.now)

    def opened(self) -> World:
        self.run(0)
        self.grant()
        self.run(1)
        assert self.client.state is State.OPEN
        return self


def asked(out: list[Output]) -> list[messages.Request]:
    return [messages.decode_request(each.request) for each in out if isinstance(each, Ask)]


def test_from_the_request_to_an_endpoint_in_two_round_trips() -> None:
    world = World(rtt_s=0.1)
    assert asked(world.run(0)) == [Allocate(BERT.id.ed25519)]
    world.grant()
    assert [each for each in world.run(0.19) if isinstance(each, Ready)] == []
    ready = [each for each in world.run(0.03) if isinstance(each, Ready)]
    assert ready == [Ready((HOST, GRANT.port), HOME, True)]


@pytest.mark.parametrize("rtt_s", [0.001, 0.1, 0.4, 1.0, 2.5])
def test_it_opens_at_any_round_trip_time(rtt_s: float) -> None:
    world = World(rtt_s)
    world.run(0)
    world.grant()
    world.run(4 * rtt_s + 1)
    assert world.client.state is State.OPEN
    assert world.sent <= 8


@given(st.integers(0, 2**32), st.floats(0.0, 0.6))
def test_it_opens_over_a_line_that_loses(seed: int, loss: float) -> None:
    chance = Random(seed)
    world = World(0.05)
    hear = world.hear
    world.hear = lambda datagram: None if chance.random() < loss else hear(datagram)  # type: ignore[method-assign]
    world.run(0)
    world.grant()
    world.run(GIVE_UP_S)
    # Each try takes two datagrams there; over 10 tries in the time, at 40 % each or better.
    assert world.client.state is State.OPEN or world.sent > 8


def test_it_is_quiet_while_open_and_refreshes() -> None:
    world = World().opened()
    before = world.sent
    out = world.run(100)
    assert 100 / KEEP_S <= world.sent - before <= 100 / (0.8 * KEEP_S) + 1
    assert asked(out)[:1] == [Refresh(GRANT.id)]
    assert not any(isinstance(each, Ready | Lost) for each in out)


def test_it_looks_often_for_the_peer_at_first() -> None:
    world = World()
    world.peer_open = False
    world.opened()
    assert [e.peer_open for e in world.out if isinstance(e, Ready)] == [False]
    world.run(4)
    world.peer_open = True
    assert [e.peer_open for e in world.run(0.3) if isinstance(e, Ready)] == [True]
    world.peer_open = False
    before = world.sent
    world.run(100)
    assert world.sent - before < 70


def test_a_new_place_is_found_and_told() -> None:
    world = World().opened()
    world.place = AWAY
    ready = [each for each in world.run(KEEP_S + 1) if isinstance(each, Ready)]
    assert ready == [Ready((HOST, GRANT.port), AWAY, True)]
    world.place = HOME
    world.client.reopen(world.now)
    assert [e.seen for e in world.run(0.1) if isinstance(e, Ready)] == [HOME]


def test_a_silent_relay_is_lost_and_comes_back() -> None:
    world = World().opened()
    world.up = False
    out = world.run(LOST_S + KEEP_S)
    assert [each.reason for each in out if isinstance(each, Lost)] == ["the relay is silent"]
    assert world.client.state is State.OPENING
    world.up = True
    assert any(isinstance(each, Ready) for each in world.run(5))


def test_a_blocked_port_is_given_up() -> None:
    world = World()
    world.up = False
    world.run(0)
    world.grant()
    lost = [each for each in world.run(GIVE_UP_S + 5) if isinstance(each, Lost)]
    assert len(lost) == 1 and "UDP to it may be blocked" in lost[0].reason
    assert world.client.state is State.FAILED
    assert world.client.wakes_at is None
    assert world.sent < 20


def test_a_relay_that_does_not_answer_is_asked_again_for_a_while() -> None:
    world = World()
    out = world.run(GIVE_UP_S + ASK_AGAIN_S)
    assert asked(out) == [Allocate(BERT.id.ed25519)] * int(GIVE_UP_S / ASK_AGAIN_S)
    assert [each for each in out if isinstance(each, Lost)] == [Lost("the relay does not answer")]


def test_a_refusal_is_final_and_a_fault_is_not() -> None:
    world = World()
    world.run(0)
    world.client.refused("no answer", final=False, now=world.now)
    assert world.client.state is State.ASKING
    world.client.refused("it is full", final=True, now=world.now)
    assert world.run(60) == [Lost("it is full")]


def test_a_refresh_that_fails_is_repeated_until_it_has_expired() -> None:
    world = World().opened()
    world.run(GRANT.lifetime_s / 3)
    world.client.refused("no answer", final=False, now=world.now)
    assert asked(world.run(ASK_AGAIN_S + 1)) == [Refresh(GRANT.id)]
    world.run(GRANT.lifetime_s)
    world.client.refused("no answer", final=False, now=world.now)
    assert world.client.state is State.FAILED


def test_an_allocation_that_is_new_is_opened_anew() -> None:
    world = World().opened()
    new = Allocated(b"another!", 51850, 51851, 120.0, 1, None)
    world.client.answered(messages.encode(new), world.now)
    sent = [each for each in world.client.take() if isinstance(each, Send)]
    assert [each.to for each in sent] == [(HOST, 51850)]
    assert world.client.allocated == new


def test_what_the_peer_told_is_opened_without_asking_first() -> None:
    world = World()
    world.client.take()
    world.client.joined(GRANT, world.now)
    assert any(isinstance(each, Ready) for each in world.run(0.2))


def test_closing_gives_it_back() -> None:
    world = World().opened()
    world.client.close()
    assert asked(world.run(60)) == [Release(GRANT.id)]
    assert world.client.state is State.CLOSED
    world.grant()
    assert world.client.state is State.CLOSED


def test_nonsense_for_an_answer_ends_it() -> None:
    world = World()
    world.run(0)
    world.client.answered(b"nonsense", world.now)
    assert world.client.state is State.FAILED


def test_only_the_relays_port_is_heard() -> None:
    world = World()
    world.run(0)
    world.grant()
    world.drain()
    answer = world.answers[0][1]
    for source in ((HOST, 1), (HOME[0], GRANT.port)):
        assert not world.client.received(answer, source, world.now)
    assert not world.client.received(b"\x04\0\0\0data", (HOST, GRANT.port), world.now)
    assert world.client.received(answer, (HOST, GRANT.port), world.now)
    assert world.client.received(answer, (HOST, GRANT.port), world.now)  # again: no effect
    world.drain()
    assert world.sent == 2
