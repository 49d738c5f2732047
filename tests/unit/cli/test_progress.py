"""Progress is one line on a terminal's stderr, wiped at the end, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cli import progress

WIPE = "\r\x1b[K"


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 40) -> Iterator[int]:
    """Make stderr a terminal; yields where to read what is drawn."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as drawn:
        monkeypatch.setattr(sys, "stderr", drawn)
        monkeypatch.setenv("COLUMNS", str(columns))
        yield ours
        monkeypatch.undo()
    os.close(ours)


def read(descriptor: int) -> str:
    """Return all that was drawn up to now."""
    os.set_blocking(descriptor, False)
    drawn = b""
    with contextlib.suppress(OSError):  # there is no more, or the other end is closed
        while piece := os.read(descriptor, 65536):
            drawn += piece
    return drawn.decode()


def test_a_line_is_drawn_over_cut_and_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, columns=10) as drawn:
        with progress.Progress() as line:
            line.tell("loading")
            line.tell("loading")
            line.tell("loading for long")
        assert read(drawn) == f"{WIPE}loading{WIPE}loading …{WIPE}"


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress() as line, progress.waiting("asking", delay_s=0.0):
        line.tell("loading")
        time.sleep(0.02)
    assert capsys.readouterr() == ("", "")


def test_what_takes_long_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as drawn:
        told = ""
        with progress.waiting("asking", delay_s=0.01):
            deadline = time.monotonic() + 20
            while "asking, 0 s" not in told and time.monotonic() < deadline:
                time.sleep(0.01)
                told += read(drawn)
        told += read(drawn)
        assert told.startswith(f"{WIPE}asking, 0 s")
        assert told.endswith(WIPE)


def test_what_is_quick_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as drawn:
        with progress.waiting("asking", delay_s=60.0):
            pass
        assert read(drawn) == ""


@pytest.mark.slow
def test_a_command_that_waits_for_an_agent_says_so_and_prints_only_its_answer(
    tmp_path: Path,
) -> None:
    """Against a socket that answers late; stdout is a pipe, stderr a terminal."""
    socket = tmp_path / "agent.sock"
    server = f"""
import asyncio
from aiohttp import web
async def late(request):
    await asyncio.sleep(2.2)
    return web.json_response({{"deployments": []}})
app = web.Application()
app.router.add_get("/v1/deployments", late)
web.run_app(app, path={str(socket)!r}, print=None)
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
    own = {"COVEY_CONFIG": os.devnull, "COVEY_NODE_SOCKET": str(socket), "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", server]) as late:
        try:
            while not socket.exists():
                assert late.poll() is None
                time.sleep(0.05)
            ours, theirs = pty.openpty()
            done = subprocess.run(
                [sys.executable, "-m", "agent", "ps"], env=kept | own, check=True, text=True,
                stdout=subprocess.PIPE, stderr=theirs, cwd=Path(__file__).parents[3],
            )  # fmt: skip
            os.close(theirs)
            drawn = read(ours)
            os.close(ours)
        finally:
            late.terminate()
    assert done.stdout.startswith("Nothing is deployed.")
    assert "\r\x1b[Kasking the agent, 1 s" in drawn
    assert drawn.endswith(WIPE)
