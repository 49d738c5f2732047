"""A machine is to be switched off: its work goes to others first, and nobody who asks sees it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from patience import wait

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh

DEPLOYED = (("solo", 1), ("duo", 2), ("trio", 3))
HEAD = "alpha"


@pytest.fixture(autouse=True, scope="module")
def as_before(mesh: DemoMesh) -> Iterator[None]:
    """Leave the mesh to others as it was: nothing drains, and all heads are where they were."""
    yield
    for name in ("alpha", "beta", "gamma"):
        mesh.ask(name, "drain", "--off")
    for name, nodes in DEPLOYED:
        mesh.ask(HEAD, "undeploy", name)
        wait(lambda name=name: not any(d["name"] == name for d in deployed(mesh)))
        mesh.deploy(nodes, print, name=name)
    mesh.wait_served({name for name, _ in DEPLOYED})


def deployed(mesh: DemoMesh) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mesh.get("beta", "/v1/deployments")["deployments"]
    return found


def running(mesh: DemoMesh, name: str) -> list[dict[str, Any]]:
    """Return a machine's engines; of another test's that broke it tells for a minute longer."""
    found: list[dict[str, Any]] = mesh.get(name, "/v1/status")["engines"]
    return [engine for engine in found if engine["phase"] != "broken"]


def nodes_of(mesh: DemoMesh, name: str) -> set[str]:
    """Return the names of a deployment's nodes while it answers."""
    [found] = [d for d in deployed(mesh) if d["name"] == name]
    return {stage["name"] for stage in found["stages"]} if found["phase"] == "ready" else set()


@contextmanager
def asked_all_the_time(mesh: DemoMesh) -> Iterator[dict[str, list[str]]]:
    """Ask each model again and again, in one piece and as streams; what went wrong, by model."""
    wrong: dict[str, list[str]] = {name: [] for name, _ in DEPLOYED}
    ends = threading.Event()

    def ask(name: str, *, streams: bool) -> None:
        body = {"model": name, "temperature": 0, "max_tokens": 200, "ignore_eos": True,
                "messages": [{"role": "user", "content": "What is 27 + 15?"}],
                "stream": streams}  # fmt: skip
        command = ["curl", "-s", "-m", "60", f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions",
                   "-H", "Content-Type: application/json", "-d", json.dumps(body)]  # fmt: skip
        while not ends.is_set():
            done = mesh.machine(GATEWAY).run(command)
            whole = "[DONE]" in done.stdout if streams else '"choices"' in done.stdout
            if done.returncode or not whole or '"error"' in done.stdout:
                wrong[name].append(f"{done.returncode}: {done.stdout[-300:]}")

    threads = [
        threading.Thread(target=ask, args=(name,), kwargs={"streams": streams})
        for name in wrong
        for streams in (False, True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def heard(mesh: DemoMesh, name: str, on: bool) -> Callable[[], bool]:
    """Return whether the others know that a machine drains, or does not."""

    def known() -> bool:
        members = mesh.get("beta" if name != "beta" else "gamma", "/v1/members")["members"]
        return any(m["name"] == name and m["draining"] is on for m in members)

    return known


def test_rings_leave_a_node_and_come_back(mesh: DemoMesh) -> None:
    wait(lambda: nodes_of(mesh, "trio") == {"alpha", "beta", "gamma"})
    with asked_all_the_time(mesh) as wrong:
        done = mesh.try_agent("gamma", "drain")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "gamma runs nothing now: it may be switched off.\n"
    assert not any(wrong.values()), wrong
    assert running(mesh, "gamma") == []
    assert "draining" in mesh.agent("gamma", "status")
    assert nodes_of(mesh, "trio") == {"alpha", "beta"}
    [trio] = [d for d in deployed(mesh) if d["name"] == "trio"]
    assert "gamma is draining" in trio["reasons"]
    wait(heard(mesh, "gamma", True))
    with asked_all_the_time(mesh) as wrong:
        assert "may be used again" in mesh.agent("gamma", "drain", "--off")
        wait(lambda: nodes_of(mesh, "trio") == {"alpha", "beta", "gamma"})
    assert not any(wrong.values()), wrong


def test_heads_are_started_elsewhere_first(mesh: DemoMesh) -> None:
    assert {d["head_name"] for d in deployed(mesh)} == {HEAD}
    with asked_all_the_time(mesh) as wrong:
        done = mesh.try_agent(HEAD, "drain")
        assert done.returncode == 0, done.stderr
    assert not any(wrong.values()), wrong
    assert running(mesh, HEAD) == []
    for one in deployed(mesh):
        assert one["phase"] == "ready", one
        assert one["head_name"] != HEAD
        assert one["owner_name"] != HEAD
        assert HEAD not in {stage["name"] for stage in one["stages"]}
    # The wish outlives the agent.
    mesh.agent(HEAD, "restart")
    wait(heard(mesh, HEAD, True))
    assert mesh.get(HEAD, "/v1/drain") == {"name": HEAD, "draining": True, "work": []}
    begun = mesh.ask(HEAD, "deploy", "covey-mini", "--name", "late")
    assert (begun["phase"], begun["head_name"] != HEAD) == ("ready", True)
    mesh.agent(HEAD, "undeploy", "late")
    mesh.agent(HEAD, "drain", "--off")
    kinds = [event["kind"] for event in mesh.get("beta", "/v1/events?after=0")["events"]]
    assert {"node.draining", "node.undrained"} <= set(kinds)


def test_what_cannot_move_is_said(mesh: DemoMesh, tmp_path: Any) -> None:
    from agent.models import bundled

    model = tmp_path / "own.gguf"
    model.write_bytes(bundled.path().read_bytes())
    mesh.ask("beta", "deploy", str(model), "--name", "own", "--nodes", "1")
    try:
        done = mesh.try_agent("beta", "drain")
        assert done.returncode == 7, done.stdout
        [line] = done.stderr.strip().splitlines()
        assert f"own stays: its file {model} lies on beta alone" in line
        assert "trio" not in line
        assert mesh.get("beta", "/v1/status")["draining"]
    finally:
        mesh.agent("beta", "drain", "--off")
        mesh.agent("beta", "undeploy", "own")
