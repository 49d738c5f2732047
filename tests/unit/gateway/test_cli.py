"""The command: one clear line and an exit status for each fault, and the process as it is run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from gateway.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
HELLO = [{"role": "user", "content": "hello"}]
STREAM = {"model": "covey-mini", "messages": HELLO, "stream": True}


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--replica", "x"], 2, "gateway: --replica 'x' is not NAME=URL. For example"),
        (["--replica", "x=ftp://h"], 2, "gateway: the URL 'ftp://h' of replica x is no http"),
        (["--listen", "here"], 2, "gateway: --listen 'here' is no address to listen on."),
        (["--fd", "9999"], 2, "gateway: file descriptor 9999 is no socket"),
        (
            ["--config", "/nowhere/g.toml"],
            5,
            "the configuration file /nowhere/g.toml cannot be read",
        ),
        (["--listen", "192.0.2.1:1"], 5, "gateway: 192.0.2.1 is no address of this machine."),
        (["--strategy", "best"], 2, "'best' is not one of"),
        (["--otlp-endpoint", "h:4318"], 2, "gateway: otlp_endpoint 'h:4318' is no http://"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], code: int, line: str) -> None:
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == code
    assert line in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", "--listen", f"127.0.0.1:{port}"])
        assert result.exit_code == 5
        assert result.stderr.startswith(f"gateway: port {port} on 127.0.0.1 is in use. ")
        assert len(result.stderr.splitlines()) == 1


def test_status_without_a_gateway() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(main, ["status", "--listen", f"127.0.0.1:{port}"])
    assert result.exit_code == 10
    assert result.stderr.startswith(f"gateway: no gateway answers on 127.0.0.1:{port}. ")


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start the real program; what a test leaves is killed."""
    processes: list[Process] = []

    async def begin(*arguments: str, pass_fds: tuple[int, ...] = ()) -> Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", *arguments,
            stdout=PIPE, stderr=PIPE, pass_fds=pass_fds,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready(url: str) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url + "/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.02)


async def said(process: Process, text: str) -> list[str]:
    """Read the log until a line holds `text`, and return what was read."""
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(20):
        while text not in (lines[-1] if lines else ""):
            line = await process.stderr.readline()
            assert line, f"it ended without saying {text!r}: {lines}"
            lines.append(line.decode())
    return lines


async def test_the_program_serves_two_heads_on_an_inherited_socket_and_drains(
    start: Start, serve: Any, scripted: Any, tmp_path: Path
) -> None:
    step = asyncio.Event()
    models = [scripted([b"a", step, b"b"]) for _ in range(2)]
    named = [f"{name}={await serve(model)}" for name, model in zip("xy", models, strict=True)]
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    process = await start(
        "serve", "--fd", str(listener.fileno()), "--socket", str(tmp_path / "none.sock"),
        "--replica", named[0], "--replica", named[1], "--strategy", "round_robin", "--json-logs",
        pass_fds=(listener.fileno(),),
    )  # fmt: skip
    listener.close()
    await ready(url)
    async with aiohttp.ClientSession() as session:
        answers = [await session.post(url + "/v1/chat/completions", json=STREAM) for _ in range(2)]
        assert sorted(answer.headers["x-covey-replica"] for answer in answers) == ["x", "y"]
        assert [model.running for model in models] == [1, 1]

        where = ["status", "--listen", url.removeprefix("http://")]
        shown = await asyncio.to_thread(CliRunner().invoke, main, where)
        assert shown.stdout.startswith("strategy: round_robin   agent: no agent is running on")
        shown = await asyncio.to_thread(CliRunner().invoke, main, [*where, "--json"])
        replicas = json.loads(shown.stdout)["replicas"]
        assert [(r["name"], r["in_flight"], r["usable"]) for r in replicas] == [
            ("x", 1, True),
            ("y", 1, True),
        ]

        process.send_signal(signal.SIGTERM)
        lines = await said(process, "stopping")
        with pytest.raises(aiohttp.ClientConnectionError):
            async with asyncio.timeout(5):
                while True:  # connections that the kernel had taken already are reset
                    async with session.get(url + "/health"):
                        pass
        step.set()
        for answer in answers:
            assert (await answer.text()).endswith("data: [DONE]\n\n")
    assert process.stderr is not None
    rest = (await process.stderr.read()).decode().splitlines()
    assert await process.wait() == 0
    events = [json.loads(line)["event"] for line in [*lines, *rest]]
    assert events[-1] == "stopped"
    waiting = [event for event in events if event.startswith("waiting for the agent")]
    assert len(waiting) == 1 and "no agent is running on" in waiting[0]


async def test_the_drain_is_bounded(
    start: Start, serve: Any, scripted: Any, tmp_path: Path
) -> None:
    model = scripted([b"a", asyncio.Event()])
    process = await start(
        "serve", "--listen", "127.0.0.1:0", "--socket", str(tmp_path / "none.sock"),
        "--replica", f"x={await serve(model)}", "--drain", "0.1",
    )  # fmt: skip
    [line] = [x for x in await said(process, "listening address=") if "listening" in x]
    url = line.rpartition("address=")[2].strip()
    await ready(url)
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + "/v1/chat/completions", json=STREAM)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
