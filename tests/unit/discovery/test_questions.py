"""Questions in flight: repeated once, given up, and remembered a little longer. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from dht.virtual import run

from agent.discovery import liveness, messages, questions
from agent.discovery.liveness import Liveness
from agent.discovery.questions import LATE_S, Future, Pending, Questions
from agent.identity.keys import NodeKey

PEER, OTHER = NodeKey(b"p" * 32).id, NodeKey(b"o" * 32).id
ADDRESS = ("192.0.2.1", 4001)
ANSWER = messages.Pong(messages.pack_address(*ADDRESS))


class Wire:
    """Where questions go, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.sent: list[tuple[float, bytes, bool]] = []
        self.lost: list[tuple[float, Pending]] = []
        self.works = True
        self.questions = Questions(Liveness(), self._send, self._lose)

    def at(self) -> float:
        return round(self.loop.time() - self.began, 6)

    def ask(self) -> Future:
        return self.questions.ask(PEER, ADDRESS, messages.Ping())

    def _send(self, ident: bytes, pending: Pending) -> bool:
        self.sent.append((self.at(), ident, pending.repeated))
        return self.works

    def _lose(self, pending: Pending) -> None:
        self.lost.append((self.at(), pending))


def on_a_wire(test: Callable[[Wire], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        wire = Wire()
        await test(wire)
        wire.questions.close()

    def run_it() -> None:
        run(main())

    run_it.__name__ = test.__name__
    return run_it


@on_a_wire
async def test_it_is_repeated_once_given_up_and_forgotten(wire: Wire) -> None:
    asked = wire.ask()
    assert await asked is None
    assert [(at, repeated) for at, _, repeated in wire.sent] == [
        (0.0, False), (liveness.REPEAT_MIN_S, True),
    ]  # fmt: skip
    assert [at for at, _ in wire.lost] == [liveness.TIMEOUT_MIN_S]
    ident = wire.sent[0][1]
    assert wire.questions.find(ident, PEER) is not None, "a late answer still tells something"
    await asyncio.sleep(LATE_S + 0.01)
    assert wire.questions.find(ident, PEER) is None
    assert len(wire.questions) == 0


@on_a_wire
async def test_an_answer_ends_it(wire: Wire) -> None:
    asked = wire.ask()
    ident = wire.sent[0][1]
    assert wire.questions.find(ident, OTHER) is None, "nobody answers for another"
    assert wire.questions.find(ident, PEER) is not None
    wire.questions.resolve(ident, (PEER, ANSWER))
    wire.questions.resolve(ident, None)
    assert await asked == (PEER, ANSWER)
    await asyncio.sleep(5)
    assert len(wire.sent) == 1
    assert wire.lost == []


@on_a_wire
async def test_each_has_its_own_time_and_all_have_one_timer(wire: Wire) -> None:
    for _ in range(3):
        wire.ask()
        await asyncio.sleep(0.1)
    wire.questions.resolve(wire.sent[1][1], (PEER, ANSWER))
    await asyncio.sleep(2)
    assert [at for at, _, repeated in wire.sent if repeated] == [0.25, 0.45]
    assert [at for at, _ in wire.lost] == [0.75, 0.95]
    await asyncio.sleep(LATE_S)
    assert wire.questions._due == []
    assert wire.questions._timer is None


@on_a_wire
async def test_what_cannot_be_sent_is_answered_at_once(wire: Wire) -> None:
    wire.works = False
    assert wire.ask().done()
    assert len(wire.questions) == 0


@on_a_wire
async def test_questions_to_one_node_can_be_dropped(wire: Wire) -> None:
    asked, other = wire.ask(), wire.questions.ask(OTHER, ADDRESS, messages.Ping())
    wire.questions.drop(PEER)
    assert asked.done()
    assert not other.done()
    wire.questions.close()
    assert other.done()


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "PENDING_MAX", 2)

    @on_a_wire
    async def test(wire: Wire) -> None:
        asked = [wire.ask() for _ in range(3)]
        assert [one.done() for one in asked] == [False, False, True]
        assert len(wire.sent) == 2

    test()
