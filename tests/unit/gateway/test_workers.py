"""Several workers, as real processes: one port, one answer, no request lost but those of the dead.

Requests that shall reach more than one worker each have a connection of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from gateway.cli import main
from gateway.keys.database import open_database
from gateway.keys.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PATH = "/v1/chat/completions"
ASK = {"model": "m", "messages": [], "max_tokens": 1}
STREAM = ASK | {"stream": True}
# Generous: what is waited for takes a second or two on a machine that has nothing else to do.
PATIENCE_S = 60


class Program:
    """A gateway that runs, and what it logs, as JSON."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._more = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            text = line.decode()
            self.lines.append(json.loads(text) if text.startswith("{") else {"event": text})
            self._more.set()
        self._more.set()

    def having(self, text: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if text in line["event"]]

    async def said(self, text: str, times: int = 1) -> list[dict[str, Any]]:
        """Return the lines with `text` once there are so many."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.having(text)) < times:
                assert not self.reading.done(), f"it ended without {text!r}: {self.lines}"
                self._more.clear()
                await self._more.wait()
        return found

    async def address(self, workers: int) -> str:
        """Return where it listens, once all workers do."""
        found = {line["event"] for line in await self.said("listening address=", workers)}
        assert len(found) == 1
        return found.pop().rpartition("address=")[2]

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


Start = Callable[..., Awaitable[Program]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start the real program with its state in `tmp_path`; what a test leaves is killed."""
    programs: list[Program] = []

    async def begin(
        *arguments: str, pass_fds: tuple[int, ...] = (), program: Sequence[str] = ("-m", "gateway")
    ) -> Program:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
        environment |= {"PYTHONPATH": str(ROOT), "STATE_DIRECTORY": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program, "serve", "--json-logs", *arguments,
            "--socket", str(tmp_path / "none.sock"), stderr=PIPE, env=environment,
            pass_fds=pass_fds,
        )  # fmt: skip
        programs.append(Program(process))
        return programs[-1]

    yield begin
    for program in programs:
        if program.process.returncode is None:
            program.process.kill()  # whose workers then end by themselves
        await program.process.wait()
        async with asyncio.timeout(PATIENCE_S):
            await program.reading  # to its end: no process has its stderr any more


async def whole(_: web.Request) -> web.Response:
    return web.json_response({"usage": {"prompt_tokens": 3, "completion_tokens": 4}})


