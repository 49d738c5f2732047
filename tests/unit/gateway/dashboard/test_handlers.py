"""The dashboard's routes through a real gateway: who may look, who may act, what the agent gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.dashboard import handlers
from gateway.errors import ApiError
from gateway.keys import accounts
from gateway.keys.database import open_database
from gateway.keys.key import Key, digest
from gateway.keys.store import Store

MESH = {
    "at": 1.0, "mesh": "demo", "name": "door", "software": "1", "uptime_s": 2.0,
    "may_deploy": True, "nodes": [], "rings": [], "health": [], "jobs": [], "events": [],
    "unknown": "of a newer agent",
}  # fmt: skip
SHELF = {"kept": [], "known": [], "workers": [{"name": "alpha", "free": 5}]}
ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
WHOLE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}

pytestmark = pytest.mark.usefixtures("short")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "ROUND_S", 0.02)
    monkeypatch.setattr(accounts, "LEAST_PAUSE_S", 0.0)
    monkeypatch.setattr(handlers, "FRESH_S", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with the keys ck-ada, which may chat, and ck-root, an admin's."""
    made = Store(open_database(str(tmp_path / "keys.db")))
    made.create(Key("id-ada", "ada"), digest("ck-ada"))
    made.create(Key("id-root", "root", admin=True), digest("ck-root"))
    yield made
    made.close()


@pytest.fixture
def source(listed: Any) -> Any:
    made = listed()
    made.answers[("GET", "/v1/overview")] = MESH
    made.answers[("GET", "/v1/shelf")] = SHELF
    return made


@pytest.fixture
async def url(gateway: Any, source: Any, store: Store) -> str:
    """A gateway that requires keys, with its own connection to the store."""
    address: str = await gateway(
        source=source, store=Store(open_database(store.name)), require_keys=True
    )
    await until(lambda: store_read(address))
    return address


async def call(
    url: str, method: str = "GET", key: str = "", body: Any = None, data: bytes | None = None,
    **headers: str,
) -> tuple[int, Any, Any]:  # fmt: skip
    if key:
        headers["Authorization"] = f"Bearer {key}"
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, url, json=body, data=data, headers=headers, allow_redirects=False
        ) as answer,
    ):
        json_ = answer.content_type == "application/json"
        return answer.status, await (answer.json() if json_ else answer.text()), answer.headers


async def store_read(url: str) -> bool:
    status: str = (await call(url + "/gateway/status"))[1]["keys"]["state"]
    return status == "ok"


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await holds():  # noqa: ASYNC110  # what is waited for is in another program
            await asyncio.sleep(0.02)


async def test_the_page_needs_no_key_and_its_data_do(url: str) -> None:
    for path in ("/dashboard/", "/dashboard/files/app.js"):
        assert (await call(url + path))[0] == 200
    for path in ("state", "catalogue", "usage"):
        status, told, _ = await call(f"{url}/dashboard/{path}")
        assert (status, told["error"]["code"]) == (401, "invalid_api_key")


async def test_browsers_are_led_to_the_page_and_ollama_is_not(url: str) -> None:
    status, _, headers = await call(url + "/", key="ck-ada", Accept="text/html,*/*")
    assert (status, headers["Location"]) == (302, "dashboard/")
    assert (await call(url + "/", key="ck-ada"))[:2] == (200, "Ollama is running")


async def test_who_asks_is_told_who_they_are(url: str) -> None:
    for key, name, admin in (("ck-ada", "ada", False), ("ck-root", "root", True)):
        status, state, _ = await call(url + "/dashboard/state", key=key)
        assert (status, state["served_by"], state["mesh"]["mesh"]) == (200, "gateway", "demo")
        assert (state["you"]["key"], state["you"]["admin"]) == (name, admin)
        assert (state["you"]["needs"] == "") == admin
        assert state["gateway"]["keys_required"] is True
    assert (await call(url + "/dashboard/state", key="ck-none"))[0] == 401


async def test_without_an_agent_it_is_said(url: str, source: Any) -> None:
    source.answers[("GET", "/v1/overview")] = ApiError("no agent is running", status=503)
    status, state, _ = await call(url + "/dashboard/state", key="ck-root")
    assert (status, state["mesh"], state["missing"]) == (200, None, "no agent is running.")
    assert state["you"]["needs"] == "The agent does not answer."


async def test_an_agent_of_another_release_is_said(url: str, source: Any) -> None:
    source.answers[("GET", "/v1/overview")] = MESH | {"nodes": 5}
    _, state, _ = await call(url + "/dashboard/state", key="ck-root")
    assert "not of the same release" in state["missing"]


