"""Stored models whose head is on any node that has them, or on one that fetches what it needs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import answer, wait

from agent.demo.mesh import WORKERS, DemoMesh
from agent.models import bundled

NODES = {"solo": 1, "duo": 2, "trio": 3}


@pytest.fixture(autouse=True)
def as_before(mesh: DemoMesh) -> Iterator[None]:
    """Leave the mesh to others as it was: without stored models, and with all its rings whole."""
    yield
    for one in deployments(mesh).values():
        if one["name"] not in NODES:
            mesh.agent("alpha", "undeploy", one["name"])
    for name in (*WORKERS, "door"):
        for model in mesh.ask(name, "models")["models"]:
            if model["here"]:
                mesh.agent(name, "rm", model["name"])
    wait(lambda: {n: d["nodes"] for n, d in deployments(mesh).items()} == NODES, 120)
    for name in NODES:
        wait(lambda name=name: answer(mesh, name))


def deployments(mesh: DemoMesh) -> dict[str, dict[str, Any]]:
    found = mesh.get("alpha", "/v1/deployments")["deployments"]
    return {one["name"]: one for one in found}


def pull(mesh: DemoMesh, *names: str) -> str:
    """Bring the model into stores as `mini`, and return its id."""
    for name in names:
        mesh.agent(name, "pull", str(bundled.path()), "--name", "mini")
    (model,) = mesh.ask("alpha", "models")["models"]
    assert model["elsewhere"] == sorted(names)
    found: str = model["id"]
    return found


def test_a_head_that_dies_is_followed_by_another_node_that_has_the_model(mesh: DemoMesh) -> None:
    expected = answer(mesh, "solo")
    model_id = pull(mesh, "beta", "gamma")
    planned = mesh.ask("alpha", "plan", "mini", "--nodes", "2")
    assert planned["stages"][0]["name"] in ("beta", "gamma")
    before = mesh.ask("alpha", "deploy", "mini", "--name", "held", "--nodes", "1")
    assert (before["model"], before["model_id"], before["source"]) == ("mini", model_id, "")
    head, other = sorted(("beta", "gamma"), key=lambda name: name != before["head_name"])
    assert before["head_name"] == head
    assert "is used by the deployment held" in mesh.try_agent(other, "rm", "mini").stderr
    wait(lambda: answer(mesh, "held"))
    pid = mesh.get(head, "/v1/status")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait(lambda: not Path(f"/proc/{pid}").exists(), 10)
    try:

        def follows() -> bool:
            now = deployments(mesh)["held"]
            return now["phase"] == "ready" and now["head_name"] == other

        wait(follows, 60)
        assert wait(lambda: answer(mesh, "held")) == expected
        assert not list((mesh.root / "alpha" / "models").glob("*.gguf")), "it has nothing of it"
    finally:
        mesh.agent(head, "up")


def test_where_no_worker_has_the_model_a_head_fetches_its_parts_or_all_of_it(
    mesh: DemoMesh,
) -> None:
    expected = answer(mesh, "solo")
    refused = mesh.try_agent("alpha", "deploy", "mini")
    assert refused.returncode == 8
    assert "no stored model of it or of another member" in refused.stderr
    model_id = pull(mesh, "door")
    ring = mesh.ask("alpha", "deploy", "mini", "--name", "fetched", "--nodes", "2")
    state = mesh.root / ring["head_name"]
    first, *_, last = ring["stages"]
    parts = {path.name for path in (state / "parts").glob(f"{model_id}-*.gguf")}
    assert {f"{model_id}-{p['first']}-{p['last']}.gguf" for p in (first, last)} <= parts
    assert not list((state / "models").glob("*.gguf")), "its parts are all that came"
    assert wait(lambda: answer(mesh, "fetched")) == expected
    mesh.agent("alpha", "undeploy", "fetched")
    whole = mesh.ask("alpha", "deploy", "mini", "--name", "whole", "--nodes", "1")
    stored = mesh.root / whole["head_name"] / "models" / "mini.gguf"
    assert stored.read_bytes() == bundled.path().read_bytes()
    assert wait(lambda: answer(mesh, "whole")) == expected
