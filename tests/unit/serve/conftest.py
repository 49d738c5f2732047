"""A scripted model, and a head's server on the loopback that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import openai
import pytest
from aiohttp import web

from agent.engine.generation import (
    Finish,
    Generation,
    GenerationRequest,
    Likely,
    Model,
    ModelState,
    Sampling,
    Timings,
    Token,
)
from agent.engine.serve.app import make_app
from agent.errors import UsageError

BOS = 256
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class ScriptedModel:
    """Says `script` to every prompt: bytes are tokens, an exception is raised, an event is awaited.

    A byte of a prompt is one token; `<s>` is the BOS when control tokens are parsed.
    """

    def __init__(self, script: Sequence[bytes | Exception | asyncio.Event] = (b"Hi",)) -> None:
        self.name = "covey-mini"
        self.context = 256
        self.created = 1_700_000_000
        self.chat_template: str | None = TEMPLATE
        self.bos = "<s>"
        self.eos = "</s>"
        self.script = script
        self.health: tuple[ModelState, str] = ("ready", "")
        self.prepared: list[Sampling] = []
        self.requests: list[GenerationRequest] = []
        self.delivered = 0
        self.running = 0
        self.turn = asyncio.Lock()
        self.waiting = 0

    def tokenize(self, text: str, *, special: bool, around: bool = True) -> tuple[int, ...]:
        ids = [BOS] if around else []
        for number, part in enumerate(text.split("<s>") if special else [text]):
            ids += ([BOS] if number else []) + list(part.encode())
        return tuple(ids)

    def detokenize(self, ids: tuple[int, ...]) -> bytes:
        return bytes(i for i in ids if i < 256)

    def labels(self, ids: tuple[int, ...]) -> list[bytes]:
        if max(ids, default=0) > BOS:
            raise UsageError(f"the token {max(ids)} is not one of the model's 257.")
        return [b"<s>" if i == BOS else bytes([i]) for i in ids]

    def prepare(self, sampling: Sampling) -> None:
        self.prepared.append(sampling)

    def state(self) -> tuple[ModelState, str]:
        return self.health

    def generate(self, request: GenerationRequest) -> Generation:
        self.requests.append(request)
        return ScriptedGeneration(self, request)


class ScriptedGeneration:
    def __init__(self, model: ScriptedModel, request: GenerationRequest) -> None:
        self._model, self._request = model, request
        self._finish: Finish | None = None
        self._count = 0
        self._holds = False
        self._tokens = self._steps()
        self._next: asyncio.Task[Token | None] | None = None

    @property
    def finish(self) -> Finish:
        assert self._finish is not None, "asked before the end"
        return self._finish

    @property
    def timings(self) -> Timings:
        return Timings(len(self._request.prompt), 0.5, self._count, 0.25, 1)

    async def some(self, timeout_s: float) -> list[Token] | None:
        self._next = self._next or asyncio.create_task(anext(self._tokens, None))
        await asyncio.wait({self._next}, timeout=timeout_s)
        if not self._next.done():
            return []
        token, self._next = self._next.result(), None
        return None if token is None else [token]

    async def _steps(self) -> AsyncIterator[Token]:
        model = self._model
        model.waiting += 1
        try:
            await model.turn.acquire()
        finally:
            model.waiting -= 1
        self._holds = True
        model.running += 1
        for step in model.script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
                continue
            if self._count == self._request.max_tokens:
                self._finish = Finish.LENGTH
                break
            self._count += 1
            model.delivered += 1
            yield self._token(step)
            await asyncio.sleep(0)
        else:
            self._finish = Finish.STOP
        self._release()

    def _token(self, piece: bytes) -> Token:
        asked = self._request.logprobs
        if asked is None:
            return Token(self._count, piece)
        others = [piece, *(b"%d" % number for number in range(asked))][:asked]
        likely = tuple(Likely(other, -0.5 * rank) for rank, other in enumerate(others, start=1))
        return Token(self._count, piece, -self._count / 4, likely)

    async def aclose(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
        self._release()

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            self._model.running -= 1
            self._model.turn.release()


Serve = Callable[[Model], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve a model and return its base URL, without /v1."""
    runners: list[web.AppRunner] = []

    async def start(model: Model) -> str:
        runner = web.AppRunner(make_app(model), access_log=None, shutdown_timeout=1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def scripted() -> type[ScriptedModel]:
    return ScriptedModel


@pytest.fixture
async def client_of() -> AsyncIterator[Callable[[str], openai.AsyncOpenAI]]:
    """Return the official client for a base URL."""
    clients: list[openai.AsyncOpenAI] = []

    def make(url: str) -> openai.AsyncOpenAI:
        clients.append(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()
