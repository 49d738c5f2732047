"""Who is let in, refused and counted, through a real gateway before scripted replicas."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from gateway.gate import Gate
from gateway.keys import accounts as module
from gateway.keys.database import open_database
from gateway.keys.guard import span
from gateway.keys.key import Key, digest
from gateway.keys.store import Store, Used

PATH = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
WHOLE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.02)
    monkeypatch.setattr(module, "LEAST_PAUSE_S", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with the key `ck-a` (named a); tests add others. The gateway opens it itself."""
    made = Store(open_database(str(tmp_path / "keys.db")))
    made.create(Key("id-a", "a"), digest("ck-a"))
    yield made
    made.close()


@pytest.fixture
def serving(gateway: Any, upstream: Any, head: Any, store: Store) -> Callable[..., Awaitable[str]]:
    """Serve a gateway before one replica, whose keys are known."""

    async def start(handler: Any = None, **config: Any) -> str:
        async def whole(_: web.Request) -> web.Response:
            return web.json_response(WHOLE)

        replica = head("r", await upstream(handler or whole))
        its_own = Store(open_database(store.name))
        url: str = await gateway(replica, store=its_own, **{"require_keys": True, **config})
        async with asyncio.timeout(5):
            while (await get(url + "/gateway/status"))["keys"]["state"] != "ok":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return url

    return start


