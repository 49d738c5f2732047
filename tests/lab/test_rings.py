"""One model as several rings on disjoint nodes: each answers, and none needs another."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from patience import answer, engine_of, wait

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, WORKERS, DemoMesh
from agent.models import bundled

NAME = "twins"
# Both deploy, break and wait; on busy cores that takes minutes.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def as_before(mesh: DemoMesh) -> Iterator[None]:
    """Leave the mesh to others as it was."""
    yield
    if rings(mesh):
        mesh.agent("alpha", "undeploy", NAME)
    wait(lambda: not rings(mesh))
    mesh.wait_served({"solo", "duo", "trio"})


def rings(mesh: DemoMesh, at: str = "beta") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mesh.get(at, "/v1/deployments")["deployments"]
    return [one for one in found if one["name"] == NAME]


def ready(mesh: DemoMesh, number: int) -> dict[str, Any] | None:
    one = rings(mesh)[number - 1]
    return one if one["phase"] == "ready" else None


def nodes_of(ring: dict[str, Any]) -> set[str]:
    return {stage["name"] for stage in ring["stages"]}


def check_apart(mesh: DemoMesh, count: int) -> list[dict[str, Any]]:
    """Return the rings once all answer; no node may have part in two of them."""
    found = wait(lambda: all(ready(mesh, n) for n in range(1, count + 1)) and rings(mesh))
    nodes = [name for ring in found for name in nodes_of(ring)]
    assert len(nodes) == len(set(nodes)), found
    assert [one["number"] for one in found] == list(range(1, count + 1))
    return list(found)


def requests_by_node(mesh: DemoMesh) -> dict[str, int]:
    """Return how many requests the gateway gave each replica of the model."""
    url = f"http://127.0.0.1:{GATEWAY_PORT}/gateway/status"
    said = json.loads(mesh.machine(GATEWAY).run(["curl", "-sf", url]).stdout)
    return {one["name"]: one["requests"] for one in said["replicas"] if NAME in one["models"]}


@contextmanager
def asked_all_the_time(mesh: DemoMesh, clients: int = 2) -> Iterator[list[str]]:
    """Ask the model again and again, several at a time; what went wrong."""
    wrong: list[str] = []
    ends = threading.Event()

    def ask() -> None:
        while not ends.is_set():
            if not answer(mesh, NAME):
                wrong.append("no answer")

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def test_two_rings_share_requests_and_one_serves_while_the_other_is_gone(mesh: DemoMesh) -> None:
    said = mesh.agent("alpha", "plan", "covey-mini", "--rings", "2", "--nodes", "1")
    assert "ring 2 of 2" in said
    assert "2 rings: " in said
    assert "1 ring " in said.split("OTHERWISE")[1]
    deployed = mesh.ask("alpha", "deploy", "covey-mini", "--name", NAME, "--rings", "2",
                        "--nodes", "1")["deployments"]  # fmt: skip
    first, second = check_apart(mesh, 2)
    assert {one["phase"] for one in deployed} == {"ready"}
    assert first["head_name"] == "alpha"
    heads = {first["head_name"], second["head_name"]}
    shown = mesh.agent("gamma", "ps")
    assert f"{NAME} 1/2" in shown
    assert f"{NAME} 2/2" in shown

    wait(lambda: requests_by_node(mesh).keys() == heads)
    with asked_all_the_time(mesh, 4) as wrong:
        wait(lambda: min(requests_by_node(mesh).values()) >= 5)
    assert not wrong
    logged = mesh.ask("door", "logs", NAME)["nodes"]
    assert heads <= {node["name"] for node in logged if node["tails"]}

    # An engine of one ring dies: the other serves all along, and the first comes back.
    lost = engine_of(mesh, NAME, second["head_name"])
    wait(lambda: answer(mesh, NAME))
    os.kill(lost, signal.SIGKILL)
    wait(lambda: not ready(mesh, 2), 20)
    with asked_all_the_time(mesh) as wrong:
        back = wait(lambda: ready(mesh, 2))
    assert not wrong
    again = check_apart(mesh, 2)
    assert again[0]["epoch"] == first["epoch"], "the other ring was built again"
    assert back["epoch"] > second["epoch"]
    wait(lambda: requests_by_node(mesh).keys() == heads)

    # What a person may do next, at once and anywhere.
    assert mesh.try_agent("beta", "deploy", "covey-mini", "--name", NAME).returncode == 2
    assert "ended" in mesh.agent("gamma", "undeploy", NAME)
    assert not rings(mesh)
    left = [mesh.get(name, "/v1/status")["engines"] for name in WORKERS]
    assert not any(NAME in one["what"] for engines in left for one in engines)


def test_a_ring_that_has_no_node_left_is_said_and_comes_back(mesh: DemoMesh) -> None:
    done = mesh.try_agent("alpha", "deploy", "covey-mini", "--name", NAME, "--rings", "4")
    assert done.returncode == 2
    assert "4 rings" in done.stderr
    mesh.ask("alpha", "deploy", "covey-mini", "--name", NAME, "--rings", "3")
    before = check_apart(mesh, 3)
    lost = next(one for one in before if one["head_name"] == "gamma")
    done = mesh.try_agent("gamma", "drain")
    try:
        assert done.returncode == 7, done.stdout
        title = NAME if lost["number"] == 1 else f"{NAME}/{lost['number']}"
        assert f"{title} stays: every other worker has part in another of its rings" in done.stderr
        assert rings(mesh)[lost["number"] - 1]["phase"] == "ready"
    finally:
        mesh.agent("gamma", "drain", "--off")
    mesh.agent("gamma", "down")
    try:
        said = wait(lambda: (one := rings(mesh)[lost["number"] - 1])["error"] and one)
        assert said["phase"] == "waiting"
        assert "no worker is left for this ring: the others of twins have" in said["progress"]
        assert "2 of 3 rings of twins answer" in mesh.agent("beta", "ps")
        with asked_all_the_time(mesh) as wrong:
            wait(lambda: requests_by_node(mesh).keys() == {"alpha", "beta"})
        assert not wrong
    finally:
        mesh.agent("gamma", "up")
    mesh.wait_connected("gamma")
    after = check_apart(mesh, 3)
    kept = [number for number in (1, 2, 3) if number != lost["number"]]
    assert [after[n - 1]["epoch"] for n in kept] == [before[n - 1]["epoch"] for n in kept]
    wait(lambda: requests_by_node(mesh).keys() == {"alpha", "beta", "gamma"})
    mesh.agent("beta", "undeploy", NAME)
    wait(lambda: not any(
        NAME in one["what"] for name in WORKERS for one in mesh.get(name, "/v1/status")["engines"]
    ))  # fmt: skip
    trio = wait(lambda: next(
        (d for d in mesh.get("beta", "/v1/deployments")["deployments"]
         if d["name"] == "trio" and d["phase"] == "ready" and d["nodes"] == 3), None), 120,
    )  # fmt: skip
    assert trio


def test_rings_of_a_stored_model_begin_where_it_is_and_others_fetch_it(mesh: DemoMesh) -> None:
    file = mesh.root / "stored.gguf"
    file.write_bytes(bundled.path().read_bytes())
    mesh.agent("beta", "pull", str(file), "--name", "stored")
    try:
        done = mesh.try_agent("beta", "deploy", str(file), "--name", NAME, "--rings", "2")
        assert done.returncode == 2
        assert "lies on this node alone, and each of 2 rings needs a head" in done.stderr
        mesh.ask("alpha", "deploy", "stored", "--name", NAME, "--rings", "2", "--nodes", "1",
                 "--no-wait")  # fmt: skip
        # The second ring's owner may have to be refused by beta before it knows better.
        wait(lambda: [one["phase"] for one in rings(mesh)] == ["ready"] * 2, 240)
        found = check_apart(mesh, 2)
        assert "beta" in {one["head_name"] for one in found}
        heads = {one["head_name"] for one in found}
        wait(lambda: requests_by_node(mesh).keys() == heads)
        with asked_all_the_time(mesh, 4) as wrong:
            wait(lambda: min(requests_by_node(mesh).values()) >= 2)
        assert not wrong
        mesh.agent("gamma", "undeploy", NAME)
        wait(lambda: not rings(mesh))
    finally:
        file.unlink()
        for name in WORKERS:
            mesh.try_agent(name, "rm", "stored")
