"""The local API and its client, over a real unix socket."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import msgspec
import pytest

from agent.acl.service import CheckRequest
from agent.api import (
    DeployRequest,
    DrainRequest,
    LocalApi,
    PingRequest,
    PullRequest,
    VerifyRequest,
)
from agent.authority.wishes import (
    GrantWish,
    InviteWish,
    LeaveWish,
    MoveRootKeyWish,
    RenameWish,
    RevokeWish,
    RotateWish,
)
from agent.client import AgentClient
from agent.errors import EnvironmentFault, MembershipError, NotRunning, UsageError


class FakeTarget:
    """Answers from memory what a daemon would; the API itself is what is tested."""

    def __init__(self) -> None:
        self.stopped = False

    async def status(self) -> dict[str, Any]:
        return {"name": "box"}

    async def peers(self) -> dict[str, Any]:
        raise RuntimeError("a mistake of ours")

    async def netcheck(self) -> dict[str, Any]:
        return {"nat": "easy"}

    async def ping(self, request: PingRequest) -> dict[str, Any]:
        return {"name": request.peer, "rtt_ms": 1.5}

    async def members(self) -> dict[str, Any]:
        return {"members": []}

    async def replicas(self) -> dict[str, Any]:
        return {"replicas": []}

    async def deployments(self) -> dict[str, Any]:
        return {"deployments": []}

    async def plan(self, request: DeployRequest) -> dict[str, Any]:
        return {"planned": msgspec.to_builtins(request)}

    async def catalogue(self, name: str) -> dict[str, Any]:
        return {"models": [name]}

    async def events(self, after: int) -> dict[str, Any]:
        return {"events": [], "next": after}

    async def overview(self) -> dict[str, Any]:
        return {"mesh": "home"}

    async def shelf(self) -> dict[str, Any]:
        return {"kept": []}

    async def acl(self) -> dict[str, Any]:
        return {"rules": []}

    async def check_acl(self, request: CheckRequest) -> dict[str, Any]:
        return {"allowed": request.port == "icmp"}

    async def revoke(self, wish: RevokeWish) -> dict[str, Any]:
        return {"node": wish.node}

    async def rename(self, wish: RenameWish) -> dict[str, Any]:
        return {"name": wish.name, "node": wish.node}

    async def grant(self, wish: GrantWish) -> dict[str, Any]:
        return {"roles": wish.roles, "tags": wish.tags}

    async def rotate(self, wish: RotateWish) -> dict[str, Any]:
        return {"overlap_s": wish.overlap_s}

    async def leave(self, wish: LeaveWish) -> dict[str, Any]:
        return {"force": wish.force}

    async def move_root_key(self, wish: MoveRootKeyWish) -> dict[str, Any]:
        return {"moved": wish.path}

    async def invite(self, request: InviteWish) -> dict[str, Any]:
        if request.uses > 5:
            raise MembershipError("too many", hint="Ask for fewer.")
        return {"uses": request.uses, "ttl_s": request.ttl_s}

    async def logs(self, name: str, node: str, lines: int) -> dict[str, Any]:
        return {"name": name, "node": node, "lines": lines}

    async def drained(self) -> dict[str, Any]:
        return {"draining": True, "work": []}

    async def drain(self, request: DrainRequest) -> dict[str, Any]:
        return {"draining": not request.off}

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        return {"model": request.model, "nodes": request.nodes}

    async def undeploy(self, name: str) -> dict[str, Any]:
        return {"name": name}

    async def models(self) -> dict[str, Any]:
        return {"models": []}

    async def model_jobs(self) -> dict[str, Any]:
        return {"jobs": []}

    async def pull(self, request: PullRequest) -> dict[str, Any]:
        return {"source": request.source, "pinned": request.pinned}

    async def cancel_pull(self, name: str) -> dict[str, Any]:
        return {"cancelled": name}

    async def verify_models(self, request: VerifyRequest) -> dict[str, Any]:
        return {"name": request.name, "repair": request.repair}

    async def remove_model(self, name: str) -> dict[str, Any]:
        return {"removed": name}

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
    assert await client.get("/v1/netcheck") == {"nat": "easy"}
    assert await client.post("/v1/ping", {"peer": "b"}) == {"name": "b", "rtt_ms": 1.5}
    assert await client.delete("/v1/deployments/m") == {"name": "m"}
    assert await client.post("/v1/drain") == {"draining": True}
    assert await client.post("/v1/drain", {"off": True}) == {"draining": False}
    assert await client.get("/v1/drain") == {"draining": True, "work": []}
    await client.post("/v1/down")
    assert target.stopped


async def test_wishes_of_an_operator_come_as_they_were_said(api: Api) -> None:
    _, client, _ = api
    assert await client.get("/v1/members") == {"members": []}
    assert await client.post("/v1/revoke", {"node": "b"}) == {"node": "b"}
    assert await client.post("/v1/rename", {"name": "c"}) == {"name": "c", "node": ""}
    assert await client.post("/v1/grant", {"node": "b", "tags": ["x"]}) == {
        "roles": None, "tags": ["x"]
    }  # fmt: skip
    assert await client.post("/v1/rotate", {"overlap_s": 9}) == {"overlap_s": 9.0}
    assert await client.post("/v1/leave") == {"force": False}
    assert await client.post("/v1/root-key/move", {"path": "/x"}) == {"moved": "/x"}
    question = {"src": "a", "dst": "b", "port": "icmp"}
    assert await client.post("/v1/acl/check", question) == {"allowed": True}


async def test_models_are_asked_for_by_their_paths(api: Api) -> None:
    _, client, _ = api
    assert await client.get("/v1/models") == {"models": []}
    assert await client.get("/v1/models/jobs") == {"jobs": []}
    pulled = await client.post("/v1/models/pull", {"source": "hf:a/b/c"})
    assert pulled == {"source": "hf:a/b/c", "pinned": None}
    assert await client.delete("/v1/pulls/m") == {"cancelled": "m"}
    assert await client.post("/v1/models/verify", {"repair": True}) == {"name": "", "repair": True}
    assert await client.delete("/v1/models/m") == {"removed": "m"}


async def test_a_body_that_is_not_utf8_is_refused(api: Api) -> None:
    _, _, path = api
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession(connector=connector) as session:
        body = b'{"node": "\xf0\x28"}'
        async with session.post("http://agent/v1/revoke", data=body) as response:
            assert response.status == 400


async def test_events_are_asked_for_after_a_number(api: Api) -> None:
    _, client, _ = api
    assert await client.get("/v1/events?after=7") == {"events": [], "next": 7}
    for wrong in ("x", "-1", "1" * 20, "%C2%B2"):
        with pytest.raises(UsageError, match="no event's number"):
            await client.get(f"/v1/events?after={wrong}")


async def test_logs_are_asked_for_within_bounds(api: Api) -> None:
    _, client, _ = api
    assert await client.get("/v1/logs") == {"name": "", "node": "", "lines": 50}
    asked = await client.get("/v1/logs?name=a%20b&node=den&lines=3")
    assert asked == {"name": "a b", "node": "den", "lines": 3}
    for wrong in ("lines=0", "lines=51", "lines=-1", "lines=x", "lines=" + "9" * 30,
                  "name=" + "x" * 65):  # fmt: skip
        with pytest.raises(UsageError):
            await client.get(f"/v1/logs?{wrong}")


async def test_the_catalogue_is_asked_for_whole_or_by_a_name(api: Api) -> None:
    _, client, _ = api
    assert await client.get("/v1/catalogue") == {"models": [""]}
    assert await client.get("/v1/catalogue/qwen3-4b") == {"models": ["qwen3-4b"]}


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


async def test_a_gateway_of_another_user_reads_and_changes_nothing(tmp_path: Path) -> None:
    target, own, reading = FakeTarget(), tmp_path / "own" / "s", tmp_path / "shared" / "s"
    server = LocalApi(target, own, reading)
    await server.start()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (own, reading)] == [0o600, 0o666]
    async with AgentClient(reading) as client:
        assert await client.get("/v1/replicas") == {"replicas": []}
        assert await client.get("/v1/deployments") == {"deployments": []}
        for path in ("/v1/down", "/v1/invite", "/v1/deployments"):
            with pytest.raises(MembershipError, match="takes no orders") as caught:
                await client.post(path, {"model": "m"})
            assert str(own) in caught.value.hint
        with pytest.raises(MembershipError, match="takes no orders"):
            await client.delete("/v1/deployments/m")
        with pytest.raises(UsageError, match="Not Found"):
            await client.get("/v1/none")
        # A dashboard behind it knows before somebody tries.
        assert (await client.get("/v1/overview"))["takes_orders"] is False
    async with AgentClient(own) as client:
        assert (await client.get("/v1/overview"))["takes_orders"] is True
    assert not target.stopped
    await server.stop()
    assert not own.exists()
    assert not reading.exists()


async def test_a_gateways_socket_that_cannot_be_is_named_and_nothing_listens(
    tmp_path: Path,
) -> None:
    own = tmp_path / "s"
    with pytest.raises(EnvironmentFault, match="cannot listen") as caught:
        await LocalApi(FakeTarget(), own, tmp_path / ("x" * 120)).start()
    assert "node.gateway_socket" in caught.value.hint
    assert not own.exists()


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


async def test_a_plan_is_asked_for_as_a_deployment_is(api: Api) -> None:
    _, client, _ = api
    body = {"model": "covey-mini", "objective": "latency", "least": 2, "only": ["fast"]}
    answer = await client.post("/v1/plan", body, timeout_s=5.0)
    assert answer["planned"] == {
        "model": "covey-mini", "name": "", "nodes": None, "context": 0, "engine": "ring",
        "draft": "", "objective": "latency", "least": 2, "only": ["fast"], "never": [],
        "rings": 1,
    }  # fmt: skip
    with pytest.raises(UsageError, match="objective"):
        await client.post("/v1/plan", {"model": "m", "objective": "luck"})
