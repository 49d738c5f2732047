"""Dialects through the gateway: the same choice, retries, waits and ends as OpenAI's requests."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import app as app_module
from gateway import translating as translating_module

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
ASK: dict[str, Any] = {
    MESSAGES: {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]},
    COUNT: {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    RESPONSES: {"model": "m", "input": "hello"},
}
LAST = {MESSAGES: "message_stop", RESPONSES: "response.completed"}
FAILED = {MESSAGES: "error", RESPONSES: "response.failed"}
BOTH = pytest.mark.parametrize("path", [MESSAGES, RESPONSES])


async def post(url: str, path: str, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    """Return (status, body, headers) of a request in a dialect."""
    body = json.dumps({**ASK[path], **fields}).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + path, data=io.BytesIO(body), headers=headers) as answer,
    ):
        return answer.status, await answer.read(), answer.headers


def answering(body: bytes, status: int = 200, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(
            body=body, status=status, content_type="application/json", headers=headers
        )

    return handler


def streaming(*pieces: bytes | asyncio.Event, breaks: bool = False) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for piece in pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                await response.write(piece)
        if breaks:
            assert request.transport is not None
            await asyncio.sleep(0.01)
            request.transport.abort()
        return response

    return handler


@pytest.fixture
def hi(script: Any) -> Any:
    return script(("Hi", " there"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.005)


def text_of(path: str, answer: dict[str, Any]) -> str:
    if path == MESSAGES:
        return str(answer["content"][0]["text"])
    return str(answer["output"][0]["content"][0]["text"])


@BOTH
async def test_a_whole_answer(upstream: Any, gateway: Any, head: Any, hi: Any, path: str) -> None:
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(path=request.raw_path, headers=request.headers, body=await request.json())
        return web.json_response(hi.whole())

    url = await gateway(head("a", await upstream(handler)))
    kept = {"X-Request-Id": "7", "User-Agent": "mine"}
    dropped = {"anthropic-version": "2023-06-01", "anthropic-beta": "x", "Accept": "text/html"}
    status, body, headers = await post(
        url, path, {**kept, **dropped, "x-api-key": "k", "Accept-Encoding": "gzip"}
    )
    assert (status, text_of(path, json.loads(body))) == (200, "Hi there")
    assert (headers["Content-Type"], headers["x-covey-replica"]) == ("application/json", "a")
    assert seen["path"] == "/v1/chat/completions"
    assert seen["body"]["messages"] == [{"role": "user", "content": "hello"}]
    assert {name: seen["headers"][name] for name in kept} == kept
    assert seen["headers"]["Authorization"] == "Bearer k"
    assert seen["headers"]["Content-Type"] == "application/json"
    gone = {*dropped, "x-api-key", "Accept-Encoding"}
    assert not {name.lower() for name in gone} & {name.lower() for name in seen["headers"]}


async def test_a_key_as_openai_has_it_stays(
    upstream: Any, gateway: Any, head: Any, hi: Any
) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response(hi.whole())

    url = await gateway(head("a", await upstream(handler)))
    await post(url, MESSAGES, {"Authorization": "Bearer own", "x-api-key": "k"})
    assert seen == ["Bearer own"]


@BOTH
async def test_events_come_as_the_replica_says_them(
    upstream: Any, gateway: Any, head: Any, hi: Any, events: Any, path: str
) -> None:
    step = asyncio.Event()
    stream = hi.stream()
    at = stream.index(b"Hi") + 40  # inside the event after it
    url = await gateway(head("a", await upstream(streaming(stream[:at], step, stream[at:]))))
    asked = {**ASK[path], "stream": True}
    async with aiohttp.ClientSession() as session, session.post(url + path, json=asked) as answer:
        first = await answer.content.readuntil(b'"Hi"')
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert b" there" not in first
        step.set()
        rest = await answer.content.read()
    told = events(first + rest)
    assert told[-1]["type"] == LAST[path]
    texts = [event["delta"] for event in told if event["type"].endswith(".delta")] or [
        event["delta"]["text"] for event in told if event["type"] == "content_block_delta"
    ]
    assert texts == ["Hi", " there"]


async def test_a_comment_shows_that_the_replica_works(
    upstream: Any, gateway: Any, head: Any, hi: Any
) -> None:
    url = await gateway(head("a", await upstream(streaming(b": still working\n\n", hi.stream()))))
    _, body, _ = await post(url, MESSAGES, stream=True)
    assert body.startswith(b": still working\n\nevent: message_start\n")


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_a_replica_that_fails_is_not_the_last(
    upstream: Any, gateway: Any, head: Any, hi: Any, events: Any, path: str, stream: bool
) -> None:
    well = streaming(hi.stream()) if stream else answering(json.dumps(hi.whole()).encode())
    for sick in (
        answering(b"{}", 500),
        answering(b"[]"),
        streaming(b"data: {", breaks=True),
        streaming(b""),
    ):
        url = await gateway(
            head("sick", await upstream(sick)), head("well", await upstream(well)),
            strategy="round_robin",
        )  # fmt: skip
        for _ in range(2):
            status, body, headers = await post(url, path, stream=stream)
            assert (status, headers["x-covey-replica"]) == (200, "well")
            if stream:
                assert events(body)[-1]["type"] == LAST[path]
            else:
                assert text_of(path, json.loads(body)) == "Hi there"


@BOTH
async def test_a_replica_that_makes_no_sense_is_503(
    upstream: Any, gateway: Any, head: Any, path: str
) -> None:
    url = await gateway(head("a", await upstream(answering(b'{"choices":5}'))))
    status, body, headers = await post(url, path)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "a does not answer as an OpenAI server does" in json.loads(body)["error"]["message"]


async def test_a_body_without_end_is_not_held(
    upstream: Any, gateway: Any, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translating_module, "MAX_ANSWER_BYTES", 1000)
    url = await gateway(head("a", await upstream(answering(b'{"x":"%s"}' % (b"x" * 1000)))))
    status, body, _ = await post(url, MESSAGES)
    assert (status, b"more than 1000 bytes" in body) == (503, True)


@BOTH
async def test_a_stream_that_breaks_ends_with_the_dialects_error(
    upstream: Any, gateway: Any, head: Any, hi: Any, events: Any, path: str
) -> None:
    calls: list[int] = []
    cut = hi.stream().index(b" there")
    inner = streaming(hi.stream()[:cut], breaks=True)

    async def handler(request: web.Request) -> web.StreamResponse:
        calls.append(1)
        return await inner(request)

    url = await gateway(*[head(n, await upstream(handler)) for n in "ab"])
    status, body, _ = await post(url, path, stream=True)
    last = events(body)[-1]
    assert (status, last["type"], len(calls)) == (200, FAILED[path], 1)
    error = last["error"] if path == MESSAGES else last["response"]["error"]
    assert "broke off its answer" in error["message"]


@BOTH
async def test_an_error_event_ends_the_stream_at_once(
    upstream: Any, gateway: Any, head: Any, hi: Any, events: Any, path: str
) -> None:
    never = asyncio.Event()
    error = b'data: {"error":{"message":"The ring broke","type":"server_error"}}\n\n'
    said = hi.stream()[: hi.stream().index(b"data: ", 5)]
    url = await gateway(head("a", await upstream(streaming(said, error, never))))
    async with asyncio.timeout(5):
        status, body, _ = await post(url, path, stream=True)
    assert (status, b"The ring broke" in body) == (200, True)
    assert events(body)[-1]["type"] == FAILED[path]
    never.set()


async def test_a_connection_is_used_again_after_a_stream(
    upstream: Any, gateway: Any, head: Any, hi: Any
) -> None:
    peers: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(hi.stream())
        await asyncio.sleep(0.02)  # the end comes a moment after [DONE]
        return response

    url = await gateway(head("a", await upstream(handler)))
    for _ in range(2):
        await post(url, MESSAGES, stream=True)
    assert peers[0] == peers[1]


@BOTH
async def test_a_client_that_leaves_frees_the_replica(
    upstream: Any, gateway: Any, head: Any, hi: Any, path: str
) -> None:
    running: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        running.append(1)
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(hi.stream()[: hi.stream().index(b"data: ", 5)])
            await asyncio.sleep(60)
            return response
        finally:
            running.pop()

    url = await gateway(head("a", await upstream(handler)))
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + path, json={**ASK[path], "stream": True})
        await answer.content.readline()
        assert running == [1]
        answer.close()
        await until(lambda: not running)


def words(path: str, body: bytes) -> tuple[str, str]:
    """Return the type and the message of an error, whose form is checked."""
    told = json.loads(body)
    if path != RESPONSES:
        assert told["type"] == "error"
    else:
        assert set(told["error"]) == {"message", "type", "param", "code"}
    return told["error"]["type"], told["error"]["message"]


@pytest.mark.parametrize("path", [MESSAGES, COUNT, RESPONSES])
async def test_errors_have_the_form_of_their_path(
    upstream: Any, gateway: Any, head: Any, path: str
) -> None:
    refusal = b'{"error":{"message":"no","type":"invalid_request_error","code":null}}'
    replica = await upstream(answering(refusal, 400, **{"Retry-After": "9"}))
    url = await gateway(head("a", replica))
    status, body, headers = await post(url, path)
    assert (status, headers["Retry-After"]) == (400, "9")
    assert headers["Content-Type"] == "application/json"
    assert words(path, body) == ("invalid_request_error", "no")
    status, body, _ = await post(url, path, model="other")
    assert status == 404
    assert "'other' does not exist here; there is m" in words(path, body)[1]
    status, body, _ = await post(url, path, model=5)
    assert (status, words(path, body)[0]) == (400, "invalid_request_error")
    async with aiohttp.ClientSession() as session, session.get(url + path) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert "does not take GET" in words(path, await answer.read())[1]
    url = await gateway(head("a", replica), max_body_bytes=1024)
    status, body, _ = await post(url, path, metadata={"a": "x" * 1024})
    assert (status, "larger than 1024 bytes" in words(path, body)[1]) == (413, True)


@BOTH
async def test_the_replicas_own_5xx_is_the_answer_if_nobody_can(
    upstream: Any, gateway: Any, head: Any, path: str
) -> None:
    handler = answering(b'{"error":{"message":"loading"}}', 503, **{"Retry-After": "7"})
    url = await gateway(head("a", await upstream(handler)))
    status, body, headers = await post(url, path)
    assert (status, headers["Retry-After"], words(path, body)[1]) == (503, "7", "loading")
    assert headers["Content-Type"] == "application/json"
    status, body, headers = await post(url, path)
    assert (status, headers["Retry-After"]) == (503, "7")
    assert "No replica of 'm' is ready" in words(path, body)[1]


async def test_an_internal_error_has_the_form_too(
    upstream: Any, gateway: Any, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(app_module.DIALECTS[MESSAGES], "ask", broken, raising=False)
    url = await gateway(head("a", await upstream(answering(b"{}"))))
    status, body, _ = await post(url, MESSAGES)
    assert (status, words(MESSAGES, body)) == (500, ("api_error", "internal error."))


async def test_tokens_are_counted_by_the_replica(upstream: Any, gateway: Any, head: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path != "/tokenize":
            return web.Response(status=404)
        return web.json_response({"tokens": list(range(len((await request.json())["messages"])))})

    url = await gateway(head("a", await upstream(handler)))
    status, body, _ = await post(url, COUNT, system="Be brief")
    assert (status, json.loads(body)) == (200, {"input_tokens": 2})
    async with aiohttp.ClientSession() as session, session.get(url + "/gateway/status") as answer:
        [replica] = (await answer.json())["replicas"]
    assert replica["first_byte_s"] == {}  # counting is no measure of answering


async def test_a_server_that_cannot_count(upstream: Any, gateway: Any, head: Any) -> None:
    url = await gateway(head("a", await upstream(answering(b"404: Not Found", 404))))
    status, body, _ = await post(url, COUNT)
    assert (status, words(COUNT, body)) == (
        404, ("not_found_error", "The server of this model cannot count tokens")
    )  # fmt: skip


async def test_a_large_request_passes(upstream: Any, gateway: Any, head: Any, hi: Any) -> None:
    sizes: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        sizes.append(len((await request.json())["messages"][0]["content"]))
        return web.json_response(hi.whole())

    url = await gateway(head("a", await upstream(handler)))
    assert (await post(url, RESPONSES, input="x" * 3 * 2**20))[0] == 200
    assert sizes == [3 * 2**20]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_responses_are_not_kept(gateway: Any, method: str) -> None:
    url = await gateway(wait=False)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url + "/v1/responses/resp_1") as answer,
    ):
        told = await answer.json()
    assert answer.status == 404
    assert "Responses are not kept here" in told["error"]["message"]


async def test_a_dialects_request_waits_for_the_next_head(
    runners: Any, upstream: Any, gateway: Any, head: Any, hi: Any, listed: Any
) -> None:
    """The first head is cut off while it is asked; the second one comes a moment later."""
    asked = asyncio.Event()

    async def dying(request: web.Request) -> web.Response:
        if request.path == "/v1/chat/completions":
            asked.set()
            assert request.transport is not None
            request.transport.abort()
        return web.Response()

    well = await upstream(answering(json.dumps(hi.whole()).encode()))
    first = head("a", await upstream(dying))
    source = listed([first])
    url = await gateway(source=source)
    waiting = asyncio.create_task(post(url, MESSAGES))
    await asked.wait()
    source.listed = [head("b", well)]
    async with asyncio.timeout(5):
        status, body, headers = await waiting
    assert (status, headers["x-covey-replica"]) == (200, "b")
    assert text_of(MESSAGES, json.loads(body)) == "Hi there"


async def test_who_names_no_model_while_there_is_none_may_come_again(gateway: Any) -> None:
    url = await gateway()
    for path, body in (("/generate", {"prompt": "a"}), ("/tokenize", {"content": "a"})):
        async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as found:
            assert (found.status, found.headers["Retry-After"]) == (503, "5")
            assert "there is none yet" in await found.text()
