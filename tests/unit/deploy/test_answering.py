"""When a head counts as one that stands still, over real connections."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from agent.deploy import answering


@pytest.fixture
async def head() -> AsyncIterator[tuple[str, Callable[[bool], None]]]:
    """Return a head's URL, and what has it stand still or answer."""
    answers = asyncio.Event()
    answers.set()

    async def health(_: web.Request) -> web.Response:
        await answers.wait()
        return web.json_response({"status": "loading", "running": 2}, status=503)

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield (
        f"http://127.0.0.1:{runner.addresses[0][1]}",
        lambda on: answers.set() if on else answers.clear(),
    )
    answers.set()
    await runner.cleanup()


async def test_a_head_says_how_many_requests_it_answers(
    head: tuple[str, Callable[[bool], None]],
) -> None:
    assert await answering.running(head[0]) == 2
    assert await answering.running("http://127.0.0.1:1") is None
