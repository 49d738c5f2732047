"""Stage files: real HTTP servers that cut, lie, ignore ranges or are gone; never a loop."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agent.deploy import blobs
from agent.errors import EnvironmentFault, PeerError

BODY = bytes(range(256)) * 900
SHA256 = hashlib.sha256(BODY).hexdigest()


def ignore(_: int) -> None:
    """Progress nobody looks at."""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.sleep
    monkeypatch.setattr(blobs.asyncio, "sleep", lambda _: real(0))


@asynccontextmanager
async def serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/stage", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"http://127.0.0.1:{port}/stage"
    finally:
        await runner.cleanup()


async def test_a_member_fetches_what_is_offered_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BODY)
    server = blobs.BlobServer()
    await server.start("127.0.0.1", 0)
    try:
        assert server._runner is not None
        port = server._runner.addresses[0][1]
        server.offer(SHA256, source)
        seen: list[int] = []
        url = f"http://127.0.0.1:{port}/stage/{SHA256}"
        await blobs.fetch(url, tmp_path / "got", len(BODY), SHA256, seen.append)
        assert (tmp_path / "got").read_bytes() == BODY
        assert seen[-1] == len(BODY)
        with pytest.raises(PeerError, match="answered 404"):
            other = "0" * 64
            await blobs.fetch(url.replace(SHA256, other), tmp_path / "x", 1, other, ignore)
    finally:
        await server.stop()


async def test_a_port_in_use_is_named() -> None:
    first, second = blobs.BlobServer(), blobs.BlobServer()
    await first.start("127.0.0.1", 0)
    try:
        assert first._runner is not None
        port = first._runner.addresses[0][1]
        with pytest.raises(EnvironmentFault, match=f"TCP port {port}"):
            await second.start("127.0.0.1", port)
    finally:
        await first.stop()


async def test_a_broken_transfer_resumes_where_it_broke(tmp_path: Path) -> None:
    asked: list[str | None] = []

    async def cuts_once(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range"))
        start = int(str(asked[-1]).removeprefix("bytes=").removesuffix("-"))
        response = web.StreamResponse(status=206)
        response.content_length = len(BODY) - start
        await response.prepare(request)
        if len(asked) == 1:
            await response.write(BODY[:100_000])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(BODY[start:])
        return response

    async with serving(cuts_once) as url:
        await blobs.fetch(url, tmp_path / "got", len(BODY), SHA256, ignore)
    assert asked == ["bytes=0-", "bytes=100000-"]
    assert (tmp_path / "got").read_bytes() == BODY


async def test_a_source_without_ranges_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "got.part").write_bytes(BODY[:1000])

    async def whole(request: web.Request) -> web.StreamResponse:
        return web.Response(body=BODY)

    async with serving(whole) as url:
        await blobs.fetch(url, tmp_path / "got", len(BODY), SHA256, ignore)
    assert (tmp_path / "got").read_bytes() == BODY


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (BODY[:-1] + b"x", "SHA-256"),
        (BODY[:-1], "ended after"),
        (BODY + b"x", "sends more"),
    ],
)
async def test_a_lying_source_is_left_after_three_attempts(
    tmp_path: Path, body: bytes, reason: str
) -> None:
    requests = 0

    async def lies(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        return web.Response(body=body)

    async with serving(lies) as url:
        with pytest.raises(PeerError, match=reason) as caught:
            await blobs.fetch(url, tmp_path / "got", len(BODY), SHA256, ignore)
    assert url in caught.value.message
    assert requests == blobs.ATTEMPTS
    assert not (tmp_path / "got").exists()


async def test_a_complete_file_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "got").write_bytes(BODY)
    url = "http://127.0.0.1:9/nobody"
    await blobs.fetch(url, tmp_path / "got", len(BODY), SHA256, ignore)