class Slow:
    """Streams `1`, and `2` when it is let go."""

    def __init__(self) -> None:
        self.step = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return await whole(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await self.step.wait()
        await response.write(b"data: 2\n\n")
        return response


def fresh() -> aiohttp.ClientSession:
    """Return a session with a new connection for each request, as if from many clients."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


async def get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        assert answer.status == 200
        return await answer.json()


async def post(session: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, str]:
    """Return the status of a request and the route that it was given."""
    async with session.post(url + PATH, json=ASK, headers=headers) as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-covey-route", "")


async def counted(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Return the totals of requests and tokens that a worker tells of all."""
    async with session.get(url + "/metrics") as answer:
        assert answer.status == 200
        text = await answer.text()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return {
        "requests": sums.get("gen_ai_server_request_duration_seconds_count", 0.0),
        "tokens": sums.get("gen_ai_client_token_usage_sum", 0.0),
        "refused": sums.get("covey_gateway_requests_refused_total", 0.0),
        "in_flight": sums["covey_gateway_requests_in_flight"],
        "at_replicas": sums["covey_gateway_replica_in_flight"],
        "usable": sums["covey_gateway_replicas_usable"],
    }


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110  # processes have no event to wait for
            await asyncio.sleep(0.05)


async def test_workers_share_a_port_and_one_that_is_killed_is_started_again(
    start: Start, upstream: Any, tmp_path: Path
) -> None:
    config = tmp_path / "g.toml"
    config.write_text(named := f'[replicas]\nr = "{await upstream(whole)}"\n')
    program = await start("--listen", "127.0.0.1:0", "--workers", "2", "--config", str(config))
    url = await program.address(2)
    highest = {"requests": 0.0, "tokens": 0.0, "refused": 0.0}

    async with fresh() as session:

        async def totals() -> dict[str, float]:
            found = await counted(session, url)
            for name, before in highest.items():
                assert found[name] >= before, f"{name} went back"
                highest[name] = found[name]
            return found

        sent = 0
        async with asyncio.timeout(PATIENCE_S):
            while sent < 8 or len({x["worker"] for x in program.having("request path=")}) < 2:
                assert (await post(session, url))[0] == 200
                sent += 1
                await totals()
        async with session.post(url + PATH, json=ASK | {"model": "none"}) as answer:
            assert answer.status == 404
        sent += 1

        async def all_told() -> bool:
            return (await totals())["requests"] == sent

        await until(all_told)
        found = await totals()
        assert found["tokens"] == 7 * (sent - 1) and found["refused"] == 1
        assert (found["in_flight"], found["usable"]) == (0, 1)

        status = await get(session, url + "/gateway/status")
        pids = status["workers"]["pids"]
        assert len(pids) == status["workers"]["wanted"] == 2
        assert [r["requests"] for r in status["replicas"]] == [sent - 1]
        assert program.process.pid not in pids
        shown = await asyncio.to_thread(
            CliRunner().invoke, main, ["status", "--listen", url.removeprefix("http://")]
        )
        assert "workers: 2 of 2" in shown.stdout.splitlines()[0]

        config.write_text(f'strategy = "round_robin"\n{named}')
        program.process.send_signal(signal.SIGHUP)
        await program.said("in force now: strategy", 2)
        os.kill(pids[0], signal.SIGKILL)
        [line] = await program.said("was killed by signal 9 and is started again in 0.25 s")
        assert f"(pid {pids[0]})" in line["event"]
        listening = len(program.having("listening address="))
        async with asyncio.timeout(PATIENCE_S):
            while listening < 3:  # from its death until the next one serves, and some more
                assert (await post(session, url))[0] == 200
                assert (await get(session, url + "/health"))["models"] == ["m"]
                sent += 1
                listening = len(program.having("listening address="))
                await totals()
        for _ in range(8):  # what was read meanwhile is the new one's, too
            status, route = await post(session, url)
            assert status == 200 and route.startswith("round_robin")
            sent += 1

        async def both_there() -> bool:
            now = (await get(session, url + "/gateway/status"))["workers"]["pids"]
            return len(now) == 2 and pids[0] not in now and pids[1] in now

        await until(both_there)
        await until(all_told)

    listen = url.removeprefix("http://")
    for workers in ("1", "2"):  # another gateway, whether it would share the port or not
        refused = await start("--listen", listen, "--workers", workers)
        assert await refused.ended() == 5
        await refused.reading
        [line] = refused.lines
        assert f"port {listen.rpartition(':')[2]} on 127.0.0.1 is in use" in line["event"]
    program.process.send_signal(signal.SIGTERM)
    assert await program.ended() == 0
    await program.reading
    assert program.lines[-1]["event"] == "stopped" and "worker" not in program.lines[-1]


async def test_a_worker_that_stands_still_is_killed_and_started_again(
    start: Start, upstream: Any
) -> None:
    # One look takes five seconds otherwise.
    soon = "from gateway import cli, supervision; supervision.LOOK_S = 0.8; cli.main()"
    program = await start(
        "--listen", "127.0.0.1:0", "--workers", "2", "--replica", f"r={await upstream(whole)}",
        program=("-c", soon),
    )  # fmt: skip
    url = await program.address(2)
    async with fresh() as session:

        async def both_there() -> bool:
            pids[:] = (await get(session, url + "/gateway/status"))["workers"]["pids"]
            return len(pids) == 2 and frozen not in pids

        pids: list[int] = []
        frozen = 0
        await until(both_there)
        frozen = pids[0]
        os.kill(frozen, signal.SIGSTOP)
        await program.said(f"(pid {frozen}) stands still, and is killed")
        await program.said("was killed by signal 9 and is started again")
        await program.said("listening address=", 3)
        await until(both_there)
        assert (await post(session, url))[0] == 200


async def test_a_reload_reaches_all_and_a_stop_waits_for_streams(
    start: Start, upstream: Any, tmp_path: Path
) -> None:
    slow = Slow()
    replicas = [await upstream(slow.serve) for _ in range(2)]
    config = tmp_path / "g.toml"
    named = f'[replicas]\na = "{replicas[0]}"\nb = "{replicas[1]}"\n'
    config.write_text(f"workers = 2\n{named}")
    program = await start("--listen", "127.0.0.1:0", "--config", str(config))
    url = await program.address(2)
    async with fresh() as session:
        streams = [await session.post(url + PATH, json=STREAM) for _ in range(8)]
        for stream in streams:
            assert stream.headers["x-covey-route"].startswith("latency_aware")
            assert await stream.content.readline() == b"data: 1\n"

        async def all_told() -> bool:
            found = await counted(session, url)
            return found["in_flight"] == found["at_replicas"] == 8

        await until(all_told)
        config.write_text(f"workers = 2\nwait_s = -1\n{named}")
        program.process.send_signal(signal.SIGHUP)
        [line] = await program.said("the old configuration stays in force")
        assert "wait_s" in line["event"]
        config.write_text(f'workers = 3\nstrategy = "round_robin"\n{named}')
        program.process.send_signal(signal.SIGHUP)
        taken = await program.said("in force now: strategy", 2)
        assert sorted(line["worker"] for line in taken) == [1, 2]
        assert len(await program.said("these settings need a restart: workers", 2)) == 2
        for _ in range(10):
            status, route = await post(session, url)
            assert status == 200 and route.startswith("round_robin")
        status = await get(session, url + "/gateway/status")
        assert status["strategy"] == "round_robin"
        assert sum(r["requests"] for r in status["replicas"]) >= 8  # what was known is

        # A service manager's stop is a signal to each process, and one stop all the same.
        for pid in [*status["workers"]["pids"], program.process.pid]:
            os.kill(pid, signal.SIGTERM)
        await program.said("stopping: ", 3)
        slow.step.set()
        for stream in streams:
            assert await stream.content.read() == b"\ndata: 2\n\n"
    assert await program.ended() == 0


async def test_a_second_signal_ends_all_at_once(start: Start, upstream: Any) -> None:
    replica = f"r={await upstream(Slow().serve)}"
    program = await start("--listen", "127.0.0.1:0", "--workers", "2", "--replica", replica)
    url = await program.address(2)
    async with fresh() as session:
        stream = await session.post(url + PATH, json=STREAM)
        program.process.send_signal(signal.SIGINT)
        await program.said("stopping: ", 3)
        program.process.send_signal(signal.SIGINT)
        assert await program.ended() == 1
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
        stream.close()
    await program.reading
    assert program.lines[-1]["event"] == ("gateway: stopped before running requests had ended.\n")


async def test_workers_without_a_supervisor_drain_and_end_on_a_socket_they_were_given(
    start: Start, upstream: Any
) -> None:
    slow = Slow()
    listener = socket.create_server(("127.0.0.1", 0))
    program = await start(
        "--fd", str(listener.fileno()), "--workers", "2",
        "--replica", f"r={await upstream(slow.serve)}",
        pass_fds=(listener.fileno(),),
    )  # fmt: skip
    url = await program.address(2)
    listener.close()
    async with fresh() as session:
        stream = await session.post(url + PATH, json=STREAM)
        program.process.kill()
        await program.said("the process that supervises the workers is gone", 2)
        slow.step.set()
        assert await stream.content.read() == b"data: 1\n\ndata: 2\n\n"
    async with asyncio.timeout(PATIENCE_S):
        await program.reading  # ends when no process is left
    assert [line["event"] for line in program.lines[-1:]] == ["stopped"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


async def make_key(folder: Path, name: str, *limit: str) -> dict[str, str]:
    """Make a key in the store that is in `folder`, and return the header that gives it."""
    made = await asyncio.to_thread(
        CliRunner().invoke, main,
        ["keys", "create", name, "--json", *limit, "--store", str(folder / "gateway.db")],
    )  # fmt: skip
    return {"Authorization": f"Bearer {json.loads(made.stdout)['secret']}"}


async def test_workers_count_a_minute_together(start: Start, upstream: Any, tmp_path: Path) -> None:
    key = await make_key(tmp_path, "laptop", "--requests-per-minute", "1000")
    program = await start(
        "--listen", "127.0.0.1:0", "--workers", "2", "--replica", f"r={await upstream(whole)}"
    )
    url = await program.address(2)
    sent = 0
    async with fresh() as session:

        async def counts_all() -> bool:
            """Ask once; say whether who answers knows what both have served, that one too."""
            nonlocal sent
            async with session.post(url + PATH, json=ASK, headers=key) as answer:
                assert answer.status == 200
                left = int(answer.headers["x-ratelimit-remaining-requests"])
            sent += 1
            await asyncio.sleep(0.2)
            workers = {line["worker"] for line in program.having("request path=")}
            return len(workers) == 2 and left == 1000 - sent

        await until(counts_all)


async def test_a_quota_is_one_for_all_workers_and_what_a_dead_one_leased_is_free(
    start: Start, upstream: Any, tmp_path: Path
) -> None:
    key = await make_key(tmp_path, "ci", "--tokens-per-day", "400")
    program = await start(
        "--listen", "127.0.0.1:0", "--workers", "2", "--replica", f"r={await upstream(whole)}"
    )
    url = await program.address(2)
    async with fresh() as session:
        served, refused = 0, 0
        async with asyncio.timeout(PATIENCE_S):
            while refused < 8:  # a worker may have none of what the other still has
                status, _ = await post(session, url, **key)
                assert status in (200, 429)
                served += status == 200
                refused = 0 if status == 200 else refused + 1
        assert 200 < 7 * served <= 400

        async def told() -> bool:
            return (await get(session, url + "/gateway/status"))["keys"]["unreported"] == 0

        await until(told)
        pids = (await get(session, url + "/gateway/status"))["workers"]["pids"]
        os.kill(pids[0], signal.SIGKILL)
        await program.address(3)
    program.process.send_signal(signal.SIGTERM)
    assert await program.ended() == 0
    store = Store(open_database(str(tmp_path / "gateway.db")))
    assert sum(used.prompt_tokens + used.completion_tokens for used in store.usage()) == 7 * served
    with store._database.transaction(write=False):
        seen = store._rows("SELECT seen FROM covey_gateways ORDER BY seen")
    store.close()
    assert seen[0] == (0,) and all(at for (at,) in seen[1:])


NONE_STARTS = """
import logging
from gateway import workers
from gateway.config import Config
from gateway.errors import EnvironmentFault, GatewayError

def serve(config, sockets, worker):
    raise EnvironmentFault("this cannot be")

logging.basicConfig(format="%(message)s")
try:
    workers.supervise(Config(workers=3), [], Config, serve)
except GatewayError as error:
    print(error.line(), error.exit_code)
"""


async def test_where_no_worker_can_start_it_ends_and_says_why() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NONE_STARTS, stdout=PIPE, stderr=PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        stdout, stderr = await process.communicate()
    assert stdout.decode() == "no worker could start. The lines above say why. 5\n"
    lines = stderr.decode().splitlines()
    assert lines and all("this cannot be" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--workers", "0"], 2, "Invalid value for '--workers': 0 is not in the range x>=1."),
        (["--workers", "two"], 2, "Invalid value for '--workers'"),
        (
            ["--workers", "3", "--per-replica", "2"],
            2,
            "gateway: 3 workers cannot share per_replica = 2.",
        ),
        (["--workers", "2", "--listen", "192.0.2.1:1"], 5, "192.0.2.1 is no address of this"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], code: int, line: str) -> None:
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == code
    assert line in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--access-log", "/nowhere/a.log"), "gateway: the access log /nowhere/a.log cannot be"),
        (("--tls-cert", "/nowhere/c.pem", "--tls-key", "/nowhere/k.pem"), "/nowhere/c.pem"),
    ],
)
async def test_what_each_worker_needs_is_tried_before_any_starts(
    start: Start, arguments: tuple[str, ...], line: str
) -> None:
    program = await start("--listen", "127.0.0.1:0", "--workers", "2", *arguments)
    assert await program.ended() == 5
    await program.reading
    assert [line in said["event"] for said in program.lines] == [True]


def test_a_port_of_another_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(
            main, ["serve", "--workers", "2", "--listen", f"127.0.0.1:{port}"]
        )
    assert result.exit_code == 5
    assert result.stderr.startswith(f"gateway: port {port} on 127.0.0.1 is in use. ")
