"""A model is fetched through a proxy: a real one on loopback, which opens tunnels for its users."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.models.origins import BrokenError, HttpOrigin, RefusedError

HOST = "models.example"
BODY = b"weights"
ALLOWED = "Basic " + base64.b64encode(b"sh@d:sword fish").decode()


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's, with a certificate for HOST that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )  # fmt: skip
    (folder / "both.pem").write_bytes(pem + secret)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


@asynccontextmanager
async def tunnelling(port: int, asked: list[str]) -> AsyncIterator[int]:
    """Run a proxy that leads every CONNECT to a port here, and notes what it was asked for."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while raw := await reader.read(1 << 16):
            writer.write(raw)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        asked.append(lines[0])
        if f"Proxy-Authorization: {ALLOWED}" not in lines:
            writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()
            return
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pump(reader, outer), pump(inner, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[HttpOrigin, list[str]]]:
    """An origin behind a proxy, and what the proxy is asked for."""
    at_server, at_client = contexts(tmp_path)
    app = web.Application()
    headers = {"ETag": '"one"', "Content-Range": f"bytes 0-0/{len(BODY)}"}

    async def first_byte(_: web.Request) -> web.Response:
        return web.Response(status=206, body=BODY[:1], headers=headers)

    app.router.add_get("/m", first_byte)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=at_server).start()
    lines: list[str] = []
    connector = aiohttp.TCPConnector(ssl=at_client)
    async with (
        tunnelling(runner.addresses[0][1], lines) as port,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        monkeypatch.setenv("https_proxy", f"http://sh%40d:sword%20fish@127.0.0.1:{port}")
        yield HttpOrigin(session, f"https://{HOST}/m", networks=()), lines
    await runner.cleanup()


async def test_it_comes_through_the_proxy(asked: tuple[HttpOrigin, list[str]]) -> None:
    origin, lines = asked
    assert (await origin.probe()).tag.size == len(BODY)
    assert lines == [f"CONNECT {HOST}:443 HTTP/1.1"]


async def test_a_wrong_password_is_told_and_not_repeated(
    asked: tuple[HttpOrigin, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, _ = asked
    monkeypatch.setenv("https_proxy", os.environ["https_proxy"].replace("sword", "spear"))
    with pytest.raises(RefusedError, match="the proxy answered 407: Who are you") as caught:
        await origin.probe()
    assert "spear" not in str(caught.value)


async def test_a_proxy_that_is_not_there(
    asked: tuple[HttpOrigin, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, _ = asked
    monkeypatch.setenv("https_proxy", "http://sh%40d:secret@127.0.0.1:9")
    with pytest.raises(BrokenError) as caught:
        await origin.probe()
    assert "secret" not in str(caught.value)
