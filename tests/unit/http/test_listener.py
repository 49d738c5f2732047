"""The pages' socket: what it answers, to whom, and what it says where it cannot listen."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from figures_given import figures
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import EnvironmentFault
from agent.figures import Figures
from agent.health import Health, HealthItem
from agent.http import standing
from agent.http.listener import Listener

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


async def ask(port: int, head: str) -> tuple[int, dict[str, str], str]:
    """Return the status, headers and body that come for a request, its lines as they are given."""
    reader, writer = await asyncio.open_connection(HOST, port)
    lines = [*head.strip().splitlines(), "Connection: close", "", ""]
    writer.write("\r\n".join(line.strip() for line in lines).encode())
    async with asyncio.timeout(10):
        answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    top, _, body = answer.partition("\r\n\r\n")
    first, *rest = top.splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return int(first.split()[1]), headers, body


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


async def mistaken(_: web.Request) -> web.Response:
    raise RuntimeError("secret words")


ROUTES = (web.get("/hello", hello), web.get("/mistaken", mistaken))


@pytest.fixture
async def port() -> AsyncIterator[int]:
    number = free_port()
    listener = Listener(["Box.example"], ROUTES)
    await listener.start(HOST, number)
    yield number
    await listener.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, number)


async def test_a_page_is_read_and_no_other_site_gets_it(port: int) -> None:
    status, headers, body = await ask(port, f"GET /hello HTTP/1.1\nHost: {HOST}:{port}")
    assert (status, body) == (200, "hello")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["server"] == "covey"
    asked = "GET /hello HTTP/1.1\nHost: localhost\nOrigin: http://evil.example"
    _, headers, _ = await ask(port, asked)
    assert not [name for name in headers if name.startswith("access-control")]


async def test_its_head_alone(port: int) -> None:
    status, headers, body = await ask(port, "HEAD /hello HTTP/1.1\nHost: box.EXAMPLE")
    assert (status, headers["content-length"], body) == (200, "5", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_other_methods_are_refused_on_every_path(port: int, method: str) -> None:
    for path in ("/hello", "/none"):
        status, headers, _ = await ask(port, f"{method} {path} HTTP/1.1\nHost: localhost")
        assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("hosts", ["Host: evil.example", "", "Host: localhost\nHost: localhost"])
async def test_a_name_that_leads_here_is_refused(port: int, hosts: str) -> None:
    status, _, body = await ask(port, f"GET /hello HTTP/1.1\n{hosts or 'X-None: 1'}")
    assert status in (400, 421)
    assert "hello" not in body


async def test_an_unknown_page_and_a_mistake_are_one_line(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, body = await ask(port, "GET /none HTTP/1.1\nHost: localhost")
    assert (status, body) == (404, "Not Found.\n")
    status, _, body = await ask(port, "GET /mistaken HTTP/1.1\nHost: localhost")
    assert (status, body.count("\n")) == (500, 1)
    assert "secret" not in body
    assert "secret words" in caplog.text


async def test_a_port_in_use_is_said_and_the_next_try_may_work(port: int) -> None:
    second = Listener([], ROUTES)
    with pytest.raises(EnvironmentFault) as caught:
        await second.start(HOST, port)
    assert f"{HOST}:{port}" in caught.value.message
    assert "another program has that port" in caught.value.message
    assert "http.listen" in caught.value.hint
    other = free_port()
    await second.start(HOST, other)
    assert (await ask(other, "GET /hello HTTP/1.1\nHost: localhost"))[0] == 200
    await second.stop()


async def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(EnvironmentFault, match="no such address"):
        await Listener([], ROUTES).start("192.0.2.1", free_port())


async def test_metrics_are_those_of_the_node_and_of_its_process() -> None:
    async def gathered() -> Figures:
        return figures()

    port = free_port()
    listener = Listener([], standing.routes(Health(), gathered))
    await listener.start(HOST, port)
    status, headers, body = await ask(port, "GET /metrics HTTP/1.1\nHost: localhost")
    await listener.stop()
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {one.name: one for one in text_string_to_metric_families(body)}
    assert families["covey_agent_draining"].samples[0].value == 0
    for name in ("process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"):
        assert families[name].samples[0].value > 0


async def test_health_is_200_whatever_is_wrong() -> None:
    health, port = Health(), free_port()

    async def gathered() -> Figures:
        return figures()

    listener = Listener([], standing.routes(health, gathered))
    await listener.start(HOST, port)

    async def told() -> dict[str, Any]:
        status, headers, body = await ask(port, "GET /health HTTP/1.1\nHost: localhost")
        assert status == 200
        assert headers["content-type"] == "application/json"
        found: dict[str, Any] = msgspec.json.decode(body)
        return found

    assert await told() == {"status": "ok", "items": []}
    health.set(HealthItem("disk-low", "warning", "Little room", "63 MiB are free in /home/me"))
    assert (await told())["status"] == "warning"
    health.set(HealthItem("overlay-down", "error", "WireGuard fails", "no device", "Load it."))
    assert await told() == {
        "status": "error",
        "items": [
            {"code": "overlay-down", "severity": "error", "title": "WireGuard fails"},
            {"code": "disk-low", "severity": "warning", "title": "Little room"},
        ],
    }
    await listener.stop()
