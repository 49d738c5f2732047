"""What the engines of a ring said, asked for anywhere."""

from __future__ import annotations

from patience import wait

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh

WORKERS = {"alpha", "beta", "gamma"}


def test_lines_come_from_all_nodes_of_a_ring(mesh: DemoMesh) -> None:
    def whole() -> bool:
        deployed = mesh.get("alpha", "/v1/deployments")["deployments"]
        return any(one["name"] == "trio" and one["nodes"] == 3 for one in deployed)

    wait(whole, 120)
    said = mesh.agent("door", "logs", "trio").splitlines()
    assert {line.split("  ")[0] for line in said} - {"door"} == WORKERS
    heads = {line.split("  ")[0] for line in said if line.split("  ")[1] == "the head"}
    deployed = mesh.get("alpha", "/v1/deployments")["deployments"]
    # Those that were head before it are kept as well.
    assert {one["head_name"] for one in deployed if one["name"] == "trio"} <= heads
    one = mesh.ask("door", "logs", "trio", "--node", "beta", "--lines", "1")
    [node] = one["nodes"]
    assert node["name"] == "beta"
    assert all(len(tail["lines"]) <= 1 for tail in node["tails"])


def test_what_is_not_there_is_one_line(mesh: DemoMesh) -> None:
    for wrong, words in (
        (["nothing"], "nothing is not deployed in this mesh"),
        (["trio", "--node", "nobody"], "no member is called 'nobody'"),
    ):
        done = mesh.try_agent("beta", "logs", *wrong)
        assert done.returncode == 2, done.stderr
        [line] = done.stderr.strip().splitlines()
        assert words in line


def test_neither_prompts_nor_answers_are_in_them(mesh: DemoMesh) -> None:
    body = '{"model": "solo", "prompt": "zyzzyva", "max_tokens": 5, "temperature": 0}'
    url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/completions"
    command = ["curl", "-sf", "-m", "30", url, "-H", "Content-Type: application/json", "-d", body]
    wait(lambda: mesh.machine(GATEWAY).run(command).returncode == 0)
    said = wait(lambda: "answered" in (text := mesh.agent("door", "logs", "solo")) and text)
    assert "zyzzyva" not in said
