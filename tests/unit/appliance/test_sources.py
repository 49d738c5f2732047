"""Updates from files and real HTTP servers that cut, stall, lie and change their minds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agent.appliance import sources
from agent.errors import PeerError, UsageError
from agent.models import origins

FILE = random.Random(4).randbytes(3 << 20)
Answer = Callable[[web.Request, int], Awaitable[web.StreamResponse]]


async def collect(source: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in source])


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve with `answer(request, how many came before)`; yield the URL, and the ranges asked."""
    ranges: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        ranges.append(request.headers.get("Range", ""))
        return await answer(request, len(ranges) - 1)

    app = web.Application()
    app.router.add_get("/update", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}/update", ranges
    finally:
        await runner.cleanup()


def part(
    request: web.Request, *, sent: int | None = None, etag: str = '"one"', total: int = len(FILE)
) -> web.StreamResponse:
    """Answer a range of FILE; `sent`: so many bytes of it, then the connection ends."""
    first, last = request.headers["Range"].removeprefix("bytes=").split("-")
    body = FILE[int(first) : int(last) + 1]
    headers = {
        "Content-Range": f"bytes {first}-{last}/{total}", "ETag": etag,
        "Content-Length": str(int(last) + 1 - int(first)),
    }  # fmt: skip
    response = web.StreamResponse(status=206, headers=headers)
    response.body_part = body if sent is None else body[:sent]  # type: ignore[attr-defined]
    return response


async def send(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    body = response.body_part  # type: ignore[attr-defined]
    await response.prepare(request)
    await response.write(body)
    if len(body) < int(response.headers["Content-Length"]) and request.transport is not None:
        request.transport.close()
    return response


def get(url: str) -> AsyncIterator[bytes]:
    return sources.url(url, backoff_s=0.0)


async def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one.update"
    path.write_bytes(FILE)
    assert await collect(sources.file(path)) == FILE
    assert await collect(sources.file(path, 12345)) == FILE[12345:]
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        await collect(sources.file(tmp_path / "none"))
    with pytest.raises(UsageError, match="Is a directory"):
        await collect(sources.file(tmp_path))


def test_what_is_a_url() -> None:
    assert sources.is_url("http://x/y") and sources.is_url("https://x/y")
    assert not sources.is_url("/x/http://") and not sources.is_url("ftp://x")


async def test_a_transfer_that_is_cut_goes_on_where_it_was() -> None:
    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        return await send(request, part(request, sent=1 << 20 if before == 1 else None))

    async with server(answer) as (url, ranges):
        assert await collect(get(url)) == FILE
    assert ranges[:2] == ["bytes=0-0", f"bytes=0-{len(FILE) - 1}"]
    resumed = int(ranges[2].removeprefix("bytes=").split("-")[0])
    assert 0 < resumed <= 1 << 20 and len(ranges) == 3


async def test_it_begins_where_it_is_asked_to() -> None:
    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        return await send(request, part(request, sent=1 << 20 if before == 1 else None))

    async with server(answer) as (url, ranges):
        assert await collect(sources.url(url, start=1 << 20, backoff_s=0.0)) == FILE[1 << 20 :]
    assert ranges[1].startswith(f"bytes={1 << 20}-") and len(ranges) == 3


async def test_a_server_without_ranges_sends_from_the_start_again() -> None:
    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(FILE)), "ETag": '"one"'})
        response.body_part = FILE[: 1 << 20] if before == 1 else FILE  # type: ignore[attr-defined]
        return await send(request, response)

    async with server(answer) as (url, ranges):
        assert await collect(get(url)) == FILE
        assert await collect(sources.url(url, start=9999, backoff_s=0.0)) == FILE[9999:]
    assert len(ranges) == 5


async def test_one_that_always_breaks_is_given_up() -> None:
    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        return await send(request, part(request, sent=10 if before else None))

    async with server(answer) as (url, ranges):
        with pytest.raises(PeerError, match=r"failed 3 times at byte \d+") as caught:
            await collect(get(url))
    assert "The version that runs stays" in caught.value.hint
    assert len(ranges) <= 5


async def test_a_silent_one_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "session", lambda: origins.session(0.2))

    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        response = part(request)
        if before == 0:
            return await send(request, response)
        await response.prepare(request)
        await response.write(FILE[:100])
        await asyncio.sleep(3600)
        return response

    async with server(answer) as (url, _):
        with pytest.raises(PeerError, match="it is silent"):
            await collect(get(url))


async def test_a_file_that_changes_meanwhile_is_not_mixed() -> None:
    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        if before == 1:
            return await send(request, part(request, sent=1 << 20))
        return await send(request, part(request, etag='"two"' if before else '"one"'))

    async with server(answer) as (url, _):
        with pytest.raises(PeerError, match="its file was changed meanwhile: its ETag"):
            await collect(get(url))


async def test_one_that_says_another_length_later_is_left() -> None:
    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        return await send(request, part(request, total=len(FILE) - (before and 1)))

    async with server(answer) as (url, _):
        with pytest.raises(PeerError, match="it had 3145728 bytes, and has 3145727"):
            await collect(get(url))


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refusal_is_final(status: int) -> None:
    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        return web.Response(status=status)

    async with server(answer) as (url, ranges):
        with pytest.raises(PeerError, match=f"does not give the update: it answered {status}"):
            await collect(get(url))
    assert len(ranges) == 1


async def test_one_that_is_not_there_is_given_up() -> None:
    with pytest.raises(PeerError, match=r"127\.0\.0\.1:1/update failed 3 times at byte 0"):
        await collect(get("http://127.0.0.1:1/update"))
