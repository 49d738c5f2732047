"""Requests that show a picture: to replicas that see, and refused where there are none."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from gateway.modalities import seeing

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
DATA = "data:image/png;base64,iVBORw0KGgo="
TEXT = {"type": "text", "text": "What is this?"}
ASK: dict[str, Any] = {
    CHAT: {
        "messages": [
            {"role": "user",
             "content": [TEXT, {"type": "image_url", "image_url": {"url": DATA}}]},
        ],
    },
    RESPONSES: {
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": DATA}]}],
    },
}  # fmt: skip
MESSAGE = {"role": "assistant", "content": "A dog"}
ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
}  # fmt: skip
WHERE = {CHAT: "messages[0].content[1]", RESPONSES: "input[0].content[0]"}
BOTH = pytest.mark.parametrize("path", [CHAT, RESPONSES])


async def post(url: str, path: str, **fields: Any) -> Any:
    """Return (status, answer, headers) of a request that shows a picture."""
    body = json.dumps({"model": "m", **ASK[path], **fields}).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + path, data=io.BytesIO(body)) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


@pytest.fixture
def server(runners: Any) -> Any:
    """Serve the model `m` as an outside server that lists it so; return URL and what it got."""

    async def start(**listed: Any) -> tuple[str, list[Any]]:
        sent: list[Any] = []

        async def models(_: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "m"}], **listed})

        async def chat(request: web.Request) -> web.Response:
            sent.append((await request.json())["messages"][-1]["content"])
            return web.json_response(ANSWER)

        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_get("/health", models)
        app.router.add_post(CHAT, chat)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}", sent

    return start


@BOTH
async def test_a_model_that_reads_text_only(
    serve: Any, scripted: Any, gateway: Any, head: Any, server: Any, path: str
) -> None:
    model = scripted()
    outside, sent = await server()
    url = await gateway(
        head("a", await serve(model), "m"), replicas={"b": outside}, strategy="round_robin"
    )
    for stream in (False, True):
        status, answer, headers = await post(url, path, stream=stream)
        error = answer["error"]
        assert (status, error["param"], error["code"]) == (400, WHERE[path], "unsupported_content")
        assert error["type"] == "invalid_request_error"
        assert "'m' reads text only here" in error["message"]
        assert "x-covey-replica" not in headers
    assert (model.requests, sent) == ([], [])


async def test_the_official_client_is_told(gateway: Any, server: Any, client_of: Any) -> None:
    outside, _ = await server()
    client: openai.AsyncOpenAI = client_of(await gateway(replicas={"b": outside}))
    with pytest.raises(openai.BadRequestError, match="reads text only") as caught:
        await client.chat.completions.create(model="m", **ASK[CHAT])
    assert (caught.value.param, caught.value.code) == (WHERE[CHAT], "unsupported_content")
    with pytest.raises(openai.BadRequestError, match="reads text only") as caught:
        await client.responses.create(model="m", **ASK[RESPONSES])
    assert (caught.value.param, caught.value.code) == (WHERE[RESPONSES], "unsupported_content")


@BOTH
@pytest.mark.parametrize("says", ["operator", "server"])
async def test_one_that_sees_gets_it_and_no_other(
    serve: Any, scripted: Any, gateway: Any, head: Any, server: Any, path: str, says: str
) -> None:
    model = scripted()
    told = {"models": [{"name": "m", "capabilities": ["completion", "multimodal"]}]}
    outside, sent = await server(**(told if says == "server" else {}))
    url = await gateway(
        head("a", await serve(model), "m"), replicas={"b": outside}, strategy="round_robin",
        vision=("b",) if says == "operator" else (),
    )  # fmt: skip
    for _ in range(3):
        status, answer, headers = await post(url, path)
        assert (status, headers["x-covey-replica"]) == (200, "b")
        assert "A dog" in json.dumps(answer)
    image = {"type": "image_url", "image_url": {"url": DATA}}
    assert sent == [[TEXT, image] if path == CHAT else [image]] * 3
    assert model.requests == []
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/v1/models") as listed:
            assert seeing(await listed.read()) == {"m"}  # so a gateway before this one knows it
        async with session.post("/api/show", json={"model": "m"}) as shown:
            assert "vision" in (await shown.json())["capabilities"]


@pytest.mark.parametrize(
    ("path", "asked", "where"),
    [
        ("/api/chat", {"messages": [{"role": "user", "images": ["iVBORw0KGgo="]}]},
         "messages[0].images[0]"),
        ("/api/generate", {"images": ["iVBORw0KGgo="]}, "images[0]"),
        ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [
            {"type": "image", "source": {
                "type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]}]},
         "messages[0].content[0]"),
    ],
)  # fmt: skip
async def test_other_apis_show_it_too(
    gateway: Any, server: Any, path: str, asked: dict[str, Any], where: str
) -> None:
    outside, sent = await server()
    body = {"model": "m", "stream": False, **asked}
    for sees in (True, False):
        url = await gateway(replicas={"b": outside}, vision=("b",) if sees else ())
        async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as found:
            told = await found.text()
        assert found.status == (200 if sees else 400)
        assert ("A dog" if sees else f"`{where}` is of type 'image', but 'm' reads") in told
    assert sent == [[{"type": "image_url", "image_url": {"url": DATA}}]]


async def test_an_unknown_model_is_still_unknown(gateway: Any, server: Any) -> None:
    outside, _ = await server()
    url = await gateway(replicas={"b": outside}, vision=("b",))
    status, answer, _ = await post(url, CHAT, model="other")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_a_picture_that_cannot_be_shown_is_refused_at_once(gateway: Any, server: Any) -> None:
    outside, sent = await server()
    url = await gateway(replicas={"b": outside}, vision=("b",))
    part = {"type": "input_image", "file_id": "file-1"}
    status, answer, _ = await post(url, RESPONSES, input=[{"role": "user", "content": [part]}])
    assert (status, answer["error"]["param"]) == (400, WHERE[RESPONSES])
    assert answer["error"]["code"] == "unsupported_content"
    assert sent == []
