"""The process: keys where others can reach it, TLS, and SIGHUP, with a stream that goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PATH = "/v1/chat/completions"
ASK = {"model": "m", "messages": []}
Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start the real program with its state in `tmp_path`; what a test leaves is killed."""
    processes: list[Process] = []

    async def begin(*arguments: str) -> Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
        environment |= {"PYTHONPATH": str(ROOT), "STATE_DIRECTORY": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", *arguments,
            "--socket", str(tmp_path / "none.sock"), stdout=PIPE, stderr=PIPE, env=environment,
        )  # fmt: skip
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: Process, text: str) -> str:
    """Read the log until a line holds `text`, and return that line."""
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while line := (await process.stderr.readline()).decode():
            if text in line:
                return line.strip()
    raise AssertionError(f"it ended without saying {text!r}")


async def address(process: Process) -> str:
    return (await said(process, "listening address=")).rpartition("address=")[2]


async def served(session: aiohttp.ClientSession, url: str, **headers: str) -> int:
    """Return the status of a request once the gateway knows its replica."""
    async with asyncio.timeout(20):
        while True:
            async with session.post(url + PATH, json=ASK, headers=headers, ssl=False) as answer:
                if answer.status not in (404, 503):
                    return answer.status
            await asyncio.sleep(0.02)


def write_pair(folder: Path, name: str) -> int:
    """Write a certificate that signs itself, and its key; return its serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate.serial_number


async def whole(_: web.Request) -> web.Response:
    return web.json_response({"usage": {"prompt_tokens": 3, "completion_tokens": 4}})


async def test_it_is_open_to_others_only_with_a_key(
    start: Start, upstream: Any, tmp_path: Path
) -> None:
    replica = f"r={await upstream(whole)}"
    arguments = ("--listen", "0.0.0.0:0", "--replica", replica)
    refused = await start(*arguments)
    _, stderr = await refused.communicate()
    assert refused.returncode == 2
    assert len(stderr.decode().splitlines()) == 1
    assert b"gateway keys create NAME" in stderr

    store = ["--store", str(tmp_path / "gateway.db")]
    made = await asyncio.to_thread(
        CliRunner().invoke, main, ["keys", "create", "ci", "--json", *store]
    )
    secret = json.loads(made.stdout)["secret"]
    process = await start(*arguments)
    url = (await address(process)).replace("0.0.0.0", "127.0.0.1")
    async with aiohttp.ClientSession() as session:
        assert await served(session, url) == 401
        for size, status in ((15_000, 200), (17_000, 400)):  # max_header_bytes is 16 KiB
            async with session.get(url + "/health", headers={"X": "x" * size}) as answer:
                assert answer.status == status
        assert await served(session, url, Authorization=f"Bearer {secret}") == 200
    shown = await asyncio.to_thread(
        CliRunner().invoke, main, ["status", "--listen", url.removeprefix("http://")]
    )
    assert "keys: required, 1 valid" in shown.stdout
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    usage = await asyncio.to_thread(CliRunner().invoke, main, ["usage", "--csv", *store])
    assert usage.stdout.splitlines()[1].endswith(",ci,m,1,3,4,7,0")


async def test_a_reload_does_not_drop_a_stream_and_says_what_it_took(
    start: Start, upstream: Any, tmp_path: Path
) -> None:
    step = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await step.wait()
        await response.write(b"data: 2\n\n")
        return response

    first, second = await upstream(slow), await upstream(whole)
    config = tmp_path / "g.toml"
    config.write_text(f'drain_s = 5.0\n[replicas]\nold = "{first}"\n')
    process = await start("--listen", "127.0.0.1:0", "--config", str(config))
    url = await address(process)
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(20):
            while True:
                answer = await session.post(url + PATH, json=ASK)
                if answer.status == 200:
                    break
        assert await answer.content.readline() == b"data: 1\n"

        config.write_text("drain_s = -1\n")
        process.send_signal(signal.SIGHUP)
        assert "drain_s" in await said(process, "the old configuration stays in force")

        config.write_text(
            f'drain_s = 9.0\nrequire_keys = true\nlisten = "127.0.0.1:1"\n'
            f'[replicas]\nnew = "{second}"\n'
        )
        process.send_signal(signal.SIGHUP)
        line = await said(process, "in force now")
        assert "replicas" in line and "require_keys" in line and "drain_s" not in line
        line = await said(process, "need a restart")
        assert "drain_s" in line  # the flag --listen stands over the file's
        assert "listen" not in line
        async with session.post(url + PATH, json=ASK) as refused:
            assert refused.status == 401

        config.write_text(
            f'require_keys = false\nstrategy = "round_robin"\n[replicas]\nnew = "{second}"\n'
        )
        process.send_signal(signal.SIGHUP)
        await said(process, "in force now: strategy, require_keys")
        assert await served(session, url) == 200
        async with session.post(url + PATH, json=ASK) as routed:
            assert routed.headers["x-covey-route"].startswith("round_robin")
        step.set()
        assert await answer.content.read() == b"\ndata: 2\n\n"


async def test_tls_and_a_certificate_that_is_renewed(
    start: Start, upstream: Any, tmp_path: Path
) -> None:
    step = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"1")
        await step.wait()
        await response.write(b"2")
        return response

    old = write_pair(tmp_path, "old")
    process = await start(
        "--listen", "127.0.0.1:0", "--replica", f"r={await upstream(slow)}",
        "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"),
    )  # fmt: skip
    url = await address(process)
    assert url.startswith("https://")

    async def serial() -> int:
        host, port = url.removeprefix("https://").split(":")
        client = ssl.create_default_context()
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(host, int(port), ssl=client)
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(found).serial_number

    assert await serial() == old
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(20):
            while True:
                answer = await session.post(url + PATH, json=ASK, ssl=False)
                if answer.status == 200:
                    break
        assert await answer.content.readexactly(1) == b"1"
        (tmp_path / "cert.pem").write_text("half written")
        process.send_signal(signal.SIGHUP)
        await said(process, "the old certificate stays in use")
        assert await serial() == old
        new = write_pair(tmp_path, "new")
        await said(process, "is in use")  # nobody told it
        assert await serial() == new
        step.set()
        assert await answer.content.read() == b"2"
    shown = await asyncio.to_thread(
        CliRunner().invoke, main, ["status", "--listen", url.removeprefix("https://")]
    )
    assert shown.exit_code == 0 and "strategy" in shown.stdout


async def test_a_certificate_that_cannot_be_used_is_one_line(start: Start, tmp_path: Path) -> None:
    process = await start(
        "--listen", "127.0.0.1:0", "--tls-cert", str(tmp_path / "c"), "--tls-key", str(tmp_path)
    )
    _, stderr = await process.communicate()
    assert process.returncode == 5
    assert len(stderr.decode().splitlines()) == 1 and b"cannot be used" in stderr


async def test_an_access_log_that_cannot_be_opened_is_one_line(
    start: Start, tmp_path: Path
) -> None:
    log = tmp_path / "nowhere" / "a.log"
    process = await start("--listen", "127.0.0.1:0", "--access-log", str(log))
    _, stderr = await process.communicate()
    assert process.returncode == 5
    assert stderr.decode().startswith(f"gateway: the access log {log} cannot be opened: No such")
    assert len(stderr.decode().splitlines()) == 1


async def test_access_log_on_stdout_and_anew_after_sighup(
    start: Start, upstream: Any, tmp_path: Path
) -> None:
    async def fine(_: web.Request) -> web.Response:
        return web.json_response({})

    replica = await upstream(fine)
    log = tmp_path / "a.log"
    shown = await start("--listen", "127.0.0.1:0", "--replica", f"r={replica}", "--access-log", "-")
    kept = await start(
        "--listen", "127.0.0.1:0", "--replica", f"r={replica}", "--access-log", str(log)
    )
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        assert await served(session, await address(shown)) == 200
        assert shown.stdout is not None
        assert json.loads(await shown.stdout.readline())["path"] == PATH
        url = await address(kept)
        assert await served(session, url) == 200
        while not log.exists() or b'"replica":"r"' not in log.read_bytes():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        log.rename(tmp_path / "old.log")
        kept.send_signal(signal.SIGHUP)
        await said(kept, "configuration read")
        assert await served(session, url) == 200
        kept.send_signal(signal.SIGTERM)  # what waits to be written is written
        await kept.wait()
    assert json.loads(log.read_bytes().splitlines()[-1])["status"] == 200


def test_a_certificate_without_a_key_is_one_line() -> None:
    result = CliRunner().invoke(main, ["serve", "--tls-cert", "c.pem"])
    assert result.exit_code == 2
    assert result.stderr.startswith("gateway: tls_cert and tls_key belong together.")
