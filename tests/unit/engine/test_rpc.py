"""A model over llama.cpp's RPC servers: real processes over loopback, killed, frozen, lied to."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import engine_rings as rings
import msgspec
import pytest
import tiny_mamba

from agent.engine.cuttable import check_cuttable
from agent.engine.gguf_file import GgufFile
from agent.engine.rpc_wire import BEAT, DATA, HELLO_BYTES, check_addresses, encode_hello
from agent.engine.spec import EngineSpec, RpcServer
from agent.engine.supervisor import Engine
from agent.errors import ConfigError, EngineError, ModelError, UsageError

pytestmark = pytest.mark.slow

RING = "5a" * 16
EPOCH = 3
OWN = "127.0.0.1"
COUNT = 24
TEXT = "the ring of stages is a ring of the stages " * 2
COMMON: dict[str, Any] = {
    "n_ctx": rings.N_CTX, "n_batch": rings.N_BATCH, "slots": 4, "threads": 1, "ring": RING,
    "epoch": EPOCH, "listen": OWN, "join_timeout_s": 60.0,
}  # fmt: skip


def server_spec(stage: int, cache: str, **changes: Any) -> EngineSpec:
    fields = {"role": "rpc-server", "files": (), "stage": stage, "stages": 3, "predecessor": OWN,
              "cache": cache, "silence_s": 60.0}  # fmt: skip
    return EngineSpec(**COMMON | fields | changes)


def head_spec(path: Path, cache: str, servers: list[RpcServer], **changes: Any) -> EngineSpec:
    fields = {"role": "whole", "files": (str(path),), "model_name": "tiny", "http_address": OWN,
              "cache": cache, "servers": tuple(servers), "silence_s": 60.0}  # fmt: skip
    return EngineSpec(**COMMON | fields | changes)


@asynccontextmanager
async def running(
    path: Path, cache: str, layers: tuple[int, ...] = (4, 5), **changes: Any
) -> AsyncIterator[tuple[Engine, list[Engine]]]:
    """Run a head and its servers, ready; `layers` is how many each server gets."""
    engines: list[Engine] = []

    async def start(spec: EngineSpec) -> None:
        engines.append(await Engine.start(spec))

    try:
        async with asyncio.TaskGroup() as group:
            for stage in range(1, len(layers) + 1):
                group.create_task(start(server_spec(stage, cache, **changes)))
        engines.sort(key=lambda engine: engine.spec.stage)
        servers = [
            RpcServer(f"box{stage}", OWN, engine.port, count)
            for stage, (engine, count) in enumerate(zip(engines, layers, strict=True), 1)
        ]
        head = await Engine.start(head_spec(path, cache, servers, **changes))
        engines.append(head)
        await asyncio.gather(*(engine.wait_ready() for engine in engines))
        yield head, engines[:-1]
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


def url(engine: Engine) -> str:
    return f"http://{OWN}:{engine.http_port}/v1/completions"


async def complete(engine: Engine) -> str:
    """Return the greedy answer over HTTP; an answer that is an error is raised as text."""
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": COUNT, "temperature": 0}
    async with aiohttp.ClientSession() as session, session.post(url(engine), json=body) as reply:
        if reply.status != 200:
            raise EngineError(f"{reply.status} {await reply.text()}")
        text: str = (await reply.json())["choices"][0]["text"]
        return text


async def stream_until(engine: Engine, victim: int, sent: signal.Signals) -> str:
    """Ask for a long answer, signal a process after its first piece, and return the rest."""
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 400, "temperature": 0, "stream": True,
            "logit_bias": {"2": -100}}  # fmt: skip
    async with aiohttp.ClientSession() as session, session.post(url(engine), json=body) as reply:
        assert reply.status == 200
        await reply.content.readline()
        os.kill(victim, sent)
        return (await reply.content.read()).decode()


def ss(*arguments: str) -> str:
    return subprocess.run(["ss", *arguments], capture_output=True, text=True, check=True).stdout


def received(engine: Engine) -> int:
    """Return how many bytes came to a server over its connections, as the kernel counts them."""
    said = ss("-Htin", "state", "established", "sport", "=", f":{engine.port}")
    return sum(int(count) for count in re.findall(r"bytes_received:(\d+)", said))


@pytest.mark.parametrize(
    ("properties", "layers"),
    [({}, (4, 5)), ({"tied": True}, (11,)), ({"weight_type": "Q8_0"}, (1, 11))],
)
async def test_it_answers_as_llama_cpp_in_one_process(
    models: Callable[..., Path], cache: str, properties: dict[str, Any], layers: tuple[int, ...]
) -> None:
    await compare(models(**properties), cache, layers)


async def test_a_model_with_a_recurrent_state_answers_as_in_one_process(
    tmp_path: Path, cache: str
) -> None:
    """It is of an architecture that cannot be cut."""
    path = tiny_mamba.write(tmp_path / "mamba.gguf")
    with GgufFile(path) as file, pytest.raises(ModelError, match="mamba is not proved exact"):
        check_cuttable(file)
    await compare(path, cache, (2, 2))


async def compare(path: Path, cache: str, layers: tuple[int, ...]) -> None:
    """Ask a head with servers what llama.cpp is asked, and see that the servers have weights."""
    expected = rings.answer(path, TEXT, COUNT)
    assert expected
    async with running(path, cache, layers) as (head, servers):
        for _ in range(2):
            assert await complete(head) == expected
        with GgufFile(path) as file:
            sizes = file.facts().layer_bytes
        for engine, count in zip(servers, layers, strict=True):
            assert await asyncio.to_thread(received, engine) > count * min(sizes)
        pids = [engine.pid for engine in (head, *servers)]
    for engine in (head, *servers):
        assert await engine.wait_ended() is None
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_killed_server_is_named_at_once_and_clients_are_told(
    models: Callable[..., Path], cache: str
) -> None:
    async with running(models(), cache) as (head, servers):
        async with asyncio.timeout(40):  # below the silence bound: it must be noticed at once
            rest = await stream_until(head, servers[1].pid, signal.SIGKILL)
            reason = await head.wait_ended()
        assert isinstance(reason, EngineError)
        assert f"the RPC server on box2 ({OWN}) is gone" in reason.message
        assert reason.hint
        assert "the RPC server on box2" in rest
        # The head lives on to say what is wrong, until the agent stops it.
        with pytest.raises(EngineError, match=r"50\d .*RPC server on box2"):
            await complete(head)
        killed = await servers[1].wait_ended()
        assert killed is not None
        assert killed.message == "the engine of RPC server 2 was killed (signal 9)."
        await head.stop()
        # The other one has lost its head, and does not wait for another.
        async with asyncio.timeout(40):
            left = await servers[0].wait_ended()
        assert left is not None
        assert "its head, at 127.0.0.1, is gone" in left.message


async def test_a_server_that_dies_while_nobody_asks_is_noticed_too(
    models: Callable[..., Path], cache: str
) -> None:
    async with running(models(), cache, (4,)) as (head, servers):
        await complete(head)
        os.kill(servers[0].pid, signal.SIGKILL)
        async with asyncio.timeout(40):
            reason = await head.wait_ended()
        assert reason is not None
        assert "the RPC server on box1" in reason.message


async def test_a_head_that_llama_cpp_aborts_is_told_as_such(
    models: Callable[..., Path], cache: str
) -> None:
    async with running(models(), cache) as (head, _):
        os.kill(head.pid, signal.SIGABRT)
        async with asyncio.timeout(40):
            reason = await head.wait_ended()
        assert reason is not None
        assert "an RPC server failed (they are on box1, box2)" in reason.message


async def test_a_frozen_server_is_noticed_by_its_silence(
    models: Callable[..., Path], cache: str
) -> None:
    async with running(models(), cache, (4,), silence_s=2.0) as (head, servers):
        try:
            async with asyncio.timeout(60):
                rest = await stream_until(head, servers[0].pid, signal.SIGSTOP)
                reason = await head.wait_ended()
        finally:
            os.kill(servers[0].pid, signal.SIGCONT)
        assert reason is not None
        assert "the RPC server on box1 (127.0.0.1) is gone: it is silent for" in reason.message
        assert "it is silent for" in rest


async def test_a_frozen_head_is_noticed_by_its_servers(
    models: Callable[..., Path], cache: str
) -> None:
    async with running(models(), cache, (4,), silence_s=2.0) as (head, servers):
        os.kill(head.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                reason = await servers[0].wait_ended()
        finally:
            os.kill(head.pid, signal.SIGCONT)
        assert reason is not None
        assert "its head, at 127.0.0.1, is gone: it is silent for" in reason.message
        async with asyncio.timeout(40):
            lost = await head.wait_ended()
        assert lost is not None
        assert "the RPC server on box1 (127.0.0.1) is gone" in lost.message


@contextmanager
def deaf_server() -> Iterator[int]:
    """Give the port of a server whose heartbeat beats, while llama.cpp never answers."""
    listener = socket.create_server((OWN, 0))
    kept = []

    def beat(connection: socket.socket) -> None:
        with suppress(OSError):
            while data := connection.recv(64):
                connection.sendall(data)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                kept.append(connection)
                hello = connection.recv(HELLO_BYTES, socket.MSG_WAITALL)
                if hello == encode_hello(bytes.fromhex(RING), EPOCH, 1, BEAT):
                    threading.Thread(target=beat, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        for connection in kept:
            connection.close()


async def test_loading_over_a_server_that_never_answers_ends(
    models: Callable[..., Path], cache: str
) -> None:
    with deaf_server() as port:
        spec = head_spec(models(), cache, [RpcServer("box", OWN, port, 4)], silence_s=0.5)
        async with asyncio.timeout(60):
            with pytest.raises(EngineError, match=r"server on box .*has not answered for \d+ s"):
                await Engine.start(spec)


async def test_a_server_that_is_not_there_or_closes_is_named(
    models: Callable[..., Path], cache: str
) -> None:
    with socket.create_server((OWN, 0)) as free:
        port = free.getsockname()[1]
    spec = head_spec(models(), cache, [RpcServer("box", OWN, port, 4)])
    with pytest.raises(EngineError, match=r"the RPC server on box .*gone: Connection refused"):
        await Engine.start(spec)
    server = await Engine.start(server_spec(1, cache))
    try:
        wrong = head_spec(models(), cache, [RpcServer("box", OWN, server.port, 4)], epoch=4)
        with pytest.raises(EngineError, match=r"the RPC server on box .* is gone: it closed"):
            await Engine.start(wrong)
        assert not server.ended
    finally:
        await server.stop()


async def test_only_the_head_with_the_right_hello_gets_in(cache: str) -> None:
    engine = await Engine.start(server_spec(1, cache))

    def attempt(data: bytes, source: str = OWN) -> bytes:
        with socket.create_connection(
            (OWN, engine.port), 5, source_address=(source, 0)
        ) as connection:
            with suppress(ConnectionError):
                connection.sendall(data + b"\x01")
                return connection.recv(4096)
            return b""

    ring = bytes.fromhex(RING)
    good = encode_hello(ring, EPOCH, 1, BEAT)
    wrong = [
        encode_hello(bytes(16), EPOCH, 1, BEAT), encode_hello(ring, EPOCH - 1, 1, DATA),
        encode_hello(ring, EPOCH, 2, DATA), encode_hello(ring, EPOCH, 1, 7),
        bytes([14]) + bytes(HELLO_BYTES),  # llama.cpp's own first words
    ]  # fmt: skip
    try:
        assert await asyncio.to_thread(attempt, good, "127.0.0.2") == b""
        for data in wrong:
            assert await asyncio.to_thread(attempt, data) == b"", data
        assert not engine.ended
        assert await asyncio.to_thread(attempt, good) == b"\x01"
        log = "\n".join(engine.log_tail)
        assert "refused a connection from 127.0.0.2: only 127.0.0.1 may connect" in log
        assert log.count("for another ring or epoch") == len(wrong)
        # That was a head that has gone, and an agent that dies takes its engine with it.
        reason = await engine.wait_ended()
        assert reason is not None
        assert "its head, at 127.0.0.1, is gone" in reason.message
        other = await Engine.start(server_spec(1, cache))
        assert other._process.stdin is not None
        other._process.stdin.close()
        async with asyncio.timeout(40):
            assert await other._process.wait() == 0
    finally:
        await engine.stop()


async def test_what_a_server_gave_up(cache: str) -> None:
    """No file, no right, no network but the one connection, nobody to signal."""
    engine = await Engine.start(server_spec(1, cache))
    try:
        status = Path(f"/proc/{engine.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert fields["NoNewPrivs"] == "1"
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(fields[kind], 16) == 0, kind
        limits = Path(f"/proc/{engine.pid}/limits").read_text()
        assert next(
            line.split()[-3:-1] for line in limits.splitlines() if "core file size" in line
        ) == ["0", "0"]
        own = os.readlink("/proc/self/ns/net")
        assert os.readlink(f"/proc/{engine.pid}/ns/net") != own
        # llama.cpp's port is not to be found on this machine; ours is, on the given address.
        heard = await asyncio.to_thread(ss, "-Htln")
        assert f"{OWN}:{engine.port} " in heard
        assert ":50052 " not in heard
        assert not [line for line in engine.log_tail if "could not give up" in line]
    finally:
        await engine.stop()


PROBE = """
import os, signal, socket, sys
from agent.engine.confine import confine, own_network
if sys.argv[2:]:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
held = socket.create_server(("127.0.0.1", 0))
own_network()
assert confine() == ()
inside = socket.create_server(("127.0.0.1", 0))  # its own loopback is up
def refused(what, *arguments):
    try:
        what(*arguments)
    except OSError:
        return
    raise SystemExit(f"{what} {arguments} was not refused")
