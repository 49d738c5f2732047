"""Metrics, access log and traces of a real gateway before scripted servers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from gateway import access_log, otlp
from gateway.keys.database import open_database
from gateway.keys.key import Key, digest
from gateway.keys.store import Store

PATH = "/v1/chat/completions"
USAGE = {"prompt_tokens": 5, "completion_tokens": 3}
WHOLE = {"model": "m", "choices": [], "usage": USAGE}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SECRET = "what nobody is to read"
ASK = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}


async def whole(_: web.Request) -> web.Response:
    return web.json_response(WHOLE)


async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for n in range(3):
        await response.write(b'data: {"n": %d}\n\n' % n)
        await asyncio.sleep(0.01)
    await response.write(b"data: %s\n\n" % json.dumps({"usage": USAGE}).encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def post(url: str, body: Any = ASK, path: str = PATH, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + path, json=body, headers=headers) as answer,
    ):
        await answer.read()
        return answer.status


async def metrics(url: str, **headers: str) -> dict[str, float]:
    """Return each sample of /metrics, named as in the text, without the provider."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(url + "/metrics", headers=headers) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await answer.text()
    return {
        f"{sample.name}{sorted(v for v in sample.labels.values() if v != 'covey')}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the access log's lines for requests once there are so many."""
    async with asyncio.timeout(5):
        while True:
            found = [json.loads(x) for x in path.read_bytes().splitlines()] if path.exists() else []
            found = [line for line in found if line["path"] != "/gateway/status"]
            if len(found) >= count:
                assert len(found) == count
                return found
            await asyncio.sleep(0.02)


async def test_metrics_of_answers_streams_and_errors(
    gateway: Any, upstream: Any, head: Any
) -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("fail"):
            return web.Response(status=418)
        return await (streamed if body.get("stream") else whole)(request)

    url = await gateway(head("box", await upstream(serve)))
    assert await post(url) == 200
    assert await post(url, ASK | {"stream": True}) == 200
    assert await post(url, ASK | {"fail": True}) == 418
    assert await post(url, ASK | {"model": "evil"}) == 404
    assert await post(url, {"model": "m", "input": "x"}, "/v1/embeddings") == 200
    assert await post(url, {"model": "m", "content": "x"}, "/tokenize") == 200
    found = await metrics(url)
    count = "gen_ai_server_request_duration_seconds_count"
    assert found[f"{count}['', 'chat', 'm']"] == 2
    assert found[f"{count}['418', 'chat', 'm']"] == 1
    assert found[f"{count}['', 'chat', 'model_not_found']"] == 1
    assert found[f"{count}['', 'embeddings', 'm']"] == 1
    assert sum(v for k, v in found.items() if k.startswith(count)) == 5
    first = "gen_ai_server_time_to_first_token_seconds"
    assert found[f"{first}_count['chat', 'm']"] == 1
    each = found["gen_ai_server_time_per_output_token_seconds_sum['chat', 'm']"]
    assert 0.01 < each < 5  # 30 ms at least, for two tokens
    # No key is configured here.
    assert found["gen_ai_client_token_usage_sum['chat', 'input', 'm']"] == 10
    assert found["gen_ai_client_token_usage_sum['chat', 'm', 'output']"] == 6
    assert found["covey_gateway_requests_refused_total['model_not_found']"] == 1
    assert found["covey_gateway_requests_in_flight[]"] == 0
    assert found["covey_gateway_requests_waiting['place']"] == 0
    assert found["covey_gateway_replicas_usable['m']"] == 1
    assert found["covey_gateway_replica_breaker['box', 'closed']"] == 1
    assert found["covey_gateway_retries_total[]"] == 0
    assert not [name for name in found if "evil" in name]


async def test_a_retry_and_what_waits_and_runs(gateway: Any, upstream: Any, head: Any) -> None:
    begun, step = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        begun.set()
        await step.wait()
        return web.json_response(WHOLE)

    failed = 0

    async def away(_: web.Request) -> web.Response:
        nonlocal failed
        failed += 1
        return web.Response(status=500)

    one = await gateway(head("a", await upstream(slow)), per_replica=1)
    async with asyncio.TaskGroup() as group:
        group.create_task(post(one))
        await begun.wait()
        group.create_task(post(one))
        async with asyncio.timeout(5):
            while (await metrics(one))["covey_gateway_requests_waiting['place']"] != 1:
                pass
        found = await metrics(one)
        assert found["covey_gateway_requests_in_flight[]"] == 2
        assert found["covey_gateway_replica_in_flight['a']"] == 1
        step.set()
    heads = [head("a", await upstream(away)), head("b", await upstream(whole))]
    two = await gateway(*heads, strategy="round_robin")
    assert [await post(two) for _ in range(2)] == [200, 200]
    assert (await metrics(two))["covey_gateway_retries_total[]"] == failed > 0


async def test_metrics_and_lines_where_keys_are_required(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path
) -> None:
    secret = "ck-secret"
    store = Store(open_database(str(tmp_path / "keys.db")))
    store.create(Key("id", "ada"), digest(secret))
    log = tmp_path / "access.log"
    url = await gateway(
        head("box", await upstream(whole)), store=store, require_keys=True, access_log=str(log)
    )
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(5):
            state = ""
            while state != "ok":
                async with session.get(url + "/gateway/status") as answer:
                    state = (await answer.json())["keys"]["state"]
    assert await post(url) == 401
    assert await post(url, **{"x-api-key": secret}) == 200
    found = await metrics(url, **{"x-api-key": secret})
    assert found["gen_ai_client_token_usage_sum['chat', 'input', 'm']"] == 5
    assert found["covey_gateway_requests_refused_total['invalid_api_key']"] == 1
    without, with_key, _ = await lines(log, 3)
    assert (without["key"], without["error"]) == (None, "invalid_api_key")
    assert (with_key["key"], with_key["tokens_in"], with_key["tokens_out"]) == ("ada", 5, 3)
    assert secret not in log.read_text()
    async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as answer:
        assert answer.status == 401


async def test_a_line_for_each_request_and_no_prompts(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    url = await gateway(head("box", await upstream(streamed)), access_log=str(log))
    assert await post(url, ASK | {"stream": True}, f"{PATH}?q={SECRET}", traceparent=PARENT) == 200
    assert await post(url, {"model": SECRET[:4]}) == 404
    assert await post(url, {"x": 1}, "/nowhere") == 404
    good, bad, nowhere = await lines(log, 3)
    assert good["time"] > 1e9 and good["duration_s"] > good["first_byte_s"] > 0
    assert (good["trace"], good["client"], good["method"]) == (TRACE, "127.0.0.1", "POST")
    assert (good["path"], good["model"], good["replica"]) == (PATH, "m", "box")
    assert (good["status"], good["error"], good["attempts"]) == (200, None, 1)
    assert (good["tokens_in"], good["tokens_out"]) == (5, 3)
    assert good["bytes"] > 100
    assert (bad["status"], bad["error"], bad["replica"]) == (404, "model_not_found", None)
    assert (nowhere["status"], nowhere["error"]) == (404, "404")
    assert len({line["id"] for line in (good, bad, nowhere)}) == 3
    assert SECRET not in log.read_text()
    assert log.stat().st_mode & 0o007 == 0


async def test_odd_paths_and_long_names_are_lines_too(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    url = await gateway(head("box", await upstream(whole)), access_log=str(log))
    assert await post(url, ASK, "/%ff%ed%a0%80%0a%22") == 404
    assert await post(url, {"model": "x" * 10_000}) == 404
    odd, long = await lines(log, 2)
    assert odd["status"] == 404
    assert long["model"] == "x" * 256


async def test_prompts_only_if_asked_for(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    settings = {"access_log": str(log), "access_log_prompts": True}
    url = await gateway(head("box", await upstream(whole)), **settings)
    assert await post(url) == 200
    message = {"role": "user", "content": SECRET}
    assert await post(url, {"model": "m", "max_tokens": 1, "messages": [message]}, "/v1/messages")
    first, second = await lines(log, 2)
    assert json.loads(first["request"]) == ASK
    assert json.loads(second["request"])["max_tokens"] == 1  # as the client wrote it


async def test_what_became_of_answers_that_had_begun(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path
) -> None:
    gone = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        if (await request.json()).get("breaks"):
            assert request.transport is not None
            request.transport.abort()
            return response
        try:
            await asyncio.sleep(60)
        finally:
            gone.set()
        return response

    log = tmp_path / "access.log"
    url = await gateway(head("box", await upstream(endless)), access_log=str(log))
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + PATH, json=ASK | {"stream": True})
        await answer.content.readany()
        answer.close()
        async with asyncio.timeout(5):
            await gone.wait()
    await lines(log, 1)
    assert await post(url, ASK | {"stream": True, "breaks": True}) == 200
    left, broken = await lines(log, 2)
    assert (left["status"], left["error"]) == (200, "cancelled")
    assert left["bytes"] == len(b"data: 1\n\n")
    assert (broken["status"], broken["error"]) == (200, "broken_off")


async def test_a_client_that_reads_nothing_has_left(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def much(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: %s\n\n" % (b"x" * 2**16))

    monkeypatch.setattr("gateway.delivery.WRITE_TIMEOUT_S", 0.2)
    log = tmp_path / "access.log"
    url = await gateway(head("box", await upstream(much)), access_log=str(log))
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + PATH, json=ASK | {"stream": True})
        (line,) = await lines(log, 1)
        answer.close()
    assert (line["status"], line["error"], line["replica"]) == (200, "client_left", "box")
    assert line["bytes"] > 2**16


async def test_a_disk_that_stands_still_costs_lines_and_no_requests(
    gateway: Any, upstream: Any, head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MOST_BYTES", 2000)
    monkeypatch.setattr("gateway.observe.CLOSE_S", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        full = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(full, b"x" * 4096)
        os.close(full)
        url = await gateway(head("box", await upstream(whole)), access_log=str(pipe))
        async with asyncio.timeout(20):
            dropped = 0.0
            while not dropped:
                assert await post(url) == 200
                dropped = (await metrics(url))["covey_gateway_dropped_total['access_log_lines']"]
    finally:
        os.close(reader)  # which wakes the writer


async def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = access_log.AccessLog(str(path))
    try:
        log.write(b"1")
        async with asyncio.timeout(5):
            while path.read_bytes() != b"1\n":  # noqa: ASYNC110  # a thread writes it
                await asyncio.sleep(0.01)
        path.rename(tmp_path / "b.log")
        log.reopen()
        log.write(b"2")
    finally:
        log.close(5)
    assert (tmp_path / "b.log").read_bytes() == b"1\n"
    assert path.read_bytes() == b"2\n"


async def test_where_others_write_too_it_writes_while_they_do_not(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.log", []

    @contextmanager
    def alone() -> Iterator[None]:
        before = path.read_bytes()
        yield
        seen.append((before, path.read_bytes()))

    log = access_log.AccessLog(str(path), alone)
    log.write(b"1")
    log.close(5)
    assert seen == [(b"", b"1\n")]


async def test_a_line_that_a_full_disk_cut_is_counted_and_the_next_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [1, 0, 0, 1000]  # bytes that the disk takes of each write; 0: it is full
    real = os.write

    def write(file: int, data: bytes) -> int:
        if not (left := room.pop(0)):
            raise OSError(28, "No space left on device")
        return real(file, data[:left])

    monkeypatch.setattr(access_log, "FLUSH_S", 60.0)
    log = access_log.AccessLog(str(tmp_path / "a.log"))
    monkeypatch.setattr(access_log.os, "write", write)
    for lines, dropped in (([b"one", b"two"], 2), ([b"three"], 3), ([b"four"], 3)):
        for line in lines:
            log.write(line)
        log._flush()
        assert log.dropped == dropped
    log.close(5)
    assert (tmp_path / "a.log").read_bytes() == b"o\nfour\n"


async def test_a_full_disk_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    log = access_log.AccessLog("/dev/full")
    log.write(b"1")
    log.write(b"2")
    async with asyncio.timeout(5):
        while log.dropped < 2:  # noqa: ASYNC110  # a thread counts
            await asyncio.sleep(0.01)
    log.write(b"3")
    log.close(5)
    assert log.dropped == 3
    assert caplog.text.count("the access log cannot be written: No space left on device") == 1


class Collector:
    """A collector as far as an exporter sees it; answers with `statuses`, then 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.asked = 0
        self.said: dict[str, Any] = {}
        self.resources: list[dict[str, Any]] = []
        self.spans: list[dict[str, Any]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return web.Response(status=status)
        assert request.content_type == "application/json"
        for entry in (await request.json())["resourceSpans"]:
            self.resources.append(entry["resource"])
            for scope in entry["scopeSpans"]:
                self.spans += scope["spans"]
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        said = json.dumps(self.said).encode()
        await response.write(said[:1])  # in two pieces, as any answer may come
        await asyncio.sleep(0.01)
        await response.write(said[1:])
        return response

    async def has(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            while len(self.spans) < count:  # noqa: ASYNC110  # asked for once a test
                await asyncio.sleep(0.01)
        assert len(self.spans) == count
        return self.spans


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    monkeypatch.setattr(otlp, "FLUSH_S", 0.02)
    monkeypatch.setattr(otlp, "RETRY_FIRST_S", 0.01)
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def recording(seen: list[Any], handler: Handler) -> Handler:
    async def record(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.getall("traceparent"), request.headers.get("tracestate")))
        return await handler(request)

    return record


async def test_spans_at_a_collector_and_the_context_at_the_replica(
    gateway: Any, upstream: Any, head: Any, collector: Collector
) -> None:
    seen: list[Any] = []
    replica = head("box", await upstream(recording(seen, streamed)))
    url = await gateway(replica, otlp_endpoint=collector.url)
    state = {"tracestate": "a=1"}
    assert await post(url, ASK | {"stream": True}, traceparent=PARENT, **state) == 200
    assert await post(url, ASK, traceparent="nonsense", **state) == 200
    assert await post(url, ASK, traceparent=PARENT[:-1] + "0", **state) == 200
    assert await post(url, ASK | {"model": "x"}) == 404
    child, root, missing = await collector.has(3)
    assert seen[0] == ([f"00-{TRACE}-{child['spanId']}-01"], "a=1")
    assert (child["traceId"], child["parentSpanId"]) == (TRACE, SPAN)
    assert child["spanId"] != SPAN and child["traceState"] == "a=1"
    assert (child["name"], child["kind"], child["status"]) == ("chat m", 2, {})
    assert int(child["endTimeUnixNano"]) - int(child["startTimeUnixNano"]) > 20e6
    found = attributes(child)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.provider.name"] == "covey"
    assert found["gen_ai.request.model"] == "m"
    assert found["gen_ai.usage.input_tokens"] == "5"
    assert found["gen_ai.usage.output_tokens"] == "3"
    assert found["covey.replica"] == "box"
    assert found["http.response.status_code"] == "200"
    assert "error.type" not in found
    assert seen[1] == ([f"00-{root['traceId']}-{root['spanId']}-03"], None)
    assert root["traceId"] != TRACE and "parentSpanId" not in root
    assert seen[2] == ([PARENT[:-1] + "0"], "a=1")  # whoever sampled it does not want it
    assert attributes(missing)["error.type"] == "model_not_found" and missing["status"] == {}
    resource = attributes(collector.resources[0])
    assert resource["service.name"] == "covey-gateway"
    assert len(resource["service.instance.id"]) == 36
    assert SECRET not in json.dumps(collector.spans)


async def test_without_a_collector_a_clients_context_passes_as_it_came(
    gateway: Any, upstream: Any, head: Any
) -> None:
    seen: list[Any] = []
    url = await gateway(head("box", await upstream(recording(seen, whole))))
    assert await post(url, traceparent=PARENT, tracestate="a=1") == 200
    assert await post(url) == 200
    assert seen[0] == ([PARENT], "a=1")
    made = seen[1][0][0]
    assert made.startswith("00-") and made.endswith("-02") and seen[1][1] is None


async def test_a_fault_of_ours_or_a_replicas_is_the_spans(
    gateway: Any, upstream: Any, head: Any, collector: Collector
) -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=500, body=b"{}")

    url = await gateway(head("box", await upstream(broken)), otlp_endpoint=collector.url)
    assert await post(url) == 500
    (span,) = await collector.has(1)
    assert span["status"] == {"code": 2} and attributes(span)["error.type"] == "500"


async def test_a_collector_that_is_away_gets_the_spans_later(
    gateway: Any, upstream: Any, head: Any, collector: Collector
) -> None:
    collector.statuses = [503, 429]
    replica = head("box", await upstream(whole))
    url = await gateway(replica, otlp_endpoint=collector.url + "/v1/traces")
    assert await post(url) == 200
    await collector.has(1)
    assert collector.asked == 3
    assert (await metrics(url))["covey_gateway_dropped_total['spans']"] == 0


@pytest.mark.parametrize("statuses", [[503] * 5, [400]])
async def test_what_a_collector_does_not_take_is_counted(
    statuses: list[int], gateway: Any, upstream: Any, head: Any, collector: Collector
) -> None:
    collector.statuses = list(statuses)
    url = await gateway(head("box", await upstream(whole)), otlp_endpoint=collector.url)
    assert await post(url) == 200
    async with asyncio.timeout(5):
        while (await metrics(url))["covey_gateway_dropped_total['spans']"] != 1:
            pass
    assert collector.asked == len(statuses)
    assert not collector.spans


async def test_spans_that_a_collector_rejects_are_counted(
    gateway: Any, upstream: Any, head: Any, collector: Collector
) -> None:
    collector.said = {"partialSuccess": {"rejectedSpans": "1", "errorMessage": "no"}}
    url = await gateway(head("box", await upstream(whole)), otlp_endpoint=collector.url)
    assert await post(url) == 200
    async with asyncio.timeout(5):
        while (await metrics(url))["covey_gateway_dropped_total['spans']"] != 1:
            pass


async def test_spans_beyond_what_may_wait_are_counted_and_the_rest_is_sent_at_the_end(
    gateway: Any, upstream: Any, head: Any, collector: Collector, runners: list[web.AppRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(otlp, "FLUSH_S", 60.0)
    monkeypatch.setattr(otlp, "MOST_WAITING", 3)
    url = await gateway(head("box", await upstream(whole)), otlp_endpoint=collector.url)
    for _ in range(5):
        assert await post(url) == 200
    assert (await metrics(url))["covey_gateway_dropped_total['spans']"] == 2
    assert not collector.spans
    await runners[-1].cleanup()
    await collector.has(3)
