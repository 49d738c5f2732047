"""Which deployment is measured, whether its model fits here, and what is undeployed at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.comparing import contestants
from agent.errors import CoveyError, ModelError, NotRunning, UsageError
from agent.models import bundled


def ring(name: str = "trio", **changes: Any) -> dict[str, Any]:
    fields = {
        "name": name, "rings": 1, "phase": "ready", "progress": "it loads", "model": "covey-mini",
        "model_id": "", "context": 512, "url": "http://[fd00::1]:7100", "error": None, "draft": "",
        "stages": [{"name": one} for one in ("alpha", "beta", "gamma", "alpha")],
    }  # fmt: skip
    return fields | changes


def test_the_only_deployment_needs_no_name() -> None:
    assert contestants.choose([ring()], "")["name"] == "trio"
    assert contestants.choose([ring("a"), ring("b")], "b")["name"] == "b"


@pytest.mark.parametrize(
    ("deployments", "model", "kind", "words"),
    [
        ([], "", UsageError, "nothing is deployed"),
        ([ring("a"), ring("b")], "", UsageError, "2 models are deployed: a, b"),
        ([ring("a")], "b", UsageError, "no deployment is called b"),
        ([ring("a", phase="loading")], "a", NotRunning, "a does not answer: it loads"),
    ],
)
def test_what_cannot_be_measured_is_named(
    deployments: list[dict[str, Any]], model: str, kind: type[CoveyError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        contestants.choose(deployments, model)


def test_several_rings_are_measured_through_a_gateway() -> None:
    with pytest.raises(UsageError, match="trio has 2 rings"):
        contestants.head_of(ring(rings=2))
    assert contestants.head_of(ring()).base == "http://[fd00::1]:7100"
    assert contestants.nodes_of(ring()) == ["alpha", "beta", "gamma"]


class Agent:
    """Answers as an agent does; keeps what is deployed."""

    def __init__(self, phases: list[str], fault: CoveyError | None = None) -> None:
        self.phases = phases
        self.fault = fault
        self.deployed: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = []
        self.folder = ""

    async def post(self, path: str, body: Any, timeout_s: float = 10.0) -> dict[str, Any]:
        self.asked.append(body)
        self.deployed[body["name"]] = ring(body["name"])
        if self.fault is not None:
            raise self.fault
        return self.deployed[body["name"]]

    async def get(self, path: str) -> dict[str, Any]:
        if path == "/v1/models":
            return {"folder": self.folder, "models": self.models}
        phase = self.phases.pop(0) if len(self.phases) > 1 else self.phases[0]
        error = {"kind": "ModelError", "message": "it does not fit", "hint": ""}
        return {"deployments": [one | {"phase": phase, "error": error}
                                for one in self.deployed.values()]}  # fmt: skip

    async def delete(self, path: str) -> dict[str, Any]:
        del self.deployed[path.rpartition("/")[2]]
        return {"phase": "ended"}


async def spread(agent: Agent, told: list[str]) -> None:
    tell = told.append
    async with contestants.over_rpc(agent, ring(), tell, tell) as (server, nodes):  # type: ignore[arg-type]
        assert server.model in agent.deployed
        assert nodes == ["alpha", "beta", "gamma"]
        raise RuntimeError("what measures broke")


async def test_the_rpc_deployment_is_like_the_meshs_and_goes_whatever_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contestants, "_POLL_S", 0.0)
    agent, told = Agent(["loading", "ready"]), []
    with pytest.raises(RuntimeError):
        await spread(agent, told)
    assert agent.deployed == {}
    assert told == ["llama.cpp RPC: it loads"]
    (body,) = agent.asked
    assert body["name"].startswith("bench-rpc-")
    del body["name"]
    assert body == {"model": "covey-mini", "engine": "rpc", "nodes": 3, "context": 512}


@pytest.mark.parametrize("phase", ["failed", "waiting"])
async def test_one_that_cannot_run_is_undeployed_and_told(phase: str) -> None:
    agent = Agent([phase])
    with pytest.raises(ModelError, match="it does not fit"):
        await spread(agent, [])
    assert agent.deployed == {}


async def test_one_whose_answer_never_came_is_undeployed_too() -> None:
    agent = Agent(["ready"], NotRunning("the agent did not answer"))
    with pytest.raises(NotRunning):
        await spread(agent, [])
    assert agent.deployed == {}


async def test_one_that_waits_is_undeployed_when_it_is_broken_off() -> None:
    agent = Agent(["loading"])
    task = asyncio.ensure_future(spread(agent, []))
    while not agent.deployed:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert agent.deployed == {}


async def test_a_ring_on_one_node_has_nothing_to_spread() -> None:
    agent = Agent(["ready"])
    alone = ring(stages=[{"name": "alpha"}])
    with pytest.raises(UsageError, match="trio is on one node"):
        async with contestants.over_rpc(agent, alone, print, print):  # type: ignore[arg-type]
            pass
    assert agent.asked == []


async def test_the_file_is_the_bundled_one_the_stores_or_a_path(tmp_path: Path) -> None:
    agent = Agent(["ready"])
    agent.folder = str(tmp_path)
    stored = tmp_path / "m.gguf"
    stored.write_bytes(b"x")
    agent.models = [
        {"name": "m", "id": "ab" * 32, "here": True, "phase": "whole"},
        {"name": "n", "id": "cd" * 32, "here": False, "phase": "elsewhere"},
    ]

    async def file(model: str, model_id: str) -> Path:
        return await contestants.whole_file(agent, model, model_id, tmp_path)  # type: ignore[arg-type]

    assert await file(bundled.NAME, "") == bundled.path()
    assert await file("m", "ab" * 32) == stored
    assert await file(str(stored), "") == stored
    with pytest.raises(ModelError, match="n is not whole on this node"):
        await file("n", "cd" * 32)


def test_a_model_that_does_not_fit_is_refused_with_both_figures() -> None:
    path = bundled.path()
    contestants._require_room(path, None, 512, 1 << 30)
    with pytest.raises(ModelError, match=r"does not fit on this node .* are needed, 0\.0 GiB are"):
        contestants._require_room(path, None, 512, 1 << 10)
