"""What is counted, as Prometheus' own parser reads it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics as module
from gateway.metrics import DURATION_S, Counted, Metrics, Now
from gateway.record import Record
from gateway.tracing import Context

NOTHING = Now({}, [], [])
CHAT = {
    "gen_ai_operation_name": "chat",
    "gen_ai_request_model": "m",
    "gen_ai_provider_name": "covey",
}


def record(**given: Any) -> Record:
    usual: dict[str, Any] = {
        "operation": "chat", "model": "m", "streamed": True, "attempts": 1, "status": 200,
        "begun": 10.0, "first_at": 10.3, "ended": 12.3, "prompt": 7, "completion": 21,
    }  # fmt: skip
    return Record(trace=Context("", "", "", 0, "", False), unix_ns=0, **(usual | given))


def read(metrics: Metrics, now: Now = NOTHING) -> dict[tuple[str, frozenset[Any]], float]:
    text = metrics.exposition(now).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            place = (sample.name, frozenset(sample.labels.items()))
            assert place not in found, f"{place} is there twice"
            found[place] = sample.value
    return found


def value(metrics: Metrics, name: str, now: Now = NOTHING, **labels: str) -> float | None:
    return read(metrics, now).get((name, frozenset(labels.items())))


def test_a_streamed_answer_is_in_all_histograms() -> None:
    metrics = Metrics()
    metrics.ended(record(), known=True)
    duration = "gen_ai_server_request_duration_seconds"
    assert value(metrics, f"{duration}_count", error_type="", **CHAT) == 1
    assert abs((value(metrics, f"{duration}_sum", error_type="", **CHAT) or 0) - 2.3) < 1e-9
    assert value(metrics, f"{duration}_bucket", error_type="", le="1.28", **CHAT) == 0
    assert value(metrics, f"{duration}_bucket", error_type="", le="2.56", **CHAT) == 1
    assert value(metrics, f"{duration}_bucket", error_type="", le="+Inf", **CHAT) == 1
    first = "gen_ai_server_time_to_first_token_seconds"
    assert value(metrics, f"{first}_bucket", le="0.25", **CHAT) == 0
    assert value(metrics, f"{first}_bucket", le="0.5", **CHAT) == 1
    token = "gen_ai_server_time_per_output_token_seconds"  # 2 s for 20 tokens
    assert abs((value(metrics, f"{token}_sum", **CHAT) or 0) - 0.1) < 1e-9
    usage = "gen_ai_client_token_usage"
    assert value(metrics, f"{usage}_sum", gen_ai_token_type="input", **CHAT) == 7
    assert value(metrics, f"{usage}_sum", gen_ai_token_type="output", **CHAT) == 21


def test_a_value_on_a_bound_is_in_its_bucket_as_prometheus_has_it() -> None:
    metrics = Metrics()
    metrics.ended(record(begun=0.0, ended=DURATION_S[0], completion=0), known=True)
    name = "gen_ai_server_request_duration_seconds_bucket"
    assert value(metrics, name, error_type="", le="0.01", **CHAT) == 1


def test_an_answer_in_one_piece_and_one_token_tell_nothing_of_the_speed() -> None:
    metrics = Metrics()
    metrics.ended(record(streamed=False), known=True)
    metrics.ended(record(completion=1), known=True)
    metrics.ended(record(completion=None, prompt=None), known=True)
    names = {name for name, _ in read(metrics)}
    assert "gen_ai_server_time_per_output_token_seconds_count" not in names
    assert value(metrics, "gen_ai_server_time_to_first_token_seconds_count", **CHAT) == 2
    usage = "gen_ai_client_token_usage_count"
    assert value(metrics, usage, gen_ai_token_type="input", **CHAT) == 2


def test_faults_have_their_type_and_no_speed() -> None:
    metrics = Metrics()
    metrics.ended(record(error="broken_off"), known=True)
    name = "gen_ai_server_request_duration_seconds_count"
    assert value(metrics, name, error_type="broken_off", **CHAT) == 1
    assert "gen_ai_server_time_to_first_token_seconds_count" not in {n for n, _ in read(metrics)}


def test_whose_fault_it_was() -> None:
    assert record(error="broken_off").failed and record(status=504, error="silence").failed
    assert not record().failed
    assert not record(error="cancelled").failed and not record(status=404, error="404").failed


def test_a_strangers_text_is_no_label() -> None:
    metrics = Metrics()
    metrics.ended(record(model='x"} 1\nevil 2', error="model_not_found", refused=True), known=False)
    text = metrics.exposition(NOTHING)
    assert b"evil" not in text
    name = "gen_ai_server_request_duration_seconds_count"
    labels = CHAT | {"gen_ai_request_model": "", "error_type": "model_not_found"}
    assert value(metrics, name, **labels) == 1
    assert value(metrics, "covey_gateway_requests_refused_total", reason="model_not_found") == 1


def test_a_servers_odd_model_names_are_escaped_and_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MOST_MODELS", 2)
    metrics = Metrics()
    for model in ('a"\\\n', "b", "c", "d", 'a"\\\n'):
        metrics.ended(record(model=model), known=True)
    name = "gen_ai_server_request_duration_seconds_count"
    counts = {
        model: value(metrics, name, error_type="", **(CHAT | {"gen_ai_request_model": model}))
        for model in ('a"\\\n', "b", "c", "_OTHER")
    }
    assert counts == {'a"\\\n': 2, "b": 1, "c": None, "_OTHER": 2}


def test_what_is_no_operation_is_counted_only_where_it_is_refused() -> None:
    metrics = Metrics()
    metrics.ended(record(operation="", error="404", refused=True), known=True)
    assert not [name for name, _ in read(metrics) if name.startswith("gen_ai")]
    assert value(metrics, "covey_gateway_requests_refused_total", reason="404") == 1


def test_what_two_processes_counted_comes_to_what_one_would_have() -> None:
    refused = record(error="deadline", refused=True, attempts=0)
    here = [record(), refused, record(begun=9.5, attempts=2, hedge="won")]
    there = [record(), record(model="n", attempts=4), refused, record(streamed=False, hedge="sent")]
    one, two, both, total = (Metrics() for _ in range(4))
    for metrics, records in ((one, here), (two, there), (both, here + there)):
        for each in records:
            metrics.ended(each, known=True)
    told = msgspec.msgpack.encode([one.counted(), two.counted()])
    for counted in msgspec.msgpack.decode(told, type=list[Counted]):
        total.add(counted)
    # Sums of floats depend in their last bits on the order.
    assert read(total) == {place: pytest.approx(x) for place, x in read(both).items()}
    one.ended(record(), known=True)
    assert value(total, "gen_ai_client_token_usage_sum", gen_ai_token_type="input", **CHAT) == 42


def test_models_that_a_predecessor_counted_are_known_and_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MOST_MODELS", 2)
    old, new = Metrics(), Metrics()
    for model in ("a", "b", "c"):
        old.ended(record(model=model), known=True)
    old.ended(record(model="x"), known=False)
    new.add(old.counted())
    for model in ("b", "d"):
        new.ended(record(model=model), known=True)
    name = "gen_ai_server_request_duration_seconds_count"
    counts = {
        model: value(new, name, error_type="", **(CHAT | {"gen_ai_request_model": model}))
        for model in ("a", "b", "d", "_OTHER", "")
    }
    assert counts == {"a": 1, "b": 2, "d": None, "_OTHER": 2, "": 1}


def test_the_gateways_own() -> None:
    metrics = Metrics()
    metrics.in_flight = 3
    metrics.ended(record(attempts=3), known=True)
    metrics.ended(record(attempts=0), known=True)
    metrics.ended(record(attempts=2, hedge="won"), known=True)
    metrics.ended(record(attempts=3, hedge="sent"), known=True)
    rings = [
        {"name": "box", "usable": True, "in_flight": 2, "breaker": "closed"},
        {"name": "box", "usable": False, "in_flight": 1, "breaker": "open"},
    ]
    now = Now({"place": 4, "head": 0}, rings, [{"id": "m", "usable": 1}], {"spans": 5})
    assert value(metrics, "covey_gateway_requests_in_flight", now) == 3
    assert value(metrics, "covey_gateway_requests_waiting", now, reason="place") == 4
    assert value(metrics, "covey_gateway_requests_waiting", now, reason="head") == 0
    assert value(metrics, "covey_gateway_retries_total", now) == 3
    assert value(metrics, "covey_gateway_hedges_total", now, what="sent") == 2
    assert value(metrics, "covey_gateway_hedges_total", now, what="won") == 1
    assert value(metrics, "covey_gateway_dropped_total", now, what="spans") == 5
    name = "covey_gateway_replicas_usable"
    assert value(metrics, name, now, gen_ai_request_model="m") == 1
    assert value(metrics, "covey_gateway_replica_usable", now, replica="box") == 1
    assert value(metrics, "covey_gateway_replica_in_flight", now, replica="box") == 3
    name = "covey_gateway_replica_breaker"
    states = {
        state: value(metrics, name, now, replica="box", state=state)
        for state in ("closed", "open", "half-open")
    }
    assert states == {"closed": 1, "open": 1, "half-open": 0}
