"""Real engine processes over loopback TCP, as the agent runs them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import engine_rings as rings
import msgspec
import pytest
from ring_processes import RING, running, specs

from agent.engine import frames, supervisor
from agent.engine.cut import origin
from agent.engine.gguf_file import GgufFile
from agent.engine.silence import Known
from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine
from agent.errors import ConfigError, EngineError, EnvironmentFault, ModelError

pytestmark = pytest.mark.slow

PROMPT = rings.prompt(77)
COUNT = 24


def url(engine: Engine) -> str:
    address = engine.spec.http_address
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{engine.http_port}/v1/completions"


async def complete(engine: Engine, prompt: str) -> str:
    """Return the greedy answer over HTTP; an answer that is an error is raised as text."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": COUNT, "temperature": 0}
    async with aiohttp.ClientSession() as session, session.post(url(engine), json=body) as reply:
        answer = await reply.json()
        if reply.status != 200:
            raise EngineError(f"{reply.status} {answer}")
        return answer["choices"][0]["text"]


async def stream_until_killed(engine: Engine, victim: int) -> bytes:
    """Ask for a long answer, kill a process after its first piece, and return the rest."""
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 400, "temperature": 0, "stream": True,
            "logit_bias": {"2": -100}}  # fmt: skip
    async with aiohttp.ClientSession() as session, session.post(url(engine), json=body) as reply:
        assert reply.status == 200
        await reply.content.readline()
        os.kill(victim, signal.SIGKILL)
        return await reply.content.read()


TEXT = "the ring of stages is a ring of the stages " * 2


async def test_one_node_answers_as_llama_cpp(models: Callable[..., Path], cache: str) -> None:
    path = models()
    spec = EngineSpec(
        role="whole", files=(str(path),), n_ctx=rings.N_CTX, n_batch=rings.N_BATCH, threads=1,
        model_name="tiny", http_address="::1", cache=cache, flash_attention=False,
    )  # fmt: skip
    engine = await Engine.start(spec)
    try:
        assert await complete(engine, TEXT) == rings.answer(path, TEXT, COUNT)
    finally:
        await engine.stop()


