"""Pages of other web sites get nothing of a gateway that asks for no key; its own page does."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.browsers import foreign
from gateway.keys.database import open_database
from gateway.keys.key import Key, digest
from gateway.keys.store import Store

HERE = "127.0.0.1:8088"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
CROSS = {"Host": HERE, "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
REBOUND = {"Host": "evil.example:8088", "Origin": "http://evil.example:8088"}


@pytest.mark.parametrize(
    "headers",
    [
        CROSS,
        {"Host": HERE, "Origin": "https://evil.example"},  # an old browser
        {"Host": HERE, "Origin": "null", "Sec-Fetch-Site": "cross-site"},  # a frame in a sandbox
        {"Host": HERE, "Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Host": HERE, "Origin": "http://127.0.0.1:9999"},
        REBOUND,
        REBOUND | {"Sec-Fetch-Site": "same-origin"},
        {"Host": "[evil", "Origin": "http://[evil"},
    ],
)
def test_pages_of_others_change_nothing(headers: dict[str, str]) -> None:
    assert foreign(headers, changes=True, shows=False)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": HERE},
        {"Host": "gateway:8088"},  # a service of the same compose file
        {"Host": "ai.example.org"},  # no browser says where it comes from: none is it
        {},
        {"Host": HERE, "Origin": f"http://{HERE}", "Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost:8088", "Origin": "http://localhost:8088"},
        {"Host": "[::1]:8088", "Origin": "http://[::1]:8088"},
        {"Host": "nas.local", "Origin": "http://nas.local"},
        {"Host": HERE, "Origin": "vscode-webview://abc", "Sec-Fetch-Site": "cross-site"},
        {"Host": HERE, "Sec-Fetch-Site": "none"},
    ],
)
def test_others_do(headers: dict[str, str]) -> None:
    assert not foreign(headers, changes=True, shows=False)


def test_the_dashboard_is_shown_by_names_that_lead_nowhere_else() -> None:
    for host in (HERE, "localhost:8088", "nas:8088", "nas.lan", "10.77.0.4", "x.internal."):
        assert not foreign({"Host": host}, changes=False, shows=True)
    for host in ("evil.example", "evil.example:8088", "127.0.0.1.evil.example", ""):
        assert foreign({"Host": host}, changes=False, shows=True) is bool(host)
    # A link on another site may lead to it.
    assert not foreign(CROSS | {"Origin": ""}, changes=False, shows=True)


async def test_where_no_key_is_asked_for(gateway: Any, upstream: Any, head: Any) -> None:
    """Through a real gateway: refused in OpenAI's form, and asked as before without a browser."""

    async def answers(_: web.Request) -> web.Response:
        return web.json_response({"choices": []})

    url = await gateway(head("one", await upstream(answers)))
    async with aiohttp.ClientSession() as session:
        ask = partial(session.post, f"{url}/v1/chat/completions", json=BODY)
        for headers in (CROSS, REBOUND):
            async with ask(headers=headers) as answer:
                assert answer.status == 403
                assert (await answer.json())["error"]["code"] == "foreign_page"
        async with session.get(f"{url}/dashboard/state", headers=REBOUND) as answer:
            assert answer.status == 403
        for own in ({}, {"Origin": url, "Sec-Fetch-Site": "same-origin"}):
            async with ask(headers=own) as answer:
                assert answer.status == 200


async def test_a_key_says_enough(gateway: Any, upstream: Any, head: Any, tmp_path: Path) -> None:
    async def answers(_: web.Request) -> web.Response:
        return web.json_response({"choices": []})

    file = str(tmp_path / "keys.db")
    with closing(Store(open_database(file))) as store:
        store.create(Key("id-ada", "ada"), digest("ck-ada"))
    replica = head("one", await upstream(answers))
    for required in (True, False):
        # Each closes its own.
        own = Store(open_database(file))
        url = await gateway(replica, store=own, require_keys=required)
        async with aiohttp.ClientSession() as session:
            keyed = REBOUND | {"Authorization": "Bearer ck-ada"}
            async with session.post(
                f"{url}/v1/chat/completions", json=BODY, headers=keyed
            ) as answer:
                assert answer.status == 200
            # Who has yet to type a key gets the page, where keys are asked for.
            async with session.get(f"{url}/dashboard/", headers=REBOUND) as answer:
                assert answer.status == (200 if required else 403)
