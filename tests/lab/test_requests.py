"""A head is killed while requests wait for it: the next head answers those that had not begun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from patience import engine_of, wait

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, MODEL, DemoMesh

# A busy machine answers so many at once in its own time; what is tested is that it does.
pytestmark = pytest.mark.timeout(400)

HEAD = "beta"
NAME = "mortal"
# More than a head has in its batch at once, so that some wait for their turn as well.
ASKED = 24


@pytest.fixture
def head(mesh: DemoMesh) -> Iterator[int]:
    """A deployment of its own on one node; the process of its head."""
    mesh.ask(HEAD, "deploy", MODEL, "--name", NAME, "--nodes", "1")
    mesh.wait_served({NAME})
    yield engine_of(mesh, NAME, HEAD)
    mesh.agent(HEAD, "undeploy", NAME)


def ask(mesh: DemoMesh, *, stream: bool) -> subprocess.CompletedProcess[str]:
    body = {"model": NAME, "temperature": 0, "max_tokens": 400, "ignore_eos": True,
            "messages": [{"role": "user", "content": "What is 27 + 15?"}],
            "stream": stream}  # fmt: skip
    url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions"
    command = ["curl", "-s", "-m", "110", url, "-H", "Content-Type: application/json"]
    return mesh.machine(GATEWAY).run([*command, "-d", json.dumps(body)], timeout_s=120)


def in_flight(mesh: DemoMesh) -> int:
    url = f"http://127.0.0.1:{GATEWAY_PORT}/gateway/status"
    said = json.loads(mesh.machine(GATEWAY).run(["curl", "-s", url]).stdout)
    return sum(one["in_flight"] for one in said["replicas"] if NAME in one["models"])


def text(answer: subprocess.CompletedProcess[str]) -> str:
    assert answer.returncode == 0, answer
    found: dict[str, Any] = json.loads(answer.stdout)
    assert "choices" in found, found
    said: str = found["choices"][0]["message"]["content"]
    return said


def test_requests_that_wait_for_a_killed_head_are_answered(mesh: DemoMesh, head: int) -> None:
    expected = text(ask(mesh, stream=False))
    with ThreadPoolExecutor(ASKED + 1) as pool:
        whole = [pool.submit(ask, mesh, stream=False) for _ in range(ASKED - 4)]
        streams = [pool.submit(ask, mesh, stream=True) for _ in range(4)]
        wait(lambda: in_flight(mesh) == ASKED, 20)
        os.kill(head, signal.SIGKILL)
        late = pool.submit(ask, mesh, stream=False)
        answers = [text(one.result()) for one in (*whole, late)]
        streamed = [one.result().stdout for one in streams]
    # At least those that had no place in the batch had not begun.
    log = (mesh.root / "gateway.log").read_text()
    assert log.count(f"attempt failed model={NAME}") >= ASKED - 16
    assert answers == [expected] * len(answers)
    for said in streamed:
        # Each is whole, or had begun and says that it broke off: never both, never two.
        broke = '"error"' in said
        assert broke is not ("[DONE]" in said), said[-400:]
        assert said.count('"role"') == 1
