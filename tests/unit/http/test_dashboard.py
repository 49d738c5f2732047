"""The dashboard at an agent's own listener: for looking alone."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from agent.errors import PeerError
from agent.http.dashboard import routes
from agent.http.listener import Listener


class Mesh:
    def __init__(self) -> None:
        self.fault: PeerError | None = None
        self.told = {
            "at": 1.0, "mesh": "demo", "name": "door", "software": "1", "uptime_s": 2.0,
            "may_deploy": True, "nodes": [], "rings": [], "health": [], "jobs": [], "events": [],
        }  # fmt: skip

    async def overview(self) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        return self.told

    async def shelf(self) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        return {"kept": [], "known": [], "workers": []}


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
async def url(mesh: Mesh) -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listener = Listener([], routes(mesh))
    await listener.start("127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    await listener.stop()


async def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, Any, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, allow_redirects=False) as answer,
    ):
        json = answer.content_type == "application/json"
        return answer.status, answer.headers, await (answer.json() if json else answer.text())


async def test_it_shows_the_mesh_and_no_gateway(url: str) -> None:
    status, _, state = await ask(url + "/dashboard/state")
    assert (status, state["served_by"], state["gateway"]) == (200, "agent", None)
    assert state["mesh"]["name"] == "door"
    assert state["you"]["admin"] is False


async def test_the_root_leads_there(url: str) -> None:
    status, headers, _ = await ask(url + "/")
    assert (status, headers["Location"]) == (302, "dashboard/")


async def test_the_page_may_load_its_own_scripts(url: str) -> None:
    _, headers, _ = await ask(url + "/dashboard/")
    assert "script-src 'self'" in headers["Content-Security-Policy"]


async def test_nothing_can_be_done(url: str) -> None:
    assert (await ask(url + "/dashboard/deployments", "POST"))[0] == 405
    assert (await ask(url + "/dashboard/deployments/m", "DELETE"))[0] == 405
    assert (await ask(url + "/dashboard/plan"))[0] == 404


async def test_another_sites_name_gets_nothing(url: str) -> None:
    assert (await ask(url + "/dashboard/state", Host="evil.example"))[0] == 421


async def test_what_the_agent_cannot_tell_is_said(url: str, mesh: Mesh) -> None:
    mesh.fault = PeerError("beta is away", hint="Wait.")
    status, _, state = await ask(url + "/dashboard/state")
    assert (status, state["mesh"], state["missing"]) == (200, None, "beta is away. Wait.")
    status, _, told = await ask(url + "/dashboard/catalogue")
    assert (status, told["error"]["message"]) == (503, "beta is away. Wait.")
