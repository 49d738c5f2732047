"""A stage dies or stands still in the middle of answers: they go on, and say what they would have.

The client is that of `tests/bench/failover.py`, which does this many times and measures.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import stage_of, wait

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh

CLIENT = Path(__file__).parents[1] / "bench" / "failoverlab" / "streams.py"
STREAMS, TOKENS = 4, 80


def trio(mesh: DemoMesh) -> dict[str, Any]:
    found: list[dict[str, Any]] = mesh.get("alpha", "/v1/deployments")["deployments"]
    return next(one for one in found if one["name"] == "trio")


def begin(mesh: DemoMesh) -> subprocess.Popen[str]:
    """Start the client; returns once each stream has a token."""
    command = [sys.executable, str(CLIENT), f"http://127.0.0.1:{GATEWAY_PORT}", "trio",
               str(STREAMS), str(TOKENS)]  # fmt: skip
    client = subprocess.Popen(
        mesh.machine(GATEWAY).command(command), stdout=subprocess.PIPE, text=True,
        env=mesh.environment(GATEWAY),
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline().strip() == "begun"
    return client


def ended(client: subprocess.Popen[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(client.communicate(timeout=120)[0])
    return found


@pytest.fixture
def expected(mesh: DemoMesh) -> list[str]:
    """What the streams say when nothing happens."""
    wait(lambda: trio(mesh)["phase"] == "ready" and trio(mesh)["nodes"] == 3, 120)
    streams = ended(begin(mesh))
    assert all(len(stream["text"]) > TOKENS // 2 for stream in streams), streams
    return [stream["text"] for stream in streams]


def frozen(pid: int) -> Callable[[], None]:
    os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)

    return thaw


def killed(pid: int) -> Callable[[], None]:
    os.kill(pid, signal.SIGKILL)
    return lambda: None


@pytest.mark.parametrize("fault", [killed, frozen])
def test_answers_go_on_when_a_stage_is_lost(
    mesh: DemoMesh, expected: list[str], fault: Callable[[int], Callable[[], None]]
) -> None:
    wait(lambda: trio(mesh)["phase"] == "ready" and trio(mesh)["nodes"] == 3)
    before = trio(mesh)
    engine = stage_of(mesh, "trio")
    client = begin(mesh)
    undo = fault(engine)
    streams = ended(client)
    undo()
    assert [stream["error"] for stream in streams] == [""] * STREAMS
    assert [stream["text"] for stream in streams] == expected

    def whole_again() -> bool:
        found = trio(mesh)
        return (
            found["phase"] == "ready" and found["nodes"] == 3 and found["epoch"] > before["epoch"]
        )

    # A machine that lost two stages within a minute has none until that is over.
    wait(whole_again, 120)
