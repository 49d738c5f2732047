"""What lab tests wait for, and what they ask a model meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh


def wait(what: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first true result; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := what():
            return result
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def stage_of(mesh: DemoMesh, deployment: str) -> int:
    """Return the process of one of a ring's stages that is not its head."""
    found = {d["name"]: d for d in mesh.get("alpha", "/v1/deployments")["deployments"]}[deployment]
    node = next(s["name"] for s in found["stages"] if s["name"] != found["head_name"])
    return engine_of(mesh, deployment, node)


def engine_of(mesh: DemoMesh, deployment: str, node: str) -> int:
    """Return the process of a deployment's engine on a node."""
    (found,) = mesh.ask(node, "logs", deployment, "--node", node)["nodes"]
    (pid,) = [tail["pid"] for tail in found["tails"] if tail["state"] == "runs"]
    return int(pid)


def answer(mesh: DemoMesh, model: str) -> str:
    """Return what a model says through the gateway, "" where it does not."""
    body = {"model": model, "temperature": 0, "max_tokens": 32,
            "messages": [{"role": "user", "content": "What is 27 + 15?"}]}  # fmt: skip
    url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions"
    command = ["curl", "-sf", "-m", "30", url, "-H", "Content-Type: application/json"]
    done = mesh.machine(GATEWAY).run([*command, "-d", json.dumps(body)])
    if done.returncode != 0:
        return ""
    text: str = json.loads(done.stdout)["choices"][0]["message"]["content"]
    return text