async def test_many_who_look_at_once_ask_the_agent_once(
    url: str, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.calls.clear()
    await asyncio.gather(*(call(url + "/dashboard/catalogue", key="ck-ada") for _ in range(5)))
    assert source.calls == [("GET", "/v1/shelf", None)]


async def test_models_are_told(url: str) -> None:
    status, told, _ = await call(url + "/dashboard/catalogue", key="ck-ada")
    assert (status, told) == (200, SHELF)


ACTS = [
    ("POST", "plan", {"model": "m"}, "/v1/plan"),
    ("POST", "deployments", {"model": "m", "nodes": 2}, "/v1/deployments"),
    ("DELETE", "deployments/a%2Fb", None, "/v1/deployments/a%2Fb"),
]


@pytest.mark.parametrize(("method", "path", "body", "asked"), ACTS)
async def test_only_an_admin_key_acts(
    url: str, source: Any, method: str, path: str, body: Any, asked: str
) -> None:
    source.answers[(method, asked)] = {"name": "m", "rings": 1, "phase": "ended", "stages": []}
    address = f"{url}/dashboard/{path}"
    source.calls.clear()
    assert (await call(address, method, body=body))[0] == 401
    status, told, _ = await call(address, method, key="ck-ada", body=body)
    assert (status, told["error"]["code"]) == (403, "not_admin")
    assert source.calls == []
    status, told, _ = await call(address, method, key="ck-root", body=body)
    assert (status, told["name"]) == (200, "m")
    assert source.calls == [(method, asked, body)]


async def test_the_agents_refusal_is_passed_on(url: str, source: Any) -> None:
    source.answers[("POST", "/v1/deployments")] = ApiError(
        "m is in use", status=400, hint="Choose another name."
    )
    status, told, _ = await call(
        url + "/dashboard/deployments", "POST", "ck-root", body={"model": "m"}
    )
    assert (status, told["error"]["message"]) == (400, "m is in use. Choose another name.")


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 5000])
async def test_nonsense_is_refused(url: str, source: Any, data: bytes) -> None:
    source.calls.clear()
    status, _, _ = await call(url + "/dashboard/plan", "POST", "ck-root", data=data)
    assert status == 400
    assert source.calls == []


async def test_a_key_sees_its_own_usage_and_an_admin_all(
    gateway: Any, upstream: Any, head: Any, store: Store
) -> None:
    async def whole(_: web.Request) -> web.Response:
        return web.json_response(WHOLE)

    url = await gateway(
        head("r", await upstream(whole)), store=Store(open_database(store.name)),
        require_keys=True,
    )  # fmt: skip
    await until(lambda: store_read(url))
    for key in ("ck-ada", "ck-root"):
        assert (await call(url + "/v1/chat/completions", "POST", key, ASK))[0] == 200

    async def both() -> bool:
        return len((await call(url + "/dashboard/usage", key="ck-root"))[1]["usage"]) == 2

    await until(both)
    _, told, _ = await call(url + "/dashboard/usage", key="ck-root")
    assert (told["all"], {row["key"] for row in told["usage"]}) == (True, {"ada", "root"})
    _, told, _ = await call(url + "/dashboard/usage", key="ck-ada")
    [row] = told["usage"]
    assert (told["all"], row["key"], row["prompt_tokens"], row["completion_tokens"]) == (
        False, "ada", 5, 6,
    )  # fmt: skip


async def test_acting_costs_the_key_nothing(url: str, source: Any, store: Store) -> None:
    source.answers[("POST", "/v1/plan")] = {"stages": []}
    assert (await call(url + "/dashboard/plan", "POST", "ck-root", {"model": "m"}))[0] == 200
    await asyncio.sleep(0.1)
    assert store.usage() == []


@pytest.fixture
async def holding(
    gateway: Any, upstream: Any, head: Any, store: Store
) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A gateway whose replica streams a first piece, and the rest when it is let."""
    let = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
        await let.wait()
        await response.write(b"data: " + json.dumps(WHOLE).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    url = await gateway(
        head("r", await upstream(hold)), store=Store(open_database(store.name)),
        require_keys=False,
    )  # fmt: skip
    yield url, let
    let.set()


async def test_a_request_is_seen_while_it_runs_and_after(
    holding: tuple[str, asyncio.Event],
) -> None:
    url, let = holding
    asked = asyncio.create_task(
        call(url + "/v1/chat/completions", "POST", body=ASK | {"stream": True})
    )

    async def state() -> Any:
        return (await call(url + "/dashboard/state"))[1]["gateway"]

    async def begun() -> bool:
        live = (await state())["live"]
        return bool(live) and live[0]["first_s"] is not None

    async def ended() -> bool:
        return bool((await state())["past"])

    await until(begun)
    live = (await state())["live"]
    assert (live[0]["model"], live[0]["replica"], live[0]["streamed"]) == ("m", "r", True)
    assert (await state())["past"] == []
    let.set()
    assert (await asked)[0] == 200
    await until(ended)
    past = (await state())["past"]
    assert (past[0]["status"], past[0]["prompt"], past[0]["completion"]) == (200, 5, 6)
    assert (await state())["live"] == []
