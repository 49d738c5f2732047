"""The local API and its client, over a real unix socket."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest

from agent.api import DeployRequest, InviteRequest, LocalApi
from agent.client import AgentClient
from agent.errors import EnvironmentFault, MembershipError, NotRunning, UsageError


class FakeTarget:
    """Answers from memory what a daemon would; the API itself is what is tested."""

    def __init__(self) -> None:
        self.stopped = False

    def status(self) -> dict[str, Any]:
        return {"name": "box"}

    def peers(self) -> dict[str, Any]:
        raise RuntimeError("a mistake of ours")

    def replicas(self) -> dict[str, Any]:
        return {"replicas": []}

    def deployments(self) -> dict[str, Any]:
        return {"deployments": []}

    async def invite(self, request: InviteRequest) -> dict[str, Any]:
        if request.uses > 5:
            raise MembershipError("too many", hint="Ask for fewer.")
        return {"uses": request.uses, "ttl_s": request.ttl_s}

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        return {"model": request.model, "nodes": request.nodes}

    async def undeploy(self, name: str) -> dict[str, Any]:
        return {"name": name}

    def request_stop(self) -> None:
        self.stopped = True


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[tuple[FakeTarget, AgentClient, Path]]:
    target, socket = FakeTarget(), tmp_path / "run" / "agent.sock"
    server = LocalApi(target, socket)
    await server.start()
    async with AgentClient(socket) as client:
        yield target, client, socket
    await server.stop()
    assert not socket.exists()


Api = tuple[FakeTarget, AgentClient, Path]


async def test_reads_writes_and_deletes(api: Api) -> None:
    target, client, _ = api
    assert await client.get("/v1/status") == {"name": "box"}
    assert await client.post("/v1/invite", {"uses": 2}) == {"uses": 2, "ttl_s": 3600.0}
    assert await client.post("/v1/deployments", {"model": "m"}) == {"model": "m", "nodes": None}
    assert await client.delete("/v1/deployments/m") == {"name": "m"}
    await client.post("/v1/down")
    assert target.stopped


async def test_the_agents_own_errors_are_raised_at_the_client(api: Api) -> None:
    _, client, _ = api
    with pytest.raises(MembershipError) as caught:
        await client.post("/v1/invite", {"uses": 6})
    assert caught.value.line() == "too many. Ask for fewer."


@pytest.mark.parametrize("body", [{"use": 2}, {"uses": "two"}, [1]])
async def test_wrong_bodies_are_refused(api: Api, body: Any) -> None:
    with pytest.raises(UsageError, match="request body"):
        await api[1].post("/v1/invite", body)


async def test_unknown_paths_are_refused(api: Api) -> None:
    with pytest.raises(UsageError, match="Not Found"):
        await api[1].get("/v1/nothing")


async def test_our_own_mistakes_tell_no_details(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Exception, match="the agent made a mistake") as caught:
        await api[1].get("/v1/peers")
    assert "RuntimeError" not in str(caught.value)
    assert "a mistake of ours" in caplog.text


async def test_only_the_owner_may_open_the_socket(api: Api) -> None:
    assert stat.S_IMODE(api[2].stat().st_mode) == 0o600


async def test_no_agent_is_one_clear_line(tmp_path: Path) -> None:
    async with AgentClient(tmp_path / "agent.sock") as client:
        with pytest.raises(NotRunning, match="no agent is running") as caught:
            await client.get("/v1/status")
    assert "agent up" in caught.value.hint


async def test_a_socket_left_by_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    socket = tmp_path / "agent.sock"
    first = LocalApi(FakeTarget(), socket)
    await first.start()
    second = LocalApi(FakeTarget(), socket)
    await second.start()
    async with AgentClient(socket) as client:
        assert await client.get("/v1/status") == {"name": "box"}
    await second.stop()
    await first.stop()


async def test_a_path_that_cannot_be_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        await LocalApi(FakeTarget(), tmp_path / ("x" * 120)).start()


async def test_something_else_behind_the_socket_is_told(tmp_path: Path) -> None:
    app = aiohttp.web.Application()

    async def page(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text="<html>")

    app.router.add_get("/v1/status", page)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.UnixSite(runner, str(tmp_path / "s")).start()
    async with AgentClient(tmp_path / "s") as client:
        with pytest.raises(NotRunning, match="broke off"):
            await client.get("/v1/status")
    await runner.cleanup()
