"""What the gateway counts, and how it says so to Prometheus: GET /metrics.

A core, used by `observe.py`. The names of requests' metrics are those of OpenTelemetry's GenAI
conventions in Prometheus' form (gen_ai.server.request.duration in seconds is
gen_ai_server_request_duration_seconds), their buckets the conventions' own; `covey_gateway_…` are
the gateway's, as the agent has `covey_agent_…` (`agent/http/exposition.py`). Every set of labels is
bounded: operations and errors are words of ours or statuses (`record.py`), models are those that a
replica has or had, replicas those that there are now.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.record import Record
from gateway.routing.breaker import State as BreakerState

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PROVIDER = "covey"
# An outside server may list others every day; models beyond so many are one.
MOST_MODELS = 256
OTHER = "_OTHER"

# https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ advises all four.
DURATION_S = tuple(0.01 * 2**n for n in range(14))
FIRST_S = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
TOKEN_S = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1.0, 2.5)  # fmt: skip
TOKENS = tuple(float(4**n) for n in range(14))

_LABELS = ("gen_ai_operation_name", "gen_ai_request_model", "gen_ai_provider_name")
_MODEL_AT = _LABELS.index("gen_ai_request_model")

# Of a histogram and a set of labels: the labels' values, the counts by bucket, the sum of values.
Series = tuple[tuple[str, ...], list[int], float]


class Counted(msgspec.Struct, frozen=True):
    """What was counted, as it is told to another process; histograms by their names."""

    histograms: dict[str, list[Series]]
    refused: dict[str, int]
    retries: int
    hedges: dict[str, int]


class Histogram:
    """Counts by bucket for each set of labels; `bounds` are the buckets' upper ones."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]):
        self.name = name
        self._text, self._labels = text, tuple(labels)
        self._bounds = tuple(bounds)
        self._names = [*(f"{bound:.12g}" for bound in bounds), "+Inf"]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        """Count a value."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._names)
            self._sums[labels] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def series(self) -> list[Series]:
        """Return all that was counted; the lists are those that are counted in."""
        return [(labels, counts, self._sums[labels]) for labels, counts in self._counts.items()]

    def add(self, series: Iterable[Series]) -> None:
        """Count what another histogram of these bounds has counted."""
        for labels, counts, total in series:
            have = self._counts.get(labels, [0] * len(self._names))
            self._counts[labels] = [a + b for a, b in zip(have, counts, strict=True)]
            self._sums[labels] = self._sums.get(labels, 0.0) + total

    def family(self) -> Metric:
        """Return it as the exposition has it."""
        family = HistogramMetricFamily(self.name, self._text, labels=self._labels)
        for labels, counts in self._counts.items():
            buckets = list(zip(self._names, map(float, accumulate(counts)), strict=True))
            family.add_metric(labels, buckets, self._sums[labels])
        return family


@dataclass(frozen=True)
class Now:
    """What is the case at this moment; `replicas` and `models` as `Router.view` and `.models`."""

    waiting: Mapping[str, int]
    replicas: Iterable[Mapping[str, Any]]
    models: Iterable[Mapping[str, Any]]
    dropped: Mapping[str, int] = field(default_factory=dict)
    software: str = ""


class Metrics:
    """Everything counted since the gateway began."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._models: set[str] = set()
        self._refused: Counter[str] = Counter()
        self._retries = 0
        self._hedges: Counter[str] = Counter()
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from a request's head to its answer's end.", (*_LABELS, "error_type"), DURATION_S,
        )  # fmt: skip
        self._first = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time to the first byte of streamed answers.", _LABELS, FIRST_S,
        )  # fmt: skip
        self._token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time for each token after the first of streamed answers.", _LABELS, TOKEN_S,
        )  # fmt: skip
        self._usage = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of requests and answers.", (*_LABELS, "gen_ai_token_type"), TOKENS,
        )  # fmt: skip
        self._histograms = (self._duration, self._first, self._token, self._usage)

    def counted(self) -> Counted:
        """Return what was counted so far; to be encoded before more is."""
        histograms = {histogram.name: histogram.series() for histogram in self._histograms}
        return Counted(histograms, dict(self._refused), self._retries, dict(self._hedges))

    def add(self, counted: Counted) -> None:
        """Count what another process has counted; its models are known here, too."""
        for histogram in self._histograms:
            series = counted.histograms[histogram.name]
            histogram.add(series)
            self._models.update(labels[_MODEL_AT] for labels, _, _ in series)
        self._models -= {"", OTHER}
        self._refused.update(counted.refused)
        self._retries += counted.retries
        self._hedges.update(counted.hedges)

    def ended(self, record: Record, *, known: bool) -> None:
        """Count a request that has ended; `known`: a replica has, or had, the model it names."""
        if record.refused:
            self._refused[record.error] += 1
        hedged = bool(record.hedge)
        self._hedges["sent"] += hedged
        self._hedges["won"] += record.hedge == "won"
        self._retries += max(record.attempts - 1 - hedged, 0)
        if not record.operation:
            return
        labels = (record.operation, self._model(record.model) if known else "", PROVIDER)
        self._duration.observe((*labels, record.error), record.seconds)
        if not record.error and record.streamed and record.first_s is not None:
            self._first.observe(labels, record.first_s)
        if not record.error and record.token_s is not None:
            self._token.observe(labels, record.token_s)
        for kind, tokens in (("input", record.prompt), ("output", record.completion)):
            if tokens is not None:
                self._usage.observe((*labels, kind), tokens)

    def exposition(self, now: Now) -> bytes:
        """Return all as text in Prometheus' format (`CONTENT_TYPE`)."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families([*self._requests(), *self._gateway(now)]))
        return generate_latest(registry)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= MOST_MODELS:
                return OTHER
            self._models.add(name)
        return name

    def _requests(self) -> Iterator[Metric]:
        for histogram in self._histograms:
            yield histogram.family()

    def _gateway(self, now: Now) -> Iterator[Metric]:
        replicas = list(now.replicas)
        yield _gauge("build_info", "The version that runs.", ("version",), {(now.software,): 1})
        yield _gauge("requests_in_flight", "Requests that are served or wait.",
                     (), {(): self.in_flight})  # fmt: skip
        yield _gauge("requests_waiting", "Requests that wait for a place, or for a model's head.",
                     ("reason",), {(reason,): n for reason, n in now.waiting.items()})  # fmt: skip
        yield _counter("requests_refused", "Requests that the gateway itself answered with an "
                       "error.", ("reason",), self._refused)  # fmt: skip
        yield _counter("retries", "Attempts beyond a request's first, but for hedges.",
                       (), {"": self._retries})  # fmt: skip
        yield _counter("hedges", "Requests sent to a second replica as the first was late, and "
                       "those that it won.", ("what",), self._hedges)  # fmt: skip
        yield _counter("dropped", "What was not written for want of room or of an answer.",
                       ("what",), now.dropped)  # fmt: skip
        yield _gauge("replicas_usable", "Replicas of a model that can be used.",
                     ("gen_ai_request_model",),
                     {(model["id"],): model["usable"] for model in now.models})  # fmt: skip
        yield _gauge("replica_usable", "Endpoints of a replica's name that can be used.",
                     ("replica",), _by_name(replicas, "usable"))  # fmt: skip
        yield _gauge("replica_in_flight", "Requests that are at a replica.",
                     ("replica",), _by_name(replicas, "in_flight"))  # fmt: skip
        states: Counter[tuple[str, ...]] = Counter()
        for replica in replicas:
            for state in BreakerState:
                is_it = replica["breaker"] == state.value
                states[replica["name"], state.value] += int(is_it)
        yield _gauge("replica_breaker", "Endpoints of a replica's name whose circuit breaker is "
                     "in a state.", ("replica", "state"), states)  # fmt: skip


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _by_name(replicas: Iterable[Mapping[str, Any]], what: str) -> Counter[tuple[str, ...]]:
    """Return the sum over those of one name: a node may be the head of two rings."""
    sums: Counter[tuple[str, ...]] = Counter()
    for replica in replicas:
        sums[(replica["name"],)] += int(replica[what])
    return sums


def _gauge(
    name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]
) -> Metric:
    family = GaugeMetricFamily(f"covey_gateway_{name}", text, labels=labels)
    for which, value in values.items():
        family.add_metric(which, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"covey_gateway_{name}", text, labels=labels)
    for which, value in values.items():
        family.add_metric([which] if labels else [], value)
    return family
