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


async def test_a_head_stands_still_when_it_answers_nothing_again_and_again(
    head: tuple[str, Callable[[bool], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answer = head
    assert not await answering._is_deaf(url), "any answer will do"
    answer(False)
    monkeypatch.setattr(answering, "DEAF_ASK_S", 0.05)
    async with asyncio.timeout(30):
        await answering.until_deaf(url)


async def test_one_that_cannot_be_reached_is_not_said_to_stand_still(
    head: tuple[str, Callable[[bool], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = answering._is_deaf

    async def counted(url: str) -> bool:
        asked.append(await real(url))
        return asked[-1]

    monkeypatch.setattr(answering, "DEAF_ASK_S", 0.02)
    monkeypatch.setattr(answering, "_is_deaf", counted)
    waiting = asyncio.create_task(answering.until_deaf("http://127.0.0.1:1"))
    async with asyncio.timeout(10):
        while len(asked) < 2 * answering.DEAF_ASKS:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
    assert not any(asked)
    assert not waiting.done()
    waiting.cancel()


async def test_a_head_says_how_many_requests_it_answers(
    head: tuple[str, Callable[[bool], None]],
) -> None:
    assert await answering.running(head[0]) == 2
    assert await answering.running("http://127.0.0.1:1") is None
