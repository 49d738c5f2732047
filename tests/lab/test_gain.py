"""A better node appears: the ring moves there while answers are written, and nobody sees it.

Nodes are as fast as the figures that their agents keep of an earlier measurement say.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from patience import wait

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, MODEL, DemoMesh
from agent.engine import speeds
from agent.engine.speeds import CPU, Speed, Speeds

# Minutes in which nothing moves are what is tested here.
pytestmark = pytest.mark.timeout(500)

NAME, HEAD, LATE = "mover", "beta", "delta"
OTHERS = (("duo", 2), ("trio", 3))
# A ring is left alone for its first minute, and a gain is seen for three quarters of one.
LOOKED_AT_S, MOVED_S = 90.0, 200.0
# Bytes a second. A layer takes a slow node seconds, so that links do not count: a tenth of that is
# more than they ever differ by on a busy machine.
FAST, SLOW, SLOWER = 8e9, 2e5, 5e4


def has_measured(mesh: DemoMesh, name: str, bytes_s: float) -> None:
    """Have a machine's agent know how fast it is."""
    found = Speeds((Speed(CPU, bytes_s, 10 * bytes_s),), time.time())
    cache = mesh.root / name / "engine"
    cache.mkdir(parents=True, exist_ok=True)
    speeds.keep(cache, (), found)


@pytest.fixture(scope="module")
def mover(mesh: DemoMesh) -> Iterator[dict[str, Any]]:
    """A ring of two, of which one is slow. The mesh is left as it was, its figures forgotten."""
    for name, _ in OTHERS:
        mesh.agent("alpha", "undeploy", name)
    for name, bytes_s in ((HEAD, FAST), ("alpha", SLOW), ("gamma", SLOWER)):
        has_measured(mesh, name, bytes_s)
    begun = mesh.ask(HEAD, "deploy", MODEL, "--name", NAME, "--nodes", "2",
                     "--objective", "latency")  # fmt: skip
    mesh.wait_served({NAME})
    yield begun
    mesh.agent(HEAD, "undeploy", NAME)
    for kept in mesh.root.glob("*/engine/speed-*.json"):
        kept.unlink()
    if LATE in mesh.lab.machines:
        mesh.agent(LATE, "leave", "--force")
    for name, nodes in OTHERS:
        mesh.deploy(nodes, print, name=name)
    mesh.wait_served({name for name, _ in OTHERS})


def state(mesh: DemoMesh) -> dict[str, Any]:
    found: list[dict[str, Any]] = mesh.get(HEAD, "/v1/deployments")["deployments"]
    return next(one for one in found if one["name"] == NAME)


def names(found: dict[str, Any]) -> set[str]:
    return {stage["name"] for stage in found["stages"]}


@contextmanager
def streaming(mesh: DemoMesh) -> Iterator[tuple[list[str], list[str]]]:
    """Read one stream after the other; what they said, and what went wrong."""
    texts: list[str] = []
    wrong: list[str] = []
    ends = threading.Event()
    body = {"model": NAME, "temperature": 0, "max_tokens": 400, "ignore_eos": True, "stream": True,
            "messages": [{"role": "user", "content": "What is 27 + 15?"}]}  # fmt: skip
    command = ["curl", "-s", "-m", "60", f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions",
               "-H", "Content-Type: application/json", "-d", json.dumps(body)]  # fmt: skip

    def read() -> None:
        while not ends.is_set():
            done = mesh.machine(GATEWAY).run(command, timeout_s=90)
            if done.returncode or '"error"' in done.stdout or "[DONE]" not in done.stdout:
                wrong.append(f"{done.returncode}: {done.stdout[-300:]}")
                continue
            events = [json.loads(line[6:]) for line in done.stdout.splitlines()
                      if line.startswith("data: {")]  # fmt: skip
            texts.append("".join(c["delta"].get("content") or "" for e in events
                                 for c in e["choices"]))  # fmt: skip

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield texts, wrong
    finally:
        ends.set()
        reader.join()


def test_a_small_gain_moves_nothing(mesh: DemoMesh, mover: dict[str, Any]) -> None:
    assert names(mover) == {HEAD, "alpha"}
    has_measured(mesh, "gamma", 1.14 * SLOW)
    time.sleep(LOOKED_AT_S)
    wait(lambda: state(mesh)["gain"], LOOKED_AT_S)  # a look may find the ring a moment too young
    found = state(mesh)
    assert (found["epoch"], found["stages"]) == (mover["epoch"], mover["stages"])
    assert found["gain"].endswith("% fewer ms a token; that is not worth a move")


def test_a_better_node_is_used_without_an_error_in_a_stream(
    mesh: DemoMesh, mover: dict[str, Any]
) -> None:
    mesh.lab.add(LATE)
    has_measured(mesh, LATE, FAST)
    ticket = mesh.ask("alpha", "invite", "--role", "worker")["ticket"]
    with streaming(mesh) as (texts, wrong):
        mesh.agent(LATE, "join", ticket)
        known = wait(lambda: state(mesh)["gain"], LOOKED_AT_S)
        assert known.startswith("a better ring is known: "), known
        assert NAME in mesh.agent(HEAD, "ps")
        assert f"{NAME} runs it: a better ring is known" in mesh.agent(HEAD, "plan", MODEL)
        wait(lambda: names(state(mesh)) == {HEAD, LATE}, MOVED_S)
        wait(lambda: state(mesh)["phase"] == "ready")
        before = len(texts)
        wait(lambda: len(texts) > before + 1)
    assert wrong == []
    assert len(set(texts)) == 1
    found = state(mesh)
    assert found["epoch"] > mover["epoch"]
    assert found["gain"].startswith("it moved for ")
