"""What an owner commands, when it holds back, and what it says when a head refuses."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from agent.deploy import executor
from agent.deploy.executor import Executor
from agent.deploy.messages import AskHead, Drop, Facts, HeadState, Keep, Request
from agent.deploy.wish import Wish
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.ownership.lease import Token
from agent.ownership.owner import Holding, Phase, Report

OWN, HEAD, OTHER = (NodeKey(bytes([n]) * 32).id for n in (1, 2, 3))
TOKEN, LATER = Token(4, OWN.ed25519), Token(5, OWN.ed25519)


class Setup:
    """An executor with leases to set and heads that answer from a script."""

    def __init__(self) -> None:
        self.holdings: tuple[Holding, ...] = ()
        self.wish = Wish(name="m", model="covey-mini", author=bytes(32), generation=1, at=2**40)
        self.asked: list[tuple[NodeId, Request]] = []
        self.answers: dict[NodeId, Any] = {}
        self.adopted: list[str] = []
        self.is_restored = False
        keeper: Any = SimpleNamespace(
            book=SimpleNamespace(find=lambda _: self.wish), adopt_orphans=self._adopt,
            restored=lambda _: self.is_restored,
        )  # fmt: skip
        self.executor = Executor(self, keeper, self._ask)
        self.task = asyncio.create_task(self.executor.follow())

    def owned(self) -> dict[str, tuple[Holding, ...]]:
        return {"m": self.holdings} if self.holdings else {}

    def hold(self, *holdings: Holding) -> None:
        self.holdings = holdings
        self.executor.changed()

    async def _adopt(self, names: Any) -> None:
        self.adopted += names

    async def _ask(self, node: NodeId, request: Request, timeout_s: float) -> Any:
        self.asked.append((node, request))
        answer = self.answers.get(node, HeadState("m", "ready", revision=7))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def runs(self, head: NodeId, phase: str, revision: int, generation: int = 1) -> None:
        wish = (str(self.wish.author_id), generation)
        self.answers[head] = HeadState("m", phase, revision=revision, wish=wish)

    async def until(self, what: Callable[[], Any]) -> Any:
        async with asyncio.timeout(20):
            while True:
                if found := what():
                    return found
                await asyncio.sleep(0.01)


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(executor, "_POLL_S", 0.01)
    monkeypatch.setattr(executor, "_RETRY_S", 0.01)
    monkeypatch.setattr(executor, "_ADOPT_INTERVAL_S", 0.0)
    made = Setup()
    yield made
    made.task.cancel()
    await asyncio.wait([made.task])


def holding(phase: Phase = Phase.READY, revision: int = 7, **changes: Any) -> Holding:
    fields = {"head": HEAD, "token": TOKEN, "main": True, "sure": True}
    return Holding(report=Report(phase, revision), **fields | changes)


async def several_polls() -> None:
    for _ in range(10):
        await asyncio.sleep(0.01)


async def test_a_head_is_told_once_by_each_token_and_asked_when_it_changed(setup: Setup) -> None:
    setup.hold(holding())
    await setup.until(lambda: setup.executor.state("m", HEAD))
    await several_polls()
    assert setup.asked == [(HEAD, Keep(setup.wish.encode(), TOKEN, False))]
    assert set(setup.adopted) == {"m"}
    setup.is_restored = True
    setup.hold(holding(token=LATER))
    await setup.until(lambda: len(setup.asked) == 2)
    assert setup.asked[1] == (HEAD, Keep(setup.wish.encode(), LATER, True))
    setup.answers[HEAD] = HeadState("m", "waiting", revision=8)
    setup.hold(holding(Phase.WAITING, 8, token=LATER))
    await setup.until(lambda: len(setup.asked) == 3)
    assert setup.asked[2] == (HEAD, AskHead("m"))
    await several_polls()
    assert len(setup.asked) == 3
    state = setup.executor.state("m", HEAD)
    assert state is not None
    assert state.phase == "waiting"


async def test_a_surplus_ring_is_dropped_and_what_runs_nowhere_is_left_alone(
    setup: Setup,
) -> None:
    setup.hold(holding(), holding(head=OTHER, main=False))
    await setup.until(lambda: (OTHER, Drop("m", TOKEN)) in setup.asked)
    await several_polls()
    assert len(setup.asked) == 2
    setup.hold(holding(), holding(Phase.NONE, head=OTHER, main=False))
    await several_polls()
    assert len(setup.asked) == 2


async def test_an_old_head_is_dropped_once_the_new_one_answers(setup: Setup) -> None:
    setup.runs(OTHER, "ready", 7)
    setup.runs(HEAD, "planning", 1)
    old = holding(head=OTHER, main=False)
    setup.hold(holding(Phase.NONE), old)
    await setup.until(lambda: len(setup.asked) >= 2)
    setup.hold(holding(Phase.BUILDING, 1), old)
    await several_polls()
    assert set(setup.asked) == {
        (HEAD, Keep(setup.wish.encode(), TOKEN, True)), (OTHER, AskHead("m")),
    }, "what runs elsewhere is possible"  # fmt: skip
    # It does not come up: the old one goes on.
    setup.runs(HEAD, "waiting", 2)
    setup.hold(holding(Phase.WAITING, 2), old)
    await several_polls()
    assert (OTHER, Drop("m", TOKEN)) not in setup.asked
    # Nor while the new one's lease is not there.
    setup.hold(old)
    await several_polls()
    assert (OTHER, Drop("m", TOKEN)) not in setup.asked
    setup.hold(holding(), old)
    await setup.until(lambda: (OTHER, Drop("m", TOKEN)) in setup.asked)


async def test_a_head_hears_when_it_turns_out_to_be_possible(setup: Setup) -> None:
    setup.runs(OTHER, "ready", 7)
    setup.hold(holding(Phase.BUILDING, 7))
    await setup.until(lambda: setup.asked == [(HEAD, Keep(setup.wish.encode(), TOKEN, False))])
    setup.hold(holding(Phase.BUILDING, 7), holding(head=OTHER, main=False))
    await setup.until(lambda: (HEAD, Keep(setup.wish.encode(), TOKEN, True)) in setup.asked)


async def test_an_old_head_of_an_older_wish_or_a_broken_one_is_dropped_at_once(
    setup: Setup,
) -> None:
    setup.runs(OTHER, "ready", 7, generation=0)
    setup.hold(holding(Phase.BUILDING), holding(head=OTHER, main=False))
    await setup.until(lambda: (OTHER, Drop("m", TOKEN)) in setup.asked)
    setup.hold()
    await setup.until(lambda: setup.executor.state("m", OTHER) is None)
    setup.asked.clear()
    setup.runs(OTHER, "waiting", 8)
    setup.hold(holding(Phase.BUILDING), holding(Phase.WAITING, 8, head=OTHER, main=False))
    await setup.until(lambda: (OTHER, Drop("m", TOKEN)) in setup.asked)


async def test_a_new_head_is_not_built_while_the_old_one_may_be_there(setup: Setup) -> None:
    setup.hold(holding(Phase.NONE, sure=False))
    await several_polls()
    assert setup.asked == []
    setup.hold(holding(Phase.NONE, sure=True))
    await setup.until(lambda: setup.asked)


async def test_without_a_lease_nothing_is_commanded(setup: Setup) -> None:
    setup.hold(holding())
    await setup.until(lambda: setup.asked)
    setup.hold()
    await setup.until(lambda: setup.executor.state("m", HEAD) is None)
    setup.asked.clear()
    await several_polls()
    assert setup.asked == []
    setup.hold(holding())
    await setup.until(lambda: setup.asked)


async def test_a_head_that_forgot_is_told_again(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_REPEAT_S", 0.02)
    setup.hold(holding(Phase.NONE))
    await setup.until(lambda: len([r for _, r in setup.asked if isinstance(r, Keep)]) >= 3)


@pytest.mark.parametrize("answer", [PeerError("no way through"), Facts(1, 1)])
async def test_a_head_that_refuses_is_asked_again_and_the_reason_is_told_in_the_end(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    setup.answers[HEAD] = answer
    setup.hold(holding(Phase.NONE))
    await setup.until(lambda: len(setup.asked) >= 3)
    assert setup.executor.error("m") is None, "it may be the change of owners"
    monkeypatch.setattr(executor, "_PATIENCE_S", 0.0)
    error = setup.executor.error("m")
    assert error is not None
    assert error.message in ("no way through", f"node …{HEAD.short} answered Facts")
    setup.answers[HEAD] = HeadState("m", "planning", revision=1)
    await setup.until(lambda: setup.executor.error("m") is None)


async def test_what_is_removed_is_dropped(setup: Setup) -> None:
    setup.wish = Wish(
        name="m", model="", author=bytes(32), generation=2, at=1, removed=True
    )  # fmt: skip
    setup.hold(holding(main=False))
    await setup.until(lambda: setup.asked)
    assert setup.asked[0] == (HEAD, Drop("m", TOKEN))


async def test_a_node_with_another_ring_is_avoided_for_a_while(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "AVOID_S", 0.2)
    setup.answers[HEAD] = HeadState("m", "taken", "den has part in ring 2 of m")
    setup.hold(holding(Phase.NONE))
    await setup.until(lambda: setup.executor.avoided() == {"m": frozenset({HEAD})})
    assert setup.executor.state("m", HEAD) is None
    setup.holdings = ()
    await setup.until(lambda: not setup.executor.avoided())


async def test_what_belongs_to_no_ring_of_the_wish_is_ended(setup: Setup) -> None:
    setup.owned = lambda: {"m/3": (holding(),)}  # type: ignore[method-assign] # a ring that was
    setup.wish = Wish(
        name="m", model="covey-mini", author=bytes(32), generation=2, at=2**40, rings=2
    )
    setup.executor.changed()
    await setup.until(lambda: setup.asked)
    assert setup.asked[0] == (HEAD, Drop("m/3", TOKEN))
    setup.owned = lambda: {"m/2": (holding(),)}  # type: ignore[method-assign] # one that is
    setup.executor.changed()
    await setup.until(lambda: len(setup.asked) > 1)
    assert setup.asked[-1] == (HEAD, Keep(setup.wish.encode(), TOKEN, False, 2))
