"""Stored models between real agents: pulled from a member over WireGuard, deployed, repaired."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.demo.mesh import DemoMesh
from agent.errors import EnvironmentFault
from agent.models import bundled, pieces
from agent.models.partfile import PartFile


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


def test_a_disk_that_fills_up_is_one_line_and_what_came_counts(tmp_path: Path) -> None:
    size = 64 << 20
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", tmp_path], check=True)
    try:
        plan = pieces.blind(size)
        path = tmp_path / "m.part"
        with PartFile(path, plan, [size], "one") as part:
            with pytest.raises(
                EnvironmentFault, match=r"is full: 8\.4 MB more are needed"
            ) as caught:
                for index, piece in enumerate(plan):
                    part.write(index, bytes(piece.size))
            assert str(tmp_path) in caught.value.message
        with PartFile(path, plan, [size], "one") as part:
            assert part.done == {0, 1}
    finally:
        subprocess.run(["umount", tmp_path], check=True)


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
