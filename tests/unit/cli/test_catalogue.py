"""How the catalogue is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli import catalogue as command
from agent.deploy import offers
from agent.models import catalogue
from agent.placement.inputs import Node


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the command on an agent with these nodes' memory (GiB)."""

    def run(*words: str, **gib: float) -> str:
        workers = [Node(name, name, int(size * 2**30)) for name, size in gib.items()]

        class Agent:
            async def get(self, path: str) -> dict[str, Any]:
                name = path.removeprefix("/v1/catalogue").strip("/")
                entries = [catalogue.find(name)] if name else catalogue.entries()
                return {
                    "workers": [{"name": w.name, "free_bytes": w.free_bytes} for w in workers],
                    "models": offers._described(entries, workers),
                }

        async def called(use: Any) -> Any:
            return await use(Agent())

        import asyncio

        monkeypatch.setattr(command, "call", lambda settings, use: asyncio.run(called(use)))
        done = CliRunner().invoke(command.catalogue, ["--config", "/dev/null", *words])
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_a_line_for_each_file_says_what_it_takes(shown: Any) -> None:
    lines = shown(desk=8).splitlines()
    assert lines[0].split() == [
        "NAME", "QUANTISATION", "PARAMETERS", "SIZE", "LAYERS", "CONTEXT", "CUT", "HERE"
    ]  # fmt: skip
    row = next(line for line in lines if line.startswith("llama-3.2-1b") and "Q8_0" in line)
    assert row.split("  ")[-1] == "fits one node (desk)"
    assert "1.24 B" in row
    assert "1.3 GB" in row
    kimi = next(line for line in lines if line.startswith("kimi-k2-thinking"))
    assert "about 621 GB" in kimi
    assert "256 Ki" in kimi
    assert "needs 715 GiB more" in kimi
    assert lines[-1] == "Free now: desk 8.0 GiB."
    files = sum(len(entry.files) for entry in catalogue.entries())
    assert len(lines) == files + 2


def test_one_model_is_told_with_its_sources_and_what_is_not_sure_of_them(shown: Any) -> None:
    said = shown("deepseek-v3.1", desk=8)
    assert "256 experts of 2048, 8 used for a token" in said
    assert "keys and values of rank 512" in said
    assert "in 9 files" in said
    assert said.count("the file may be called otherwise") == 1
    whole = shown("gemma-3-27b", desk=8)
    assert "stays in one piece: llama.cpp scales the attention of gemma3" in whole
    assert "embedding and output tied" in whole


def test_without_workers_nothing_fits_and_for_programs_it_is_json(shown: Any) -> None:
    assert shown("covey-mini").endswith("No worker told what memory it has free.\n")
    (model,) = json.loads(shown("covey-mini", "--json", desk=1))["models"]
    assert model["files"][0]["nodes"] == ["desk"]
