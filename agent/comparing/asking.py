"""Streams chats from two servers in turns. A shell: it asks, notes when tokens came, no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from agent.comparing.timing import Chat, Run, run_of
from agent.comparing.wish import Server, Wish, chat
from agent.errors import PeerError, UsageError, one_line
from agent.unreadable import UNREADABLE

# A line of a stream with all of a token's alternatives is some KB.
_LONGEST_LINE_BYTES = 2**20


async def measure(
    wish: Wish, tell: Callable[[str], None] = lambda _: None
) -> tuple[Wish, list[tuple[Run, Run]]]:
    """Return the wish with both models' names, and a pair (ours, theirs) of each run.

    In every second pair theirs is asked first. One run of each before is not counted: it loads
    models. Raises PeerError where a server does not answer as it should, UsageError where it has
    several models and none was named.
    """
    async with _client(wish, wish.ours) as ours, _client(wish, wish.theirs) as theirs:
        wish = msgspec.structs.replace(
            wish,
            ours=msgspec.structs.replace(wish.ours, model=await ours.model()),
            theirs=msgspec.structs.replace(wish.theirs, model=await theirs.model()),
        )
        pairs = []
        for number in range(wish.runs + 1):
            if number % 2:
                second = await theirs.run(wish, wish.theirs.model, number)
                first = await ours.run(wish, wish.ours.model, number)
            else:
                first = await ours.run(wish, wish.ours.model, number)
                second = await theirs.run(wish, wish.theirs.model, number)
            if number:
                pairs.append((first, second))
                tell(f"run {number} of {wish.runs}: {first.tokens_s:.1f} and "
                     f"{second.tokens_s:.1f} tokens/s")  # fmt: skip
        return wish, pairs


class _Delta(msgspec.Struct, frozen=True):
    """What came: of the answer, or of what a model thinks before it."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta | None = None


class _Usage(msgspec.Struct, frozen=True):
    completion_tokens: int | None = None


class Event(msgspec.Struct, frozen=True):
    """What of a chat.completion.chunk is looked at."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None

    @property
    def has_text(self) -> bool:
        """Whether tokens came."""
        return any(
            any(getattr(choice.delta, field) for field in _Delta.__struct_fields__)
            for choice in self.choices or ()
            if choice.delta is not None
        )


read = msgspec.json.Decoder(Event).decode


class _Client:
    """Asks one server."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session

    async def model(self) -> str:
        """Return the model that was named, or the only one that the server lists."""
        if self._server.model:
            return self._server.model
        url = f"{self._server.base}/v1/models"
        try:
            async with self._session.get(url) as answer:
                await _require_ok(answer, url)
                listed = [str(model["id"]) for model in (await answer.json())["data"]]
        except (
            aiohttp.ClientError,
            OSError,
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
        ) as error:
            raise _fault(url, error) from error
        if len(listed) != 1:
            raise UsageError(
                f"{self._server.base} has {len(listed)} models: {one_line(', '.join(listed))}",
                hint="Name the one to compare.",
            )
        return listed[0]

    async def run(self, wish: Wish, model: str, number: int) -> Run:
        """Ask for all chats of one run at once; raises PeerError."""
        chats: list[Chat] = []

        async def one(stream: int) -> None:
            chats.append(await self._chat(chat(wish, model, number, stream)))

        try:
            async with asyncio.TaskGroup() as group:
                for stream in range(wish.streams):
                    group.create_task(one(stream))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        run = run_of(chats)
        if run is None:
            raise PeerError(
                f"{self._server.base} answered with {sum(c.tokens for c in chats)} tokens",
                hint="That is too few to measure by: take another model.",
            )
        return run

    async def _chat(self, request: dict[str, Any]) -> Chat:
        url = f"{self._server.base}/v1/chat/completions"
        asked_at = time.perf_counter()
        first_at = last_at = None
        pieces = counted = 0
        try:
            async with self._session.post(url, json=request) as answer:
                await _require_ok(answer, url)
                async for event in _events(answer):
                    if event.error:
                        raise PeerError(f"{url} broke off: {one_line(str(event.error))}")
                    counted = (event.usage and event.usage.completion_tokens) or counted
                    if event.has_text:
                        last_at = time.perf_counter()
                        first_at = first_at or last_at
                        pieces += 1
        except (aiohttp.ClientError, OSError, *UNREADABLE) as error:
            raise _fault(url, error) from error
        if first_at is None or last_at is None:
            raise PeerError(f"{url} answered without a token", hint="Try the model by hand.")
        return Chat(asked_at, first_at, last_at, counted or pieces)


@asynccontextmanager
async def _client(wish: Wish, server: Server) -> AsyncIterator[_Client]:
    headers = {"authorization": f"Bearer {server.key}"} if server.key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=wish.patience_s)
    connector = aiohttp.TCPConnector(limit=0, ssl=server.verify_tls)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector, read_bufsize=_LONGEST_LINE_BYTES
    ) as session:
        yield _Client(server, session)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """Yield the objects of a stream of server-sent events; raises UNREADABLE for what is none."""
    async for line in answer.content:
        data = line.strip().removeprefix(b"data:").strip()
        if data.startswith(b"{"):
            yield read(data)


async def _require_ok(answer: aiohttp.ClientResponse, url: str) -> None:
    if answer.status != 200:
        said = one_line(await answer.text(errors="replace"))
        raise PeerError(f"{url} answered {answer.status}: {said}")


def _fault(url: str, error: Exception) -> PeerError:
    reason = one_line(str(error)) or type(error).__name__
    return PeerError(
        f"{url} cannot be asked: {reason}", hint="Is it the base URL of an OpenAI server?"
    )
