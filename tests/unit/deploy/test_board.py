"""What a node says of deployments: what it knows, what owners answer, who is silent."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from agent.deploy import board
from agent.deploy.board import Board
from agent.deploy.messages import Answer, AskStatus, HeadState, Request, Status, Statuses
from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeId
from agent.ownership.owner import View

OWN, OLD, NEW = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))


class Mesh:
    """Ownership, executor, rings and mesh of a node that knows what a test says."""

    def __init__(self) -> None:
        self.owner: NodeId | None = None
        self.nothing = False
        self.dead: set[NodeId] = {OLD}
        self.asked: list[NodeId] = []
        self.workers: list[NodeId] = []
        self.leaving: frozenset[NodeId] = frozenset()

    def view(self, name: str) -> View:
        return View(self.owner)

    def first(self, name: str) -> NodeId | None:
        return OLD

    def state(self, name: str, head: NodeId | None = None) -> None:
        return None

    def find(self, node: NodeId) -> None:
        return None

    def live_workers(self, now: float) -> list[Any]:
        return [SimpleNamespace(node_id=node) for node in self.workers]

    def draining(self) -> frozenset[NodeId]:
        return self.leaving

    async def ask(self, node: NodeId, request: Request, timeout_s: float) -> Answer:
        assert isinstance(request, AskStatus)
        self.asked.append(node)
        if node in self.dead:
            await asyncio.sleep(timeout_s)
            raise PeerError("no answer")
        ready = None if self.nothing else HeadState("m", "ready", "")
        return Statuses((Status("m", str(node), str(node), 5, ready),))

    def headless(self, name: str) -> CoveyError:
        return PeerError("nobody has m")

    def board(self) -> Board:
        known: Any = self
        return Board(OWN, known, known, known, known, self.ask, self.headless)


WISH: Any = SimpleNamespace(
    name="m", model="m", generation=1, author_id=OWN, source_id=None, engine="ring", draft="",
    rings=1, keys=("m",), model_id="", nodes=None, least=2, context=512, objective="latency",
    only=("gpu",), never=(),
)  # fmt: skip


async def test_a_dead_owner_is_not_waited_for_once_another_is_known() -> None:
    mesh = Mesh()
    asyncio.get_running_loop().call_later(0.2, setattr, mesh, "owner", NEW)
    began = time.monotonic()
    [described] = await mesh.board().describe([WISH])
    assert mesh.asked == [OLD, NEW]
    assert described["owner"] == str(NEW)
    assert described["phase"] == "ready"
    assert described["wish"] == {"nodes": None, "least": 2, "context": 512, "objective": "latency",
                                 "only": ["gpu"], "never": []}  # fmt: skip
    assert time.monotonic() - began < 1.5


async def test_an_owner_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_ASK_TIMEOUT_S", 0.2)
    mesh = Mesh()
    [described] = await mesh.board().describe([WISH])
    assert described["phase"] == "unknown"
    assert described["progress"] == f"its owner, …{str(OLD)[-8:]}, does not answer"


async def test_where_nothing_may_run_that_is_said() -> None:
    mesh = Mesh()
    mesh.dead.clear()
    mesh.nothing = True
    mesh.workers, mesh.leaving = [OWN, NEW], frozenset({NEW})
    file: Any = SimpleNamespace(**vars(WISH) | {"model": "/x.gguf", "source_id": NEW})
    [described] = await mesh.board().describe([file])
    assert described["phase"] == "waiting"
    assert "/x.gguf lies on" in described["progress"]
    assert "alone, and that node is draining" in described["progress"]
    mesh.leaving = frozenset(mesh.workers)
    [described] = await mesh.board().describe([WISH])
    assert described["error"]["message"] == "every worker that is there is draining"


async def test_an_owner_tells_all_why_no_node_may_be_the_head() -> None:
    mesh = Mesh()
    mesh.owner = OWN
    [described] = await mesh.board().describe([WISH])
    assert (described["phase"], described["progress"]) == ("waiting", "nobody has m.")
    answer = mesh.board().answer(AskStatus(("m",)))
    assert answer.statuses[0].state is not None
    assert answer.statuses[0].state.error == described["error"]
    mesh.owner = NEW
    assert mesh.board().status("m").state is None, "another owner's to say"


async def test_an_answer_serves_for_a_second() -> None:
    mesh = Mesh()
    mesh.dead.clear()
    board = mesh.board()
    for _ in range(3):
        [described] = await board.describe([WISH])
        assert described["phase"] == "ready"
    assert mesh.asked == [OLD]


async def test_an_answer_of_a_wish_before_serves_for_no_other() -> None:
    mesh = Mesh()
    mesh.dead.clear()
    made = mesh.board()
    await made.describe([WISH])
    made.forget()
    await made.describe([WISH])
    assert mesh.asked == [OLD, OLD]
