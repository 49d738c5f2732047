"""Streams chats from servers in turns. A shell: it asks, notes when tokens came, no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from agent.comparing.timing import Chat, Run, run_of
from agent.comparing.wish import Server, Wish, chat
from agent.errors import PeerError, UsageError, one_line
from agent.unreadable import UNREADABLE

# A line of a stream with all of a token's alternatives is some KB.
_LONGEST_LINE_BYTES = 2**20
# How many tokens a word of the filler has is seen from so many.
_PROBE_WORDS = 64


Rounds = list[tuple[Run, ...]]


async def measure(
    wish: Wish, tell: Callable[[str], None] = lambda _: None
) -> tuple[Wish, dict[int, Rounds]]:
    """Return the wish with the models' names, and by how many chats at once the rounds.

    A round has a run of each server, ours first in the result, and asked first in turns. One round
    before is not counted: it loads models. Raises PeerError where a server does not answer as it
    should, UsageError where it has several models and none was named.
    """
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_client(wish, one)) for one in wish.servers]
        models = [await clients[0].model("")]
        models += [await client.model(models[0]) for client in clients[1:]]
        ours, *others = [
            msgspec.structs.replace(server, model=model)
            for server, model in zip(wish.servers, models, strict=True)
        ]
        wish = msgspec.structs.replace(wish, ours=ours, others=tuple(others))
        filler = await clients[0].filler(wish) if wish.prompt_tokens else 0
        found: dict[int, Rounds] = {}
        for level, streams in enumerate(wish.streams):
            found[streams] = []
            chats = "one chat" if streams == 1 else f"{streams} chats"
            for number in range(wish.rounds + 1):
                tell(f"{chats}: round {number} of {wish.rounds}")
                numbered = level * (wish.rounds + 1) + number
                runs = await _round(wish, clients, number, numbered, streams, filler)
                if number:
                    found[streams].append(runs)
        return wish, found


async def _round(
    wish: Wish, clients: Sequence[_Client], turn: int, number: int, streams: int, filler: int
) -> tuple[Run, ...]:
    """Ask each server once, one after the other, and return their runs in the servers' order."""
    runs: dict[int, Run] = {}
    for place in range(len(clients)):
        index = (place + turn) % len(clients)
        runs[index] = await clients[index].run(wish, number, streams, filler)
    return tuple(runs[index] for index in range(len(clients)))


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
    prompt_tokens: int | None = None


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
        self._model = server.model

    async def model(self, like: str) -> str:
        """Return the model that was named, else one called so, else the only one that it lists."""
        if self._model:
            return self._model
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
        if len(listed) != 1 and like not in listed:
            raise UsageError(
                f"{self._server.base} has {len(listed)} models: {one_line(', '.join(listed))}",
                hint="Name the one to compare.",
            )
        self._model = like if like in listed else listed[0]
        return self._model

    async def filler(self, wish: Wish) -> int:
        """Return how many words make a prompt as long as is wished, by this server's count."""
        short, long = [
            (await self._chat(chat(wish, self._model, 0, 0, words) | {"max_tokens": 1}))
            .prompt_tokens
            for words in (0, _PROBE_WORDS)
        ]  # fmt: skip
        if long <= short:
            raise PeerError(
                f"{self._server.base} does not say how many tokens a prompt has",
                hint="Leave out --prompt-tokens.",
            )
        return max(0, round((wish.prompt_tokens - short) * _PROBE_WORDS / (long - short)))

    async def run(self, wish: Wish, number: int, streams: int, filler: int) -> Run:
        """Ask for all chats of one run at once; raises PeerError."""
        chats: list[Chat] = []

        async def one(stream: int) -> None:
            chats.append(await self._chat(chat(wish, self._model, number, stream, filler)))

        try:
            async with asyncio.TaskGroup() as group:
                for stream in range(streams):
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
        pieces = counted = prompt = 0
        try:
            async with self._session.post(url, json=request) as answer:
                await _require_ok(answer, url)
                async for event in _events(answer):
                    if event.error:
                        raise PeerError(f"{url} broke off: {one_line(str(event.error))}")
                    if event.usage:
                        counted = event.usage.completion_tokens or counted
                        prompt = event.usage.prompt_tokens or prompt
                    if event.has_text:
                        last_at = time.perf_counter()
                        first_at = first_at or last_at
                        pieces += 1
        except (aiohttp.ClientError, OSError, *UNREADABLE) as error:
            raise _fault(url, error) from error
        if first_at is None or last_at is None:
            raise PeerError(f"{url} answered without a token", hint="Try the model by hand.")
        return Chat(asked_at, first_at, last_at, counted or pieces, prompt)


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
