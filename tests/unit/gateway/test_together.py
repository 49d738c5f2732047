"""What several workers know comes to one answer."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from gateway.metrics import Metrics
from gateway.routing import Replica, Router
from gateway.together import Sheet, models, replicas, total


def entry(name: str = "box", url: str = "http://box", **given: Any) -> dict[str, Any]:
    usual = {
        "name": name, "url": url, "source": "mesh", "models": ["m"], "usable": True, "reason": "",
        "cooling_s": 0.0, "breaker": "closed", "in_flight": 0, "requests": 0, "first_byte_s": {},
        "others_in_flight": 0.0, "token_s": 0.0, "rtt_s": None,
    }  # fmt: skip
    return usual | given


def sheet(*entries: dict[str, Any], **given: Any) -> Sheet:
    usual: dict[str, Any] = {
        "pid": 1, "counted": Metrics().counted(), "dropped": {"spans": 0}, "in_flight": 0,
        "waiting": {"place": 0}, "replicas": list(entries),
    }  # fmt: skip
    return Sheet(**(usual | given))


def test_of_one_worker_it_is_what_the_worker_says() -> None:
    router = Router("latency_aware", Random(1))
    found = [Replica(name, f"http://{name}", "mesh", ("m",)) for name in ("b", "a")]
    router.update("mesh", found, 0.0)
    router.check_failed("http://a", "away")
    view = router.view(1.0)
    assert replicas([sheet(*view)]) == view
    assert models(view) == [{"id": "m", "usable": 1}]


def test_a_replica_that_several_know() -> None:
    one = entry(
        usable=False, reason="answered with status 503", cooling_s=2.0, breaker="open",
        in_flight=1, others_in_flight=6.5, requests=30,
        first_byte_s={"stream": 0.1}, token_s=0.02, rtt_s=0.004,
    )  # fmt: skip
    two = entry(
        models=["n", "m"], in_flight=2, others_in_flight=4.0, requests=10, breaker="half-open",
        first_byte_s={"stream": 0.3, "whole": 1.0}, token_s=0.06, rtt_s=0.003,
    )  # fmt: skip
    [found] = replicas([sheet(one), sheet(two), sheet()])
    assert found == entry(
        models=["m", "n"], breaker="open", in_flight=3, requests=40, others_in_flight=4.5,
        first_byte_s={"stream": 0.15, "whole": 1.0}, token_s=0.03, rtt_s=0.003,
    )  # fmt: skip


def test_why_none_can_use_a_replica_is_told() -> None:
    one = entry(usable=False, reason="cannot be reached", cooling_s=4.0)
    two = entry(usable=False, reason="", cooling_s=1.0)
    [found] = replicas([sheet(two), sheet(one)])
    assert (found["usable"], found["reason"], found["cooling_s"]) == (
        False, "cannot be reached", 1.0,
    )  # fmt: skip
    assert models([found]) == [{"id": "m", "usable": 0}]


def test_means_where_no_request_was_yet() -> None:
    [found] = replicas([sheet(entry(token_s=0.1)), sheet(entry(token_s=0.3))])
    assert found["token_s"] == 0.2


def test_replicas_of_all_workers_in_order() -> None:
    found = replicas([sheet(entry("b", "http://b")), sheet(entry("a", "http://a"))])
    assert [x["name"] for x in found] == ["a", "b"]


def test_one_that_is_gone_has_what_it_counted_and_nothing_else() -> None:
    metrics = Metrics()
    told = sheet(entry(), counted=metrics.counted(), in_flight=3, dropped={"spans": 2})
    left = msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=Sheet).ended()
    assert left == sheet(pid=0, waiting={}, dropped={"spans": 2})


def test_sums_keep_what_is_nought() -> None:
    assert total([{"a": 1, "b": 0}, {}, {"a": 2}]) == {"a": 3, "b": 0}
