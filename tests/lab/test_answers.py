"""The main job: the answer through gateway, WireGuard and ring is llama.cpp's own, by token."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config
from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh
from agent.models import bundled

HERE = Path(__file__).parent
MODELS = {"solo": 1, "duo": 2, "trio": 3}
PAGES = Config().http_listen  # the agent's own, of a ring's nothing
BASE = f"http://127.0.0.1:{GATEWAY_PORT}"
QUESTIONS = ("What is 27 + 15?", "What is a ring?", "Spell the word 'covey'.")


@pytest.fixture(scope="session")
def reference() -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, str(HERE / "reference.py"), str(bundled.path()), *QUESTIONS],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(zip(QUESTIONS, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="session")
def answers(mesh: DemoMesh) -> dict[tuple[str, str], Any]:
    """Return what the official client got for every model and question."""
    pairs = list(product(MODELS, QUESTIONS))
    done = mesh.machine(GATEWAY).run(
        [sys.executable, str(HERE / "ask.py"), BASE, *(word for pair in pairs for word in pair)],
        env=mesh.environment(GATEWAY),
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(pairs, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_the_streamed_answer_is_the_whole_models_token_by_token(
    mesh: DemoMesh,
    reference: dict[str, list[str]],
    answers: dict[tuple[str, str], Any],
    model: str,
) -> None:
    deployed = {d["name"]: d for d in mesh.get("alpha", "/v1/deployments")["deployments"]}
    assert deployed[model]["nodes"] == MODELS[model]
    for question in QUESTIONS:
        answer, expected = answers[model, question], reference[question]
        assert answer["pieces"] == expected
        assert answer["text"] == "".join(expected)
        # The token that ends an answer is generated, and so counted, but has no text.
        assert answer["tokens"] in (len(expected), len(expected) + 1)
        assert answer["finish"] == "stop"
        assert answer["text"].strip()


def test_the_gateway_finds_all_heads_by_itself(mesh: DemoMesh) -> None:
    done = mesh.machine(GATEWAY).run(["curl", "-sf", f"{BASE}/v1/models"])
    assert {model["id"] for model in json.loads(done.stdout)["data"]} == {"solo", "duo", "trio"}


def test_stages_listen_on_overlay_addresses_only(mesh: DemoMesh) -> None:
    """No port of a ring, nor of a head's HTTP, is open on the underlay or on loopback."""
    for name in ("alpha", "beta", "gamma"):
        overlay = mesh.get(name, "/v1/status")["ipv6"]
        done = mesh.machine(name).run(["ss", "-Htln"])
        listening = [line.split()[3].rpartition(":") for line in done.stdout.splitlines()]
        engines = [
            (host, port) for host, _, port in listening
            if 7000 <= int(port) < 7200 and (host, int(port)) != PAGES
        ]  # fmt: skip
        assert engines, done.stdout
        assert {host for host, _ in engines} == {f"[{overlay}]"}
