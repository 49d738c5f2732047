"""Stored models between real agents: pulled from a member over WireGuard, deployed, repaired."""

from __future__ import annotations

from agent.demo.mesh import DemoMesh
from agent.models import bundled


def test_a_model_goes_from_member_to_member_and_is_deployed_by_its_name(mesh: DemoMesh) -> None:
    for name in ("beta", "gamma"):
        mesh.agent(name, "pull", str(bundled.path()), "--name", "mini")
    listed = {model["name"]: model for model in mesh.ask("alpha", "models")["models"]}
    assert listed["mini"]["here"] is False
    assert listed["mini"]["elsewhere"] == ["beta", "gamma"]
    pulled = mesh.ask("alpha", "pull", "mini")
    assert {source["name"] for source in pulled["sources"]} == {"beta", "gamma"}
    stored = mesh.root / "alpha" / "models" / "mini.gguf"
    assert stored.read_bytes() == bundled.path().read_bytes()
    mesh.agent("alpha", "deploy", "mini", "--name", "stored", "--nodes", "2")
    (model,) = mesh.ask("alpha", "models")["models"]
    assert model["used_by"] == "stored"
    refused = mesh.try_agent("alpha", "rm", "mini")
    assert refused.returncode == 2
    assert "used by the deployment stored" in refused.stderr
    mesh.agent("alpha", "undeploy", "stored")


def test_a_damaged_tensor_comes_again_from_a_member(mesh: DemoMesh) -> None:
    stored = mesh.root / "alpha" / "models" / "mini.gguf"
    raw = bytearray(stored.read_bytes())
    raw[-5] ^= 1
    stored.write_bytes(raw)
    assert mesh.try_agent("alpha", "verify", "mini").returncode == 12
    assert "It is repaired." in mesh.agent("alpha", "verify", "mini", "--repair")
    assert stored.read_bytes() == bundled.path().read_bytes()
    for name in ("alpha", "beta", "gamma"):
        mesh.agent(name, "rm", "mini")
