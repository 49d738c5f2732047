"""The pods of kubernetes/ run in podman as they are written, and join the mesh of compose.yaml.

podman 4.3 knows no DaemonSet and no sidecar: the first is given to it as a pod, the second as one
container more of it. Probes are not run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine import ROOT, Engine, eventually

BASE = ROOT / "image" / "containers" / "kubernetes" / "base"


def spec(file: str, kind: str) -> dict[str, Any]:
    """Return the pod's spec of the one object of that kind."""
    [found] = [one for one in yaml.safe_load_all((BASE / file).read_text()) if one["kind"] == kind]
    template: dict[str, Any] = found["spec"]["template"]["spec"]
    return template


def placed(pod: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a pod whose folders of the machine are in a test's folder.

    podman 4.3 ends with a panic where a secret does not say that it must be there.
    """
    for volume in pod["volumes"]:
        if "secret" in volume:
            volume["secret"]["optional"] = False
        if "hostPath" in volume:
            volume["hostPath"]["path"] = str(folder / volume["hostPath"]["path"].lstrip("/"))
            Path(volume["hostPath"]["path"]).mkdir(parents=True)
    return pod


def play(engine: Engine, name: str, pod: dict[str, Any], *others: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
    text = yaml.safe_dump_all([*others, whole])
    engine.done("kube", "play", "-", text=text)


@pytest.fixture
def first(engine: Engine) -> Iterator[Engine]:
    """The first node of compose.yaml, alone, as the member that is there already."""
    engine.compose("up", "-d", "node-1", COVEY_PORT="18088")
    eventually(lambda: engine.podman("exec", "covey_node-1_1", "agent", "status").returncode == 0)
    yield engine
    engine.podman("pod", "rm", "-fa", "-t", "5")
    engine.podman("secret", "rm", "-a")
    engine.compose("down", "-v")


def ticket(engine: Engine, role: str) -> dict[str, Any]:
    made = json.loads(
        engine.done("exec", "covey_node-1_1", "agent", "invite", "--role", role, "--json")
    )
    data = base64.b64encode(made["ticket"].encode()).decode()
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ticket"},
            "data": {"worker": data, "gateway": data}}  # fmt: skip


def members(engine: Engine) -> dict[str, dict[str, Any]]:
    found = json.loads(engine.done("exec", "covey_node-1_1", "agent", "members", "--json"))
    return {one["name"]: one for one in found["members"]}


def test_a_node_joins_drains_and_comes_back(first: Engine, tmp_path: Path) -> None:
    pod = placed(spec("agent.yaml", "DaemonSet"), tmp_path)
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "agent"},
                "data": {"agent.toml": (BASE / "agent.toml").read_text()}}  # fmt: skip
    play(first, "node", pod, settings, ticket(first, "worker"))
    joined = eventually(lambda: members(first).keys() - {"node-1"})
    assert len(joined) == 1
    probe = pod["containers"][0]["startupProbe"]["exec"]["command"]
    eventually(lambda: first.podman("exec", "node-agent", *probe).returncode == 0)
    shown = first.done("exec", "node-agent", "agent", "config", "show")
    assert "/etc/covey/agent.toml" in shown
    rights = first.inspect("node-agent")
    given = {word.removeprefix("CAP_") for word in rights["EffectiveCaps"]}
    assert given == {"NET_ADMIN", "NET_RAW"}
    assert rights["HostConfig"]["ReadonlyRootfs"]
    before = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert "runs nothing now" in first.done("exec", "node-agent", *before)
    first.done("pod", "stop", "-t", "40", "node")
    first.done("pod", "start", "node")
    eventually(lambda: first.podman("exec", "node-agent", *probe).returncode == 0)
    told = json.loads(first.done("exec", "node-agent", "agent", "status", "--json"))
    assert not told["draining"]
    assert {told["name"]} == joined


def test_a_gateway_finds_the_agent_beside_it(first: Engine, tmp_path: Path) -> None:
    pod = placed(spec("gateway.yaml", "Deployment"), tmp_path)
    for sidecar in pod.pop("initContainers"):
        del sidecar["restartPolicy"]
        pod["containers"].insert(0, sidecar)
    play(first, "edge", pod, ticket(first, "gateway"))
    eventually(
        lambda: (
            "the agent answers"
            in (said := first.podman("logs", "edge-gateway")).stdout + said.stderr
        )
    )
    assert first.done("exec", "edge-gateway", "id", "-u").strip() == "65532"
    [other] = [one for name, one in members(first).items() if name != "node-1"]
    assert other["roles"] == ["gateway"]