refused(open, "/etc/passwd")
refused(open, sys.argv[1], "w")
refused(os.listdir, "/")
refused(os.kill, os.getppid(), 0)
refused(socket.socket().connect, held.getsockname())
refused(socket.socket().connect, ("198.51.100.1", 9))
print("refused")
"""


@pytest.mark.parametrize("user", [[], ["65534"]])
def test_a_confined_process_reaches_nothing(tmp_path: Path, user: list[str]) -> None:
    if os.geteuid() != 0 and user:
        pytest.skip("only root can become somebody else")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "new"), *user], capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    if user and "network namespace" in done.stderr:
        pytest.skip("this system allows no user namespaces")
    assert done.stdout == "refused\n", done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("own", "head"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.168.1.5", "192.168.1.6"),
     ("2001:db8::1", "2001:db8::2"), ("fe80::1", "fe80::2"), ("fd01::1", "127.0.0.1"),
     ("fd01:2:3::1", "fd01:2:4::2"), ("box", "fd01::1")],
)  # fmt: skip
def test_what_is_no_overlay_address_is_refused(own: str, head: str) -> None:
    with pytest.raises(UsageError):
        check_addresses(own, head)


def test_overlay_addresses_of_one_mesh_are_taken() -> None:
    check_addresses("fd01:2:3::1", "fd01:2:3::2")
    check_addresses("127.0.0.1", "127.0.0.1")


async def test_a_server_on_another_address_does_not_start(cache: str) -> None:
    with pytest.raises(UsageError, match=r"must not listen on 192\.168\.7\.7"):
        await Engine.start(server_spec(1, cache, listen="192.168.7.7"))


@pytest.mark.parametrize(
    "changes", [{"ring": ""}, {"ring": "zz"}, {"listen": ""}, {"role": "stage", "stage": 1}]
)
def test_a_spec_with_servers_that_makes_no_sense(changes: dict[str, Any]) -> None:
    spec = head_spec(Path("/m"), "", [RpcServer("box", OWN, 1, 1)])
    with pytest.raises(ConfigError):
        msgspec.structs.replace(spec, **changes).check()
