"""`agent pull`, `models`, `rm`, `verify` as a person meets them: a real store, a real socket."""

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from agent import cli, config
from agent.api import LocalApi
from agent.cli.models import progress_line
from agent.errors import UsageError
from agent.models import bundled
from agent.models.manifest import MIN_PIECE_BYTES
from agent.models.pull import Limits
from agent.models.service import ModelStore

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "models"))

from servers import Server, serving  # noqa: E402

pytestmark = pytest.mark.slow

MODEL = bundled.path()
LIMITS = Limits(silence_s=0.4, backoff_s=0.01, piece_bytes=MIN_PIECE_BYTES)


class Alone:
    """A mesh of one."""

    def others(self) -> list[Any]:
        return []


class Agent:
    """An agent that has a store and nothing else."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.used: dict[Path, str] = {}
        settings = config.Config(node=config.Node(state_dir=str(folder)))
        self.store = ModelStore(settings, Alone(), (), lambda: self.used, LIMITS)  # type: ignore[arg-type] # nobody is asked
        target = AsyncMock()
        target.models, target.model_jobs = self.store.describe, self.store.jobs
        target.pull, target.cancel_pull = self.store.pull, self.store.cancel
        target.remove_model, target.verify_models = self.store.remove, self.store.verify
        self.api = LocalApi(target, folder / "agent.sock")

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command as a process of its own, as the agent's users do."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent", *arguments, cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            # Whoever runs the tests in the background has them ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command in a thread; return its exit code, and what it printed on both streams."""
        out, err = io.StringIO(), io.StringIO()

        def command() -> int:
            try:
                cli.main()
            except SystemExit as end:
                return int(end.code or 0)
            return 0

        self.patch.setattr(sys, "argv", ["agent", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = await asyncio.to_thread(command)
        return code, out.getvalue(), err.getvalue()

    async def fails(self, code: int, *arguments: str) -> str:
        """Return the one line of an error."""
        found, out, err = await self.run(*arguments)
        assert (found, out) == (code, ""), (arguments, out, err)
        (line,) = err.splitlines()
        assert line.startswith("Error: ")
        return line


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    for name in [name for name in os.environ if name.startswith("COVEY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COVEY_CONFIG", os.devnull)
    monkeypatch.setenv("COVEY_NODE_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = Agent(tmp_path, monkeypatch)
    await made.store.start()
    await made.api.start()
    yield made
    await made.api.stop()
    await made.store.stop()


async def test_a_model_comes_is_listed_checked_and_removed(agent: Agent) -> None:
    (agent.folder / "tiny.gguf").write_bytes(MODEL.read_bytes())
    code, out, err = await agent.run("pull", "tiny.gguf")
    assert (code, err) == (0, "")  # nothing is drawn where there is no terminal
    assert out.startswith("tiny is here: ")
    code, out, _ = await agent.run("models")
    assert code == 0
    assert "tiny" in out and "llama" in out and "whole" in out and "never" in out
    code, out, _ = await agent.run("models", "--json")
    assert json.loads(out)["models"][0]["name"] == "tiny"
    assert await agent.run("verify") == (0, "tiny is whole.\n", "")
    path = agent.folder / "models" / "tiny.gguf"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    code, out, _ = await agent.run("verify", "tiny")
    assert code == 12
    assert out.startswith("tiny is damaged: ") and "--repair" in out
    code, out, err = await agent.run("verify", "tiny", "--repair", "--json")
    assert code == 0, err
    assert json.loads(out)["models"][0]["repaired"] is True
    assert path.read_bytes() == MODEL.read_bytes()
    agent.used = {path.resolve(): "chat"}
    assert "used by the deployment chat" in await agent.fails(2, "rm", "tiny")
    agent.used = {}
    assert await agent.run("rm", "tiny") == (0, "tiny is removed.\n", "")
    code, out, _ = await agent.run("models")
    assert "No models are stored" in out


async def test_mistakes_are_one_line_with_their_exit_code(agent: Agent) -> None:
    assert "has a model nobody-has-it" in await agent.fails(8, "pull", "nobody-has-it")
    assert "not encrypted" in await agent.fails(2, "pull", "http://example.org/m.gguf")
    assert "cannot read the model" in await agent.fails(2, "pull", "./nothing.gguf")
    wrong = await agent.fails(8, "pull", str(MODEL), "--name", "m", "--sha256", "0" * 64)
    assert "was expected" in wrong
    assert "failed 3 times" in await agent.fails(7, "pull", "http://127.0.0.1:9/m.gguf")
    assert "is no SHA-256" in await agent.fails(2, "pull", "https://x.org/m", "--sha256", "1")
    assert "cannot name a model" in await agent.fails(2, "pull", str(MODEL), "--name", "a/b")
    assert "names no file of the hub" in await agent.fails(2, "pull", "hf:x")
    assert "there is no model x" in await agent.fails(2, "rm", "x")
    assert "there is no whole model x" in await agent.fails(2, "verify", "x")
    assert "nothing named x" in await agent.fails(2, "pull", "--cancel", "x")
    agent.store._store.free = lambda: 5  # type: ignore[method-assign]
    assert "5 B are free" in await agent.fails(5, "pull", str(MODEL), "--name", "m")
    assert list((agent.folder / "models").iterdir()) == []


async def test_ctrl_c_ends_the_command_and_not_the_pull(agent: Agent) -> None:
    server = Server(MODEL.read_bytes(), rate=3e5)
    async with serving(server):
        process = await agent.start("pull", server.url, "--name", "m")
        async with asyncio.timeout(20):
            while server.sent < 3 * MIN_PIECE_BYTES:  # noqa: ASYNC110 - the server counts
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # it follows the pull by now
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130
        assert "m goes on in the agent" in err.decode()
        assert "Traceback" not in err.decode()
        code, out, _ = await agent.run("models")
        assert "fetching" in out
        server.rate = None
        code, out, _ = await agent.run("pull", "m")
    assert code == 0
    assert "Nobody said beforehand" in out


async def test_a_pull_is_begun_without_waiting_and_cancelled(agent: Agent) -> None:
    server = Server(MODEL.read_bytes(), rate=2e5)
    async with serving(server):
        code, out, _ = await agent.run("pull", server.url, "--name", "m", "--no-wait", "--json")
        assert (code, json.loads(out)["name"]) == (0, "m")
        code, out, _ = await agent.run("pull", "--cancel", "m")
        assert (code, out) == (0, "m is not pulled any more; what came is removed.\n")
        assert await agent.run("models", "--json") is not None
        with pytest.raises(UsageError):
            await agent.store.cancel("m")


def test_progress_in_one_line() -> None:
    job = {"name": "m", "phase": "fetching", "done": 43, "total": 100, "rate": 2e6, "left_s": 28.5}
    assert progress_line(job) == "m: fetching, 43 %, 43 B of 100 B, 2.0 MB/s, 28 s left"
    job |= {"phase": "waiting", "total": 0, "done": 0, "rate": 0.0, "left_s": None}
    assert progress_line(job) == "m: waiting"
