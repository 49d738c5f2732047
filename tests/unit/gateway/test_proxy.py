"""The gateway before real heads and scripted servers: what passes, what is tried, errors."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from yarl import URL

from gateway import delivery
from gateway.routing import Replica

HELLO: Any = [{"role": "user", "content": "hello"}]
PATH = "/v1/chat/completions"
BODY = b'{ "model":"m",\n "x" : [1, 2.50],"messages":[]}'
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.005)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110  # it is asked over HTTP
            await asyncio.sleep(0.02)


async def post(url: str, body: bytes = BODY, path: str = PATH, **headers: str) -> Any:
    """Return (status, body, headers) of a POST."""
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(
            URL(url + path, encoded=True), data=io.BytesIO(body), headers=headers
        ) as answer,
    ):
        return answer.status, await answer.read(), answer.headers


async def get(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.json(), answer.headers


async def answers_200(call: Awaitable[Any]) -> bool:
    return bool((await call)[0] == 200)


async def agent_is(url: str, text: str) -> bool:
    return bool((await get(url + "/gateway/status"))[1]["agent"] == text)


def failing(status: int, text: bytes = b"{}", **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=text, headers=headers)

    return handler


async def fine(_: web.Request) -> web.Response:
    return web.Response(body=b"fine")


async def test_heads_through_the_official_client(
    serve: Any, scripted: Any, client_of: Any, gateway: Any, head: Any
) -> None:
    models = [scripted([b"Hi", b" there"]) for _ in range(2)]
    heads = [head(f"node{n}", await serve(m), "covey-mini") for n, m in enumerate(models)]
    client: openai.AsyncOpenAI = client_of(await gateway(*heads))
    whole = await client.chat.completions.create(model="covey-mini", messages=HELLO)
    assert whole.choices[0].message.content == "Hi there"
    stream = await client.chat.completions.create(model="covey-mini", messages=HELLO, stream=True)
    texts = [chunk.choices[0].delta.content async for chunk in stream]
    assert texts == ["", "Hi", " there", None]
    completion = await client.completions.create(model="covey-mini", prompt="p")
    assert completion.choices[0].text == "Hi there"
    [entry] = (await client.models.list()).data
    assert entry.id == "covey-mini"
    assert entry.model_extra["covey"] == {"replicas": ["node0", "node1"], "usable": 2}
    assert (await client.models.retrieve("covey-mini")).model_extra["context_length"] == 256
    with pytest.raises(openai.NotFoundError, match="there is covey-mini"):
        await client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await client.chat.completions.create(model="covey-mini", messages=HELLO, temperature=-1)


async def test_round_robin_uses_all_heads(
    serve: Any, scripted: Any, gateway: Any, head: Any
) -> None:
    heads = [head(name, await serve(scripted()), "covey-mini") for name in "ab"]
    url = await gateway(*heads, strategy="round_robin")
    body = json.dumps({"model": "covey-mini", "messages": HELLO}).encode()
    names = [(await post(url, body))[2]["x-covey-replica"] for _ in range(4)]
    assert sorted(names) == ["a", "a", "b", "b"]


async def test_the_request_arrives_as_it_was_sent(upstream: Any, gateway: Any, head: Any) -> None:
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(path=request.raw_path, headers=request.headers, body=await request.read())
        return web.Response(body=b"ok", headers={"X-Other": "kept"})

    url = await gateway(head("a", await upstream(handler)))
    status, body, headers = await post(
        url, path=PATH + "?a=%2F&b=c%20d", Authorization="Bearer k", Connection="X-Private",
        **{"X-Private": "1", "TE": "trailers", "X-Request-Id": "7", "User-Agent": "mine"},
    )  # fmt: skip
    assert (status, body) == (200, b"ok")
    assert seen["body"] == BODY
    assert seen["path"] == PATH + "?a=%2F&b=c%20d"
    kept = {"Authorization": "Bearer k", "X-Request-Id": "7", "User-Agent": "mine"}
    assert {name: seen["headers"][name] for name in kept} == kept
    assert not {"X-Private", "TE"} & set(seen["headers"])
    assert (headers["x-covey-replica"], headers["X-Other"]) == ("a", "kept")


@pytest.mark.parametrize("raw", ["André".encode(), "André".encode("latin-1")])
async def test_a_header_beyond_ascii_arrives(
    upstream: Any, gateway: Any, head: Any, raw: bytes
) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["X-Name"])
        return web.Response(body=b"ok")

    url = URL(await gateway(head("a", await upstream(handler))))
    reader, writer = await asyncio.open_connection(url.host, url.port)
    lines = [b"POST %s HTTP/1.1" % PATH.encode(), b"Host: x", b"Connection: close",
             b"X-Name: " + raw, b"Content-Length: %d" % len(BODY), b"", BODY]  # fmt: skip
    writer.write(b"\r\n".join(lines))
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert (answer.split(b"\r\n")[0], seen) == (b"HTTP/1.1 200 OK", ["André"])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
async def test_embeddings_and_ranks_pass_and_so_does_a_refusal(
    upstream: Any, gateway: Any, head: Any, path: str
) -> None:
    seen: list[tuple[str, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.raw_path, await request.read()))
        refused = b"refuse" in seen[-1][1]
        return web.Response(status=400 if refused else 200, body=b'{"data": []}')

    url = await upstream(handler)
    gateway_url = await gateway(head("a", url), head("b", await upstream(failing(500)), "other"))
    assert (await post(gateway_url, path=path))[:2] == (200, b'{"data": []}')
    assert (await post(gateway_url, b'{"model": "m", "refuse": 1}', path))[0] == 400
    assert seen == [(path, BODY), (path, b'{"model": "m", "refuse": 1}')]


async def test_the_bytes_of_an_answer_are_those_of_the_replica(
    upstream: Any, gateway: Any, head: Any
) -> None:
    random = Random(7)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        at = 0
        for size in sizes:
            await response.write(data[at : at + size])
            at += size
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    url = await gateway(head("a", await upstream(handler)))
    for _ in range(10):
        sizes = [random.choice([1, 2, 60, 5000, 70_000]) for _ in range(8)]
        data = random.randbytes(sum(sizes))
        status, body, _ = await post(url)
        assert (status, len(body)) == (200, len(data))
        assert body == data


async def test_chunks_are_passed_on_as_they_come(upstream: Any, gateway: Any, head: Any) -> None:
    step = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await step.wait()
        await response.write(b"data: 2\n\n")
        return response

    url = await gateway(head("a", await upstream(handler)))
    async with aiohttp.ClientSession() as session, session.post(url + PATH, data=BODY) as answer:
        assert await answer.content.readline() == b"data: 1\n"
        step.set()
        assert await answer.content.read() == b"\ndata: 2\n\n"


async def test_a_compressed_answer_stays_as_it_is(upstream: Any, gateway: Any, head: Any) -> None:
    packed = gzip.compress(b"hello")
    handler = failing(200, packed, **{"Content-Encoding": "gzip"})
    url = await gateway(head("a", await upstream(handler)))
    status, body, headers = await post(url, **{"Accept-Encoding": "gzip"})
    assert (status, body, headers["Content-Encoding"]) == (200, packed, "gzip")
    assert headers["Content-Length"] == str(len(packed))


async def test_a_large_body_passes(upstream: Any, gateway: Any, head: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    url = await gateway(head("a", await upstream(handler)))
    body = b'{"model":"m","x":"' + b"x" * 3 * 2**20 + b'"}'
    assert (await post(url, body))[:2] == (200, str(len(body)).encode())


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_5xx_is_tried_elsewhere(
    upstream: Any, gateway: Any, head: Any, status: int
) -> None:
    sick, well = await upstream(failing(status)), await upstream(fine)
    url = await gateway(head("sick", sick), head("well", well), strategy="round_robin")
    for _ in range(3):
        got, body, headers = await post(url)
        assert (got, body, headers["x-covey-replica"]) == (200, b"fine", "well")


async def test_no_connection_is_tried_elsewhere(upstream: Any, gateway: Any, head: Any) -> None:
    async def gone(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    url = await gateway(
        head("gone", await upstream(gone)), head("well", await upstream(fine)),
        strategy="round_robin",
    )  # fmt: skip
    assert [(await post(url))[0] for _ in range(2)] == [200, 200]


async def test_a_4xx_is_the_answer(upstream: Any, gateway: Any, head: Any) -> None:
    calls = []

    async def handler(request: web.Request) -> web.Response:
        calls.append(1)
        return web.Response(status=429, body=b"slow down", headers={"Retry-After": "9"})

    address = await upstream(handler)
    url = await gateway(head("a", address), head("b", await upstream(handler)))
    status, body, headers = await post(url)
    assert (status, body, headers["Retry-After"], len(calls)) == (429, b"slow down", "9", 1)
    _, state, _ = await get(url + "/gateway/status")
    assert [replica["first_byte_s"] for replica in state["replicas"]] == [{}, {}]


async def test_if_nobody_can_the_replicas_own_error_is_the_answer(
    upstream: Any, gateway: Any, head: Any
) -> None:
    handler = failing(503, b'{"error":{"message":"loading"}}', **{"Retry-After": "7"})
    url = await gateway(*[head(name, await upstream(handler)) for name in "abcd"])
    status, body, headers = await post(url)
    assert (status, body) == (503, b'{"error":{"message":"loading"}}')
    assert headers["Retry-After"] == "7"
    status, body, headers = await post(url)
    assert status == 503  # one was left of four, and now all cool down
    status, body, headers = await post(url)
    assert (status, headers["Retry-After"]) == (503, "7")
    assert "No replica of 'm' is ready" in json.loads(body)["error"]["message"]


async def test_nobody_answering_is_503(upstream: Any, gateway: Any, head: Any) -> None:
    async def gone(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    url = await gateway(head("a", await upstream(gone)))
    status, body, headers = await post(url)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "No replica of 'm' answers (a cannot be reached" in json.loads(body)["error"]["message"]


async def test_a_head_that_is_loading_is_not_asked(
    serve: Any, scripted: Any, gateway: Any, head: Any
) -> None:
    model = scripted()
    model.health = ("loading", "layers 3 of 9")
    url = await gateway(head("a", await serve(model), "covey-mini"))
    body = json.dumps({"model": "covey-mini", "messages": HELLO}).encode()
    status, answer, headers = await post(url, body)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "a: loading: layers 3 of 9" in json.loads(answer)["error"]["message"]
    status, health, _ = await get(url + "/health")
    assert (status, health["status"]) == (503, "unavailable")
    model.health = ("ready", "")
    await eventually(lambda: answers_200(get(url + "/health")))
    assert (await post(url, body))[0] == 200


async def test_a_client_that_leaves_frees_the_ring(
    serve: Any, scripted: Any, gateway: Any, head: Any
) -> None:
    step = asyncio.Event()
    model = scripted([b"a", step, *[b"b"] * 200])
    url = await gateway(head("a", await serve(model), "covey-mini"))
    body = {"model": "covey-mini", "messages": HELLO, "stream": True}
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + PATH, json=body)
        await answer.content.readline()
        assert model.running == 1
        answer.close()
        await until(lambda: model.running == 0)
        # And one that leaves before its first byte, while it waits for its turn.
        waiting = asyncio.create_task(session.post(url + PATH, json={**body, "stream": False}))
        await until(lambda: model.running == 1)
        waiting.cancel()
        await until(lambda: model.running == 0)
    assert model.delivered == 2
    _, status, _ = await get(url + "/gateway/status")
    assert status["replicas"][0]["in_flight"] == 0


def breaking(content_type: str, sent: bytes, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type, **headers})
        await response.prepare(request)
        if sent:
            await response.write(sent)
        assert request.transport is not None
        await asyncio.sleep(0.01)
        request.transport.abort()
        return response

    return handler


async def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_retried(
    upstream: Any, gateway: Any, head: Any
) -> None:
    calls = []
    inner = breaking("text/event-stream", b"data: 1\n\n")

    async def handler(request: web.Request) -> web.StreamResponse:
        calls.append(1)
        return await inner(request)

    url = await gateway(*[head(n, await upstream(handler)) for n in "ab"])
    status, body, _ = await post(url)
    first, second, rest = body.split(b"\n\n")
    assert (status, first, rest, len(calls)) == (200, b"data: 1", b"", 1)
    assert "broke off" in json.loads(second[6:])["error"]["message"]


async def test_one_that_breaks_before_its_first_byte_is_tried_elsewhere(
    upstream: Any, gateway: Any, head: Any
) -> None:
    url = await gateway(
        head("breaks", await upstream(breaking("text/event-stream", b""))),
        head("well", await upstream(fine)),
        strategy="round_robin",
    )
    assert [(await post(url))[1] for _ in range(2)] == [b"fine", b"fine"]


@pytest.mark.parametrize(
    "handler",
    [
        breaking("text/event-stream", b"data: 1\n\ndata: {"),
        breaking("application/json", b"{"),
        breaking("application/json", b"{", **{"Content-Length": "100"}),
    ],
)
async def test_an_answer_cut_short_never_looks_whole(
    upstream: Any, gateway: Any, head: Any, handler: Handler
) -> None:
    url = await gateway(head("a", await upstream(handler)))
    with pytest.raises(aiohttp.ClientError):
        await post(url)


async def test_a_client_that_reads_nothing_is_given_up(
    upstream: Any, gateway: Any, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "WRITE_TIMEOUT_S", 0.05)
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 2**20)
        finally:
            ended.set()

    url = await gateway(head("a", await upstream(handler)))
    async with aiohttp.ClientSession(read_bufsize=1) as session:
        answer = await session.post(url + PATH, data=BODY)
        async with asyncio.timeout(5):
            await ended.wait()
        answer.close()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "not a JSON object"),
        (b"[]", 400, "not a JSON object"),
        (b"\xff", 400, "not a JSON object"),
        (b'{"model":"\xff"}', 400, "not a JSON object"),
        (b"[" * 100_000, 400, "not a JSON object"),
        (b'{"x":' + b"[" * 100_000, 400, "not a JSON object"),
        (b"{}", 400, "names no model"),
        (b'{"model":5}', 400, "names no model"),
        (b'{"model":"gpt-4"}', 404, "'gpt-4' does not exist here; there is m"),
    ],
)
async def test_bad_requests(
    upstream: Any, gateway: Any, head: Any, body: bytes, status: int, text: str
) -> None:
    url = await gateway(head("a", await upstream(fine)))
    got, answer, headers = await post(url, body)
    error = json.loads(answer)["error"]
    assert got == status
    assert text in error["message"]
    assert error["type"] == "invalid_request_error"
    assert "x-covey-replica" not in headers


async def test_what_is_too_large_or_not_here(upstream: Any, gateway: Any, head: Any) -> None:
    url = await gateway(head("a", await upstream(fine)), max_body_bytes=1000)
    status, body, _ = await post(url, b"x" * 1001)
    assert status == 413
    assert "larger than 1000 bytes" in json.loads(body)["error"]["message"]
    assert (await post(url, path="/v1/nothing"))[0] == 404
    status, body, headers = await get(url + PATH)
    assert (status, headers["Allow"]) == (405, "POST")
    assert "does not take GET" in body["error"]["message"]


async def test_no_agent_is_said_and_waited_for(
    upstream: Any, gateway: Any, head: Any, listed: Any
) -> None:
    source = listed(missing="no agent is running on /run/covey/agent.sock")
    url = await gateway(source=source)
    status, body, headers = await post(url)
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "no agent is running on /run/covey/agent.sock" in json.loads(body)["error"]["message"]
    status, health, _ = await get(url + "/health")
    assert (status, health["status"]) == (503, "unavailable")
    assert "no agent is running" in health["reason"]
    assert (await get(url + "/v1/models"))[:2] == (200, {"object": "list", "data": []})
    source.listed, source.missing = [head("a", await upstream(fine))], ""
    await eventually(lambda: answers_200(post(url)))
    # The agent going away does not take away the heads that are known.
    source.missing = "no agent is running"
    await eventually(lambda: agent_is(url, "no agent is running. Start it with `agent up`."))
    assert (await post(url))[0] == 200
    status, body, _ = await post(url, b'{"model":"x"}')
    assert status == 404
    assert "there is m. The mesh's models are not known" in json.loads(body)["error"]["message"]


async def test_outside_servers_are_found_by_their_list(
    upstream: Any, gateway: Any, listed: Any
) -> None:
    source = listed(missing="no agent")
    url = await gateway(source=source, replicas={"ollama": await upstream(fine)})
    await eventually(lambda: answers_200(post(url)))
    status, body, headers = await post(url)
    assert (status, body, headers["x-covey-replica"]) == (200, b"fine", "ollama")
    assert (await get(url + "/health"))[1] == {"status": "ok", "models": ["m"]}


async def test_before_the_first_round_it_is_starting(gateway: Any) -> None:
    class Slow:
        async def replicas(self) -> list[Replica]:
            await asyncio.sleep(60)
            return []

        def deployed(self) -> frozenset[str]:
            return frozenset()

        async def aclose(self) -> None:
            pass

    url = await gateway(source=Slow(), wait=False)
    status, body, headers = await post(url)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "starting" in json.loads(body)["error"]["message"]


async def test_a_replica_that_is_no_openai_server_says_so(runners: Any, gateway: Any) -> None:
    async def html(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    app = web.Application()
    app.router.add_get("/v1/models", html)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    runners.append(runner)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    url = await gateway(replicas={"web": f"http://127.0.0.1:{port}"}, wait=False)

    async def told() -> bool:
        _, status, _ = await get(url + "/gateway/status")
        return "does not answer as an OpenAI server does" in status["replicas"][0]["reason"]

    await eventually(told)
