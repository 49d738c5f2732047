"""`agent bench` on a mesh: against one node, llama.cpp's RPC and a server; and broken off."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import wait

from agent.demo.mesh import GATEWAY, WORKERS, DemoMesh

HERE = WORKERS[1]


def deployed(mesh: DemoMesh) -> set[str]:
    return {one["name"] for one in mesh.get("alpha", "/v1/deployments")["deployments"]}


def test_the_mesh_against_one_node_rpc_and_a_server(mesh: DemoMesh, tmp_path: Path) -> None:
    before = deployed(mesh)
    (other,) = {one["url"] for one in mesh.get(HERE, "/v1/deployments")["deployments"]
                if one["name"] == "duo"}  # fmt: skip
    done = mesh.try_agent(
        HERE, "bench", "--model", "trio", "--one-node", "--rpc", "--against", f"{other}/v1#duo",
        "--rounds", "3", "--tokens", "16", "--streams", "1,2", "--prompt-tokens", "80",
        "--save", str(tmp_path / "found"), "--json", timeout_s=300,
    )  # fmt: skip
    assert done.returncode in (0, 13, 14), done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == {"go": 0, "no go": 13, "undecided": 14}[told["outcome"]]
    assert json.loads((tmp_path / "found.json").read_text()) == told
    page = (tmp_path / "found.md").read_text()
    names = ["this mesh", "one node", "llama.cpp RPC", other.removeprefix("http://")]
    assert [one["name"] for one in told["servers"]] == names
    assert told["servers"][3]["model"] == "duo"
    assert told["headline"] in page
    assert all(f"| {name}: `" in page for name in names)
    for level, streams in zip(told["levels"], (1, 2), strict=True):
        assert level["streams"] == streams
        assert len(level["rounds"]) == 3
        assert all(one["tokens_s"] > 0 for one in level["servers"])
        assert [one["against"] for one in level["verdicts"]] == names[1:]
    counted = {one["prompt_tokens"] for one in told["levels"][0]["servers"]}
    assert len(counted) == 1
    assert 70 <= counted.pop() <= 110  # its own words are as long as the subject and the salt
    facts: dict[str, Any] = told["conditions"]
    assert all(name in facts["this mesh"] for name in WORKERS)
    assert facts["llama.cpp RPC"].endswith(": the same nodes")
    assert deployed(mesh) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_deployed_for_it_is_gone_when_it_is_broken_off(
    mesh: DemoMesh, tmp_path: Path, number: int, code: int
) -> None:
    before = deployed(mesh)
    command = [sys.executable, "-m", "agent", "bench", "--model", "duo", "--rpc", "--rounds",
               "1000", "--save", str(tmp_path / "found")]  # fmt: skip
    with (tmp_path / "said").open("wb") as output:
        process = mesh.machine(HERE).spawn(command, env=mesh.environment(HERE), output=output)
    wait(lambda: deployed(mesh) - before)
    os.kill(process.pid, number)
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == code, (tmp_path / "said").read_text()
    assert (tmp_path / "said").read_text() == ""
    wait(lambda: deployed(mesh) == before)
    assert not list(tmp_path.glob("found*"))


def test_what_cannot_be_compared_is_said_at_once(mesh: DemoMesh, tmp_path: Path) -> None:
    for arguments, code, words in (
        (("--model", "solo", "--rpc"), 2, "solo is on one node"),
        ((), 2, "3 models are deployed: duo, solo, trio. Name the one"),
        (("--model", "quintet"), 2, "no deployment is called quintet"),
        (("--model", "duo", "--mesh", "http://127.0.0.1:9"), 7, "cannot be asked"),
    ):
        done = mesh.try_agent(HERE, "bench", *arguments, "--save", str(tmp_path / "found"))
        assert (done.returncode, done.stdout) == (code, ""), arguments
        (line,) = done.stderr.splitlines()
        assert words in line
    refused = mesh.try_agent(GATEWAY, "bench", "--model", "duo", "--rpc",
                             "--save", str(tmp_path / "found"))  # fmt: skip
    assert refused.returncode == 6
    (line,) = refused.stderr.splitlines()
    assert "this node may not deploy" in line
    assert not list(tmp_path.iterdir())