async def test_a_head_that_stands_still_is_ended_and_one_that_stood_for_a_moment_is_not(
    models: Callable[..., Path], cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOOK_S", 0.1)
    monkeypatch.setattr(supervisor, "_STILL_S", 1.0)
    spec = EngineSpec(
        role="whole", files=(str(models()),), n_ctx=rings.N_CTX, n_batch=rings.N_BATCH, threads=1,
        model_name="tiny", http_address="::1", cache=cache,
    )  # fmt: skip
    engine = await Engine.start(spec)
    try:
        await engine.tell(10.0)
        told = engine.stats
        assert told["cells"] > 0
        os.kill(engine.pid, signal.SIGSTOP)
        await engine.tell(0.1)
        assert engine.stats == told
        await asyncio.sleep(1.1)  # one question is not answered in time, the next one is
        os.kill(engine.pid, signal.SIGCONT)
        assert await complete(engine, TEXT)
        assert not engine.ended
        os.kill(engine.pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            reason = await engine.wait_ended()
        assert reason is not None
        assert reason.message == "the engine of the model stood still and was ended."
        told = engine.stats
        await engine.tell(0.1)
        assert engine.stats == told
        assert not engine.alive
    finally:
        await engine.stop()


async def test_two_nodes_answer_as_llama_cpp_and_stop_cleanly_when_asked(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path = models()
    parts = rings.cut(path, tmp_path, (5, 9))
    learned: list[dict[str, Known]] = []
    async with running(specs(parts, cache)) as engines:
        expected = rings.answer(path, TEXT, COUNT)
        for engine in engines:
            engine.heard = learned.append
        for _ in range(2):
            assert await complete(engines[0], TEXT) == expected
        assert all(not engine.ended for engine in engines)
        # Loopback is fast enough for exact rows, and each engine says so.
        assert all(
            re.fullmatch(r"f32 \([\d,]+ Mbit/s( or more)?\)", engine.rows) for engine in engines
        )
        assert {engine.runs_on for engine in engines} == {"1 CPU thread"}
        for engine in engines:
            await engine.tell(10.0)
            assert engine.stats["rows"] > 100
        assert engines[0].stats["batches"] == engines[1].stats["frames"] > 0
        assert 0 < engines[0].stats["cells_taken"] <= engines[0].stats["cells"]
        assert "cells" not in engines[1].stats
        await asyncio.sleep(4.0)  # for some pings: fewer than two tell nothing
    # Each has its neighbour on both sides, and says at its end what it learned of it.
    assert [known.keys() for known in learned] == [{"127.0.0.1"}] * 2
    # The head went first, so the stage has lost it: the daemon knows that it asked for this.
    assert await engines[0].wait_ended() is None
    for engine in engines:
        assert engine.stats["rows"] > 100
        assert engine.stats["own_s"] > 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine.pid, 0)


async def test_three_nodes_answer_as_llama_cpp_and_a_killed_one_is_named_at_once(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path = models()
    parts = rings.cut(path, tmp_path, (3, 7, 10))
    async with running(specs(parts, cache, "::1")) as engines:
        assert await complete(engines[0], TEXT) == rings.answer(path, TEXT, COUNT)
        stream = asyncio.create_task(stream_until_killed(engines[0], engines[1].pid))
        async with asyncio.timeout(8):  # below the silence bound: it must be noticed at once
            killed, head, after = [
                await engines[stage].wait_ended() for stage in (1, 0, 2)
            ]  # fmt: skip
        assert killed is not None and head is not None and after is not None
        assert killed.message == "the engine of stage 1 was killed (signal 9)."
        assert isinstance(head, EngineError)
        assert "stage 1 (::1)" in head.message
        assert "stage 1 (::1)" in after.message
        assert [engine.lost for engine in engines] == [1, -1, 1]
        assert (engines[0].alive, engines[1].alive) == (True, False)
        # The head lives on to say what is wrong, and its answer waits, until the agent stops it.
        with pytest.raises(EngineError, match=r"503 .*stage 1.*1 answer waits for it"):
            await complete(engines[0], TEXT)
        await engines[0].stop()
        rest = await stream
        assert b"stage 1 (::1)" in rest and b"[DONE]" not in rest


async def test_a_frozen_stage_is_noticed_by_its_silence(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    parts = rings.cut(models(), tmp_path, (5, 9))
    quick = [msgspec.structs.replace(spec, silence_s=4.0) for spec in specs(parts, cache)]
    async with running(quick) as engines:
        os.kill(engines[1].pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                reason = await engines[0].wait_ended()
            assert reason is not None
            # On a busy machine, whose own lateness is excused, a frame is missed first.
            assert engines[0].lost == 1, reason
            said = ("stage 1 (127.0.0.1) has been silent", "a frame did not come back")
            assert any(words in reason.message for words in said)
        finally:
            os.kill(engines[1].pid, signal.SIGCONT)


async def test_errors_at_the_start_arrive_as_themselves(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path = models()
    short = tmp_path / "short.gguf"
    short.write_bytes(path.read_bytes()[:-1000])
    spec = EngineSpec(role="whole", files=(str(short),), threads=1, cache=cache)
    with pytest.raises(ModelError, match=r"short.gguf is cut short: tensor .* the file has"):
        await Engine.start(spec)
    with pytest.raises(ConfigError, match="takes 1 file"):
        await Engine.start(EngineSpec(role="whole", files=()))
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(EnvironmentFault, match=r"cannot serve HTTP on 127\.0\.0\.1 port"):
        await Engine.start(
            EngineSpec(role="whole", files=(str(path),), threads=1, cache=cache,
                       http_address="127.0.0.1", http_port=taken.getsockname()[1])
        )  # fmt: skip
    with pytest.raises(ModelError, match="was not cut from a model"):
        await Engine.start(specs([path, path, path], cache)[1])


def _hello(part: Path) -> bytes:
    with GgufFile(part) as file:
        found = origin(file)
    hello = frames.Hello(bytes.fromhex(RING), 3, 0, found.start, 64,
                         bytes.fromhex(found.model_sha256))  # fmt: skip
    return frames.encode_hello(hello)


async def test_only_the_right_predecessor_with_the_right_hello_gets_in(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    parts = rings.cut(models(), tmp_path, (5, 9))
    _, spec = specs(parts, cache)
    engine = await Engine.start(spec)
    successor = socket.create_server(("127.0.0.1", 0))
    try:
        await engine.connect("127.0.0.1", successor.getsockname()[1])

        def attempt(data: bytes, source: str = "127.0.0.1") -> bytes:
            with socket.create_connection(
                ("127.0.0.1", engine.port), 5, source_address=(source, 0)
            ) as connection:
                with suppress(ConnectionError):
                    connection.sendall(data)
                    return connection.recv(4096)
                return b""

        good = _hello(parts[1])
        wrong = [
            good[:30] + b"\xff" + good[31:],  # another ring
            good[:16] + struct.pack("<Q", 2) + good[24:],  # an older epoch
            good[:40] + struct.pack("<I", 4) + good[44:],  # stage 4 is not the predecessor
            b"GET / HTTP/1.1\r\nHost: covey\r\n\r\n" + bytes(64),
        ]
        assert await asyncio.to_thread(attempt, good, "127.0.0.2") == b""
        for data in wrong:
            assert await asyncio.to_thread(attempt, data) == b"", data
        answer = await asyncio.to_thread(attempt, good)
        assert answer[:4] == frames.MAGIC
        log = "\n".join(engine.log_tail)
        for reason in ("from 127.0.0.2: only 127.0.0.1", "another ring", "another epoch",
                       "another stage", "what no stage sends"):  # fmt: skip
            assert reason in log
        # An agent that dies closes the pipe, and its engine goes with it.
        engine._process.stdin.close()
        async with asyncio.timeout(8):
            assert await engine._process.wait() == 0
    finally:
        successor.close()
        await engine.stop()


def test_an_engine_is_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTP_PROXY", "HF_TOKEN", "COVEY_GATEWAY_STORE", "NOTIFY_SOCKET"):
        monkeypatch.setenv(name, "http://me:secret@proxy:3128")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = supervisor.environment()
    assert "secret" not in " ".join(found.values())
    assert found["CUDA_VISIBLE_DEVICES"] == "1"
    assert found["PYTHONPATH"].endswith(":/elsewhere")
    assert found["PATH"] == os.environ["PATH"]


async def test_the_process_itself_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    process = await supervisor.spawn()
    try:
        seen = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"PATH=" in seen
        assert b"hf_secret" not in seen
    finally:
        process.kill()
        await process.communicate()
