"""The routes that agent and gateway share, over real sockets."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agent.page.files import HEADERS, files
from agent.page.overview import overview
from agent.page.serve import is_open, page_routes
from agent.page.state import State, You, encoded


@pytest.fixture
async def served(told: dict[str, Any]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    known: dict[str, Any] = {"state": State("agent", overview(1.0, **told), "", None, You())}

    async def state(_: web.Request) -> State:
        return known["state"]

    async def catalogue(_: web.Request) -> bytes:
        return b'{"kept":[]}'

    app = web.Application()
    app.add_routes(page_routes(state, catalogue))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", known
    await runner.cleanup()


async def get(url: str, **headers: str) -> tuple[int, Any, bytes]:
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(url, headers=headers, allow_redirects=False) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def test_the_page_is_at_its_folder(served: Any) -> None:
    url, _ = served
    status, headers, _ = await get(url + "/dashboard")
    assert (status, headers["Location"]) == (302, "dashboard/")
    status, headers, body = await get(url + "/dashboard/", **{"Accept-Encoding": "identity"})
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body == files()["index.html"].body


@pytest.mark.parametrize("path", ["/dashboard/", "/dashboard/files/app.js", "/dashboard/state"])
async def test_every_answer_is_bounded_by_headers(served: Any, path: str) -> None:
    _, headers, _ = await get(served[0] + path)
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize("name", ["none.js", "..%2ffiles.py", "..%2f..%2ferrors.py", "%00"])
async def test_nothing_but_the_page_is_given(served: Any, name: str) -> None:
    assert (await get(f"{served[0]}/dashboard/files/{name}"))[0] == 404


async def test_what_a_browser_has_is_not_sent_again(served: Any) -> None:
    url, known = served
    for path in ("/dashboard/state", "/dashboard/files/app.js"):
        _, headers, _ = await get(url + path)
        status, again, body = await get(url + path, **{"If-None-Match": headers["ETag"]})
        assert (status, again["ETag"], body) == (304, headers["ETag"], b"")
    _, headers, _ = await get(url + "/dashboard/state")
    known["state"] = State("agent", None, "no agent", None, You())
    status, again, _ = await get(url + "/dashboard/state", **{"If-None-Match": headers["ETag"]})
    assert status == 200
    assert again["ETag"] != headers["ETag"]


async def test_what_the_mesh_tells_is_kept_in_no_cache(served: Any) -> None:
    for path, caching in (("state", "no-store"), ("catalogue", "no-store"), ("", "no-cache")):
        _, headers, _ = await get(f"{served[0]}/dashboard/{path}")
        assert headers["Cache-Control"] == caching


async def test_a_long_answer_is_packed(served: Any) -> None:
    url, known = served
    status, headers, body = await get(url + "/dashboard/state", **{"Accept-Encoding": "gzip"})
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == encoded(known["state"])[0]


def test_the_page_is_open_and_its_data_are_not() -> None:
    assert all(map(is_open, ("/dashboard", "/dashboard/", "/dashboard/files/app.js")))
    assert not any(map(is_open, ("/dashboard/state", "/dashboard/plan", "/dashboards", "/v1")))
