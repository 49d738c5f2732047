"""A split model between real agents: pulled, shared, run whole, cut and over llama.cpp's RPC."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from patience import answer, wait

from agent.demo.mesh import DemoMesh
from agent.models import bundled

# The tests of the engine know how a file is split.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))

from split_models import split


@pytest.fixture(scope="module")
def files(mesh: DemoMesh, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Split the bundled model, and store it at two members."""
    made = split(bundled.path(), tmp_path_factory.mktemp("split"), 3)
    for name in ("beta", "gamma"):
        mesh.agent(name, "pull", str(made[1]), "--name", "parts")
    pulled = mesh.ask("alpha", "pull", "parts")
    assert {source["name"] for source in pulled["sources"]} == {"beta", "gamma"}
    stored = mesh.root / "alpha" / "models"
    for number, path in enumerate(made, 1):
        assert (stored / f"parts-{number:05d}-of-00003.gguf").read_bytes() == path.read_bytes()
    return made


@pytest.mark.parametrize(
    "how", [("--nodes", "1"), ("--nodes", "2"), ("--nodes", "2", "--engine", "rpc")], ids=" ".join
)
def test_its_answers_are_those_of_the_whole_one(
    mesh: DemoMesh, files: list[Path], how: tuple[str, ...]
) -> None:
    deployed = mesh.ask("alpha", "deploy", "parts", "--name", "split", *how)
    assert deployed["phase"] == "ready"
    assert len({stage["name"] for stage in deployed["stages"]}) == int(how[1])
    mesh.wait_served({"split"})
    assert wait(lambda: answer(mesh, "split")) == answer(mesh, "solo")
    (model,) = mesh.ask("alpha", "models")["models"]
    assert (model["name"], model["files"], model["used_by"]) == ("parts", 3, "split")
    assert mesh.try_agent("alpha", "rm", "parts").returncode == 2
    mesh.agent("alpha", "undeploy", "split")


def test_a_path_of_any_file_is_deployed_and_an_absent_one_is_named(
    mesh: DemoMesh, files: list[Path]
) -> None:
    mesh.agent("gamma", "deploy", str(files[2]), "--name", "loose", "--nodes", "2")
    mesh.wait_served({"loose"})
    assert wait(lambda: answer(mesh, "loose")) == answer(mesh, "solo")
    mesh.agent("gamma", "undeploy", "loose")
    files[1].unlink()
    refused = mesh.try_agent("gamma", "deploy", str(files[0]), "--name", "loose")
    assert refused.returncode != 0
    assert f"{files[1].name} is not beside it" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    refused = mesh.try_agent("gamma", "pull", str(files[0]), "--name", "other")
    assert refused.returncode == 2
    assert files[1].name in refused.stderr
    for name in ("alpha", "beta", "gamma"):
        mesh.agent(name, "rm", "parts")
        assert not list((mesh.root / name / "models").glob("parts*"))
