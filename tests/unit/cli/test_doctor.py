"""`agent doctor`: with and without an agent, for people and programs, its exit code and report."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from agent.cli import cli, common, main
from agent.cli import doctor as command
from agent.doctor import look
from agent.doctor.facts import Machine
from agent.membership.store import StateDir

FAULT = {"code": "overlay-down", "severity": "error", "title": "WireGuard fails", "text": "x.",
         "what_to_do": "Do y."}  # fmt: skip
STATUS: dict[str, Any] = {
    "pid": os.getpid(), "name": "box", "mesh": "home", "software": "1.0", "uptime_s": 600,
    "network": {"overlay": "kernel", "port": 51820}, "health": [],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _a_machine_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "machine", lambda *_: Machine())


def run(state: Path, *arguments: str, name: str = "doctor") -> Result:
    kept = {key: None for key in os.environ if key.startswith("COVEY_")}
    env = kept | {"COVEY_CONFIG": os.devnull, "COVEY_NODE_STATE_DIR": str(state)}
    return CliRunner().invoke(cli, [name, *arguments], env=env)


@asynccontextmanager
async def answering(state: Path, answers: dict[str, Any]) -> AsyncIterator[None]:
    """Stand for an agent that answers so to /v1/NAME, and to all else with an error."""

    async def answer(request: web.Request) -> web.Response:
        found = answers.get(request.match_info["name"])
        if found is None:
            fault = {"kind": "CoveyError", "message": "a mistake.", "hint": ""}
            return web.json_response({"error": fault}, status=500)
        return web.json_response(found)

    app = web.Application()
    app.router.add_get("/v1/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    state.mkdir(exist_ok=True)
    await web.UnixSite(runner, str(state / "agent.sock")).start()
    try:
        yield
    finally:
        await runner.cleanup()


def test_a_machine_in_no_mesh_is_fit_for_one(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("note     This node is in no mesh [no-mesh]\n")
    assert "→ `agent join TICKET`" in done.output
    assert "\nok       Memory: " in done.output
    assert done.output.splitlines()[-1].startswith("0 errors, 0 warnings, 1 note, ")
    assert "\x1b" not in done.output


def test_a_member_whose_agent_is_down_ends_with_one(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state").lock() as state:
        state.create_mesh("home", "box", 1.7e9)
    done = run(tmp_path / "state", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["running"], told["counts"]["error"], told["bundle"]) == (False, 1, None)
    assert told["items"][0]["code"] == "agent-down"
    assert "no agent is running" in told["items"][0]["text"]


def test_the_program_itself_ends_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Click gives exit codes back otherwise where it is not the last to be called."""
    with StateDir(tmp_path / "state").lock() as state:
        state.create_mesh("home", "box", 1.7e9)
    monkeypatch.setattr(sys, "argv", ["agent", "doctor", "--set", f"node.state_dir={state.path}"])
    monkeypatch.setenv("COVEY_CONFIG", os.devnull)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1


async def test_what_the_agents_parts_tell_stands_beside_what_is_found(tmp_path: Path) -> None:
    status = STATUS | {"health": [FAULT, FAULT | {"code": "memory-low"}]}
    async with answering(tmp_path, {"status": status, "peers": {"peers": []}}):
        done = await asyncio.to_thread(run, tmp_path, "--json")
    assert done.exit_code == 1, done.output
    told = json.loads(done.stdout)
    assert told["running"]
    assert told["items"][0] == FAULT | {"details": []}
    assert [i["severity"] for i in told["items"] if i["code"] == "memory-low"] == ["ok"]


async def test_a_report_is_written_though_the_agent_does_not_answer_all(tmp_path: Path) -> None:
    out = tmp_path / "report.tar.gz"
    async with answering(tmp_path, {"status": STATUS, "peers": {"peers": []}}):
        done = await asyncio.to_thread(run, tmp_path, "--bundle", str(out))
    assert done.exit_code == 0, done.output
    assert f"The report is in {out}." in done.output
    with tarfile.open(out) as archive:
        file = archive.extractfile("covey-report/agent/netcheck.json")
        assert file is not None
        assert json.load(file) == {"error": "a mistake."}


async def test_status_counts_what_is_wrong_and_says_where_to_look(tmp_path: Path) -> None:
    status = STATUS | {
        "node": "n", "ipv6": "fd00::1", "ipv4": "10.77.0.1", "roles": ["worker"], "engines": [],
        "draining": False, "certificate_left_s": 1e6, "computes": {"lines": []},
        "parts": dict.fromkeys(("overlay", "control", "discovery", "paths", "relay"), "x"),
        "peers": {"known": 0, "connected": 0, "asleep": 0},
        "health": [FAULT, *(FAULT | {"severity": "warning", "title": t} for t in ("A", "B"))],
    }  # fmt: skip
    async with answering(tmp_path, {"status": status, "peers": {"peers": []}}):
        done = await asyncio.to_thread(run, tmp_path, name="status")
    lines = done.output.splitlines()
    assert "  health       1 error, 2 warnings; `agent doctor` looks closer" in lines
    assert [line.split()[0] for line in lines[-3:]] == ["error", "warning", "warning"]


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert common.colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not common.colours()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not common.colours()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert not common.colours()


def test_on_a_terminal_the_severity_is_coloured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "colours", lambda: True)
    assert run(tmp_path).output.startswith("\x1b[36mnote    \x1b[0m This node is in no mesh")