async def get(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.json()


async def post(url: str, body: Any = ASK, path: str = PATH, **headers: str) -> Any:
    """Return (status, JSON, headers) of a POST."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + path, json=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json(content_type=None), answer.headers


async def counted(store: Store, requests: int) -> list[Used]:
    """Return the usage once so many requests are in it."""
    async with asyncio.timeout(5):
        while sum(used.requests for used in store.usage()) < requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return store.usage()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer ck-a"},
        {"authorization": "bearer  ck-a "},
        {"x-api-key": "ck-a"},
        {"api-key": "ck-a"},
        {"Authorization": "Bearer other", "x-api-key": "ck-a"},
    ],
)
async def test_a_key_in_each_header(serving: Any, store: Store, headers: dict[str, str]) -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers)
        return web.json_response(WHOLE)

    url = await serving(handler)
    more = {"X-Other": "kept", "x-covey-priority": "5"}
    assert (await post(url, **headers, **more))[:2] == (200, WHOLE)
    assert not {"Authorization", "x-api-key", "api-key", "x-covey-priority"} & set(seen[0])
    assert seen[0]["X-Other"] == "kept"
    [used] = await counted(store, 1)
    assert used[1:] == ("id-a", "a", "m", 1, 5, 6, 0)


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({}, "No API key was given"),
        ({"Authorization": "Basic ck-a"}, "No API key was given"),
        ({"Authorization": "Bearer ck-b"}, "not known here"),
        ({"Authorization": "Bearer sk-other"}, "not known here"),
        ({"Authorization": "Bearer ck-old"}, "The API key old has expired"),
        ({"Authorization": "Bearer ck-gone"}, "The API key gone has been revoked"),
    ],
)
async def test_who_is_not_let_in(
    serving: Any, store: Store, headers: dict[str, str], text: str
) -> None:
    store.create(Key("id-o", "old", expires=time.time() - 1), digest("ck-old"))
    store.create(Key("id-g", "gone"), digest("ck-gone"))
    store.revoke("gone", time.time())
    url = await serving()
    status, body, answer = await post(url, **headers)
    assert (status, answer["WWW-Authenticate"]) == (401, "Bearer")
    error = body["error"]
    assert text in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    async with aiohttp.ClientSession() as session:
        async with session.get(url + "/v1/models", headers=headers) as listed:
            assert listed.status == 401
        async with session.get(url + "/health", headers=headers) as health:
            assert health.status == 200


async def test_a_body_is_not_read_for_who_is_not_let_in(serving: Any) -> None:
    url = await serving(max_body_bytes=1000)
    assert (await post(url, "x" * 5000))[0] == 401
    assert (await post(url, "x" * 5000, **{"api-key": "ck-a"}))[0] == 413


async def test_where_no_key_is_required(serving: Any, store: Store) -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response(WHOLE)

    url = await serving(handler, require_keys=None)
    assert (await post(url))[0] == 200
    status, _, headers = await post(url, Authorization="Bearer sk-others")
    assert status == 200 and "x-ratelimit-limit-requests" not in headers
    assert (await post(url, Authorization="Bearer ck-a"))[0] == 200
    assert (await post(url, Authorization="Bearer ck-typo"))[0] == 401
    assert seen == [None, "Bearer sk-others", None]
    [used] = await counted(store, 1)
    assert used.requests == 1


async def test_models_of_a_key(serving: Any, store: Store) -> None:
    store.create(Key("id-m", "some", ("qwen*", "m")), digest("ck-some"))
    url = await serving()
    some = {"api-key": "ck-some"}
    assert (await post(url, **some))[0] == 200
    status, body, _ = await post(url, {**ASK, "model": "phi"}, **some)
    assert status == 403
    assert "may not use the model 'phi'. It may use qwen*, m." in body["error"]["message"]
    assert (body["error"]["code"], body["error"]["param"]) == ("model_not_allowed", "model")
    assert (await post(url, {"messages": []}, **some))[0] == 403
    assert (await post(url, [], **some))[0] == 403
    assert (await post(url, {**ASK, "model": "qwen3"}, **some))[0] == 404  # allowed, but not here


async def test_requests_a_minute_by_the_official_client(
    serving: Any, store: Store, client_of: Any
) -> None:
    store.create(Key("id-r", "r", requests_per_minute=2), digest("ck-r"))
    url = await serving()
    status, _, headers = await post(url, **{"api-key": "ck-r"})
    assert status == 200
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-reset-requests"].startswith("1m")
    assert "x-ratelimit-limit-tokens" not in headers
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="ck-r", max_retries=0)
    async with client:
        await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError, match="2 requests a minute") as refused:
            await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
    assert refused.value.code == "rate_limit_exceeded"
    wait_s = int(refused.value.response.headers["Retry-After"])
    assert 55 <= wait_s <= 61
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_a_minute_are_held_and_then_counted(serving: Any, store: Store) -> None:
    store.create(Key("id-t", "t", tokens_per_minute=100), digest("ck-t"))
    arrived, step = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        arrived.set()
        await step.wait()
        return web.json_response(WHOLE)

    url = await serving(handler)
    running = asyncio.create_task(post(url, {**ASK, "max_tokens": 500}, **{"api-key": "ck-t"}))
    await arrived.wait()
    status, body, headers = await post(url, ASK, **{"api-key": "ck-t"})
    assert status == 429
    assert "100 tokens a minute" in body["error"]["message"]
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    step.set()
    assert (await running)[0] == 200
    status, _, headers = await post(url, ASK, **{"api-key": "ck-t"})
    assert status == 200
    assert headers["x-ratelimit-remaining-tokens"] == "78"  # eleven were used by each


async def test_a_daily_quota_ends(serving: Any, store: Store) -> None:
    store.create(Key("id-d", "d", tokens_per_day=60), digest("ck-d"))
    url = await serving()
    answers = [await post(url, **{"api-key": "ck-d"}) for _ in range(6)]
    statuses = [status for status, _, _ in answers]
    assert statuses[0] == 200 and statuses[-1] == 429
    assert answers[0][2]["x-ratelimit-limit-tokens"] == "60"
    assert answers[-1][1]["error"]["code"] == "insufficient_quota"
    assert 1 <= int(answers[-1][2]["Retry-After"]) <= 86_400
    served = statuses.count(200)
    [used] = await counted(store, served)
    assert used.prompt_tokens + used.completion_tokens == 11 * served <= 60


def streaming(*events: bytes, hold: asyncio.Event | None = None) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        if hold is not None:
            await hold.wait()
        return response

    return handler


async def test_streams_are_counted_by_their_end_and_pass_as_they_are(
    serving: Any, store: Store
) -> None:
    end = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    events = [b'data: {"a": 1}\n\n'] * 30 + [end, b"data: [DONE]\n\n"]
    url = await serving(streaming(*events))
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": "Bearer ck-a"}
        async with session.post(url + PATH, json=ASK, headers=headers) as answer:
            assert await answer.read() == b"".join(events)
    [used] = await counted(store, 1)
    assert used[4:] == (1, 3, 4, 0)


async def test_a_stream_that_does_not_say_is_estimated_and_so_is_one_that_is_left(
    serving: Any, store: Store
) -> None:
    hold = asyncio.Event()
    url = await serving(streaming(*[b"data: {}\n\n"] * 10, hold=hold))
    headers = {"Authorization": "Bearer ck-a"}
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + PATH, json=ASK, headers=headers)
        await answer.content.readexactly(100)
        answer.close()
        [used] = await counted(store, 1)
        prompt = len(json.dumps(ASK)) // 4
        assert used[4:] == (1, prompt, 10, 1)
        hold.set()
        async with session.post(url + PATH, json=ASK, headers=headers) as answer:
            await answer.read()
    [used] = await counted(store, 2)
    assert used[4:] == (2, 2 * prompt, 20, 2)


async def test_what_was_not_served_costs_nothing(serving: Any, store: Store) -> None:
    async def handler(request: web.Request) -> web.Response:
        status = (await request.json())["status"]
        return web.json_response({**WHOLE, "status": status}, status=status)

    store.create(Key("id-t", "t", tokens_per_minute=1000), digest("ck-t"))
    url = await serving(handler)
    key = {"api-key": "ck-t"}
    for status in (400, 500):
        assert (await post(url, {**ASK, "status": status}, **key))[0] == status
    assert (await post(url, {**ASK, "model": "none"}, **key))[0] == 404
    assert (await post(url, {**ASK, "status": 200}, "/v1/embeddings", **key))[0] == 200
    [used] = await counted(store, 1)
    assert used[4:] == (1, 5, 6, 0)


async def test_a_store_that_is_away_at_the_start_is_waited_for(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path
) -> None:
    async def whole(_: web.Request) -> web.Response:
        return web.json_response(WHOLE)

    (tmp_path / "folder.db").mkdir()
    store = Store(open_database(str(tmp_path / "folder.db")))
    url = await gateway(head("r", await upstream(whole)), store=store, require_keys=True)
    status, body, headers = await post(url, **{"api-key": "ck-a"})
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "keys are not known yet" in body["error"]["message"]
    keys: dict[str, Any] = {"state": "not asked yet"}
    for _ in range(500):  # until the first look at it has ended
        if keys["state"] != "not asked yet":
            break
        await asyncio.sleep(0.01)
        keys = (await get(url + "/gateway/status"))["keys"]
    assert keys["state"].startswith("away for ") and keys["required"] is True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (7200, "2h0m0s")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


async def test_a_keys_weight_is_its_share_of_the_places(serving: Any, store: Store) -> None:
    store.create(Key("id-heavy", "heavy", weight=3.0), digest("ck-heavy"))
    asked: list[str] = []
    ends = {name: asyncio.Event() for name in ("h1", "h2", "h3", "h4", "a1", "a2")}

    async def handler(request: web.Request) -> web.Response:
        asked.append(name := request.headers["x-name"])
        await ends[name].wait()
        return web.json_response(WHOLE)

    async def there(count: int, waiting: int = 0) -> None:
        async with asyncio.timeout(5):
            while len(asked) < count or gate.waiting < waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    gates: list[Gate] = []
    begin = Gate.__init__

    def noted(self: Gate, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        gates.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gate, "__init__", noted)
        url = await serving(handler, per_replica=4)
    (gate,) = gates
    async with asyncio.TaskGroup() as group:
        for name in ("h1", "h2", "h3", "a1"):
            secret = "ck-heavy" if name[0] == "h" else "ck-a"
            group.create_task(post(url, **{"api-key": secret, "x-name": name}))
        await there(4)
        group.create_task(post(url, **{"api-key": "ck-a", "x-name": "a2"}))
        await there(4, waiting=1)
        group.create_task(post(url, **{"api-key": "ck-heavy", "x-name": "h4"}))
        await there(4, waiting=2)
        ends["h1"].set()
        await there(5)
        # Two of the heavy one's run still, and one of the other's: two thirds against one.
        assert asked[4] == "h4"
        for each in ends.values():
            each.set()
