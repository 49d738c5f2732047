"""What a ring that was built says of its links; what it takes to build one is the lab's."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.deploy import build
from agent.deploy.asked import Asked
from agent.deploy.messages import AskStage, StageState, StoredLayers
from agent.deploy.parts import Parts
from agent.deploy.planning import Own
from agent.deploy.wish import Wish
from agent.engine.gguf_file import GgufFile
from agent.errors import EngineError
from agent.identity.keys import NodeId, NodeKey
from agent.models import bundled
from agent.models.fetch import Progress, Watch
from agent.placement.inputs import Node
from agent.placement.results import Plan, Stage

OWN, MIDDLE, FAR = (NodeKey(bytes([number]) * 32).id for number in (1, 2, 3))
PLAN = Plan(
    (Stage(str(OWN), "box", 0, 3), Stage(str(MIDDLE), "den", 3, 6), Stage(str(FAR), "attic", 6, 9),
     Stage(str(OWN), "box", 9, 12)),
    ("three nodes were asked for",),
)  # fmt: skip


class FakeMesh:
    """Its stages answer what they are told, one thing after the other, and then the last."""

    def __init__(self, **answers: list[StageState]) -> None:
        names = {"den": MIDDLE, "attic": FAR}
        self.answers = {names[name]: deque(states) for name, states in answers.items()}

    async def ask(self, node: NodeId, request: AskStage, _timeout_s: float) -> StageState:
        assert (request.ring, request.epoch) == ("ab" * 16, 7)
        states = self.answers[node]
        return states.popleft() if len(states) > 1 else states[0]


@dataclass
class FakeHead:
    rows: str = "f32 (940 Mbit/s)"


def built(mesh: FakeMesh) -> build.Build:
    wish = Wish(name="m", model="x", author=bytes(32), generation=1, at=0)
    own = Own(Node(str(OWN), "box", 1 << 30))
    made = build.Build(
        wish, "ab" * 16, 7, settings=None, own=own, engines=None, blobs=None, parts=None, mesh=mesh,  # type: ignore[arg-type] # not needed here
        progress=lambda _phase, _text: None, token=None,  # type: ignore[arg-type]
    )  # fmt: skip
    made.plan = PLAN
    return made


LOADING = StageState(phase="listening", port=1)


async def test_every_node_says_how_rows_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_POLL_S", 0.0)
    slow = StageState(phase="ready", rows="f16, prompts q8 (20 Mbit/s)")
    mesh = FakeMesh(den=[LOADING, LOADING, slow], attic=[StageState(phase="ready", rows="f32")])
    assert await built(mesh)._row_types(PLAN, FakeHead()) == (  # type: ignore[arg-type]
        "rows leave box as f32 (940 Mbit/s)",
        "rows leave den as f16, prompts q8 (20 Mbit/s)",
        "rows leave attic as f32",
    )


async def test_a_stage_that_says_nothing_is_left_out_and_a_broken_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "_POLL_S", 0.01)
    monkeypatch.setattr(build, "_ROWS_TIMEOUT_S", 0.05)
    mesh = FakeMesh(den=[LOADING], attic=[StageState(phase="ready", rows="f32")])
    made = built(mesh)
    made.runs_on[PLAN.stages[0].node] = "NVIDIA H200 (CUDA0)"
    made._rows = await made._row_types(PLAN, FakeHead())  # type: ignore[arg-type]
    assert made.reasons == (
        "three nodes were asked for", "box: 6 layers on NVIDIA H200 (CUDA0)",
        "rows leave box as f32 (940 Mbit/s)",
        "rows leave attic as f32",
    )  # fmt: skip
    broken = FakeMesh(den=[StageState(phase="broken", message="it was killed")], attic=[LOADING])
    with pytest.raises(EngineError, match=r"stage 1 on .*: it was killed"):
        await built(broken)._row_types(PLAN, FakeHead())  # type: ignore[arg-type]


class FakeStored:
    """Writes which layers it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    async def part(self, model: str, span: tuple[int, int], path: Path, watch: Watch) -> None:
        self.asked.append(span)
        watch(Progress(2, 4, 1.0))
        path.write_text(f"{model[:2]} {span}")


async def test_a_head_without_the_model_fetches_its_own_parts_and_nothing_else(
    tmp_path: Path,
) -> None:
    made, stored, said = built(FakeMesh()), FakeStored(), []
    made._stored, made._parts = stored, Parts(tmp_path / "parts")  # type: ignore[assignment]
    made._progress = lambda _phase, words: said.append(words)
    facts = GgufFile(bundled.path())
    with facts:
        wanted = Asked(Path("none"), facts.facts(), 64, None, model_id="ab" * 32, here=False)  # type: ignore[arg-type]
    ends = PLAN.stages[0], PLAN.stages[-1]
    paths = await made._head_parts(wanted, ends)
    assert [path.read_text() for path in paths] == ["ab (0, 3)", "ab (9, 12)"]
    assert said == [
        "the head fetches layers 0 to 2: 50 %", "the head fetches layers 9 to 11: 50 %",
    ]  # fmt: skip
    assert await made._head_parts(wanted, ends) == paths
    assert stored.asked == [(0, 3), (9, 12)], "what is here is not fetched again"
    weights = await made._weights(wanted, PLAN)
    assert [(w.model, w.first, w.last) for w in weights if isinstance(w, StoredLayers)] == [
        ("ab" * 32, 3, 6), ("ab" * 32, 6, 9),
    ]  # fmt: skip
