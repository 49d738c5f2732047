"""A node's figures as text for Prometheus: GET /metrics. A core.

The names: `covey_agent_…` is the node and the mesh as it sees it, `covey_engine_…` its engines,
`covey_health_…` the faults of `agent status`; the gateway has `covey_gateway_…` and OpenTelemetry's
GenAI names (`gateway/metrics.py`). Units are seconds, bytes and ratios; what only grows ends in
`_total`. Labels are bounded: members by MOST_PEERS, deployments by MOST_DEPLOYMENTS, all else by
words of ours. Used by `standing.py`, which imports it when somebody first asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from agent.doctor.checks import CODES
from agent.figures import EngineFigures, Figures
from agent.health import FAULTS

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# Of a larger mesh the first by name are told one by one; sums are of all.
MOST_PEERS = 256
MOST_DEPLOYMENTS = 256

# Ways to a member (agent/traversal); `none`: there is none now, `asleep`: none is kept, `unknown`:
# there is one, and no path engine that knows which.
ROUTES = ("lan", "ipv6", "public", "punched", "relayed", "asleep", "none", "unknown")
PHASES = ("alive", "suspect", "gone", "unknown")

_ENGINE = ("deployment", "ring", "stage", "role")
Values = Mapping[tuple[str, ...], float]
_Labels = TypeVar("_Labels", bound=tuple[str, ...])


def exposition(figures: Figures, more: Iterable[Metric] = ()) -> bytes:
    """Return all, and `more`, as text in Prometheus' format (`CONTENT_TYPE`)."""
    return generate_latest(
        _Families(
            [
                *_node(figures),
                *_health(figures),
                *_members(figures),
                *_peers(figures),
                *_underneath(figures),
                *_deployments(figures),
                *_engines(figures),
                *more,
            ]
        )
    )


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _node(figures: Figures) -> Iterator[Metric]:
    status = figures.status
    build, node = (status["software"],), (status["mesh"], status["name"], status["node"])
    expiry = figures.now + status["certificate_left_s"]
    yield _gauge("agent_build_info", "The version that runs.", {build: 1}, "version")
    yield _gauge("agent_node_info", "Who this node is.", {node: 1}, "mesh_name", "name", "node")
    yield _gauge("agent_draining", "Whether nothing new shall run here.", status["draining"])
    yield _gauge(
        "agent_certificate_expiry_timestamp_seconds",
        "When this node's certificate ends (unix time).", expiry,
    )  # fmt: skip


def _health(figures: Figures) -> Iterator[Metric]:
    items = figures.status["health"]
    codes = {*CODES, *(item["code"] for item in items)}
    present = Counter((item["code"], item["severity"]) for item in items)
    values = {(code, each): present[code, each] for code in sorted(codes) for each in FAULTS}
    text = "Whether there is a fault of this code and severity (agent doctor)."
    yield _gauge("health_fault", text, values, "code", "severity")


def _members(figures: Figures) -> Iterator[Metric]:
    count = figures.status["peers"]
    for name, text in (
        ("known", "Other members."),
        ("alive", "Other members that are not gone as far as is known."),
        ("connected", "Other members with whom WireGuard has a session."),
        ("asleep", "Other members to whom no path is kept, since nothing flows."),
        ("linked", "Other members to whom a control connection is open."),
    ):
        yield _gauge(f"agent_members_{name}", text, count[name])
    routes = Counter(map(_route, figures.peers))
    values = {(route,): routes[route] for route in ROUTES}
    yield _gauge(
        "agent_members_by_route", "Other members by the kind of path to them.", values, "route"
    )


def _peers(figures: Figures) -> Iterator[Metric]:
    named = list(_named(figures.peers))

    def of(what: str, scale: float = 1.0) -> Values:
        found = ((name, peer.get(what)) for name, peer in named)
        return {(name,): value * scale for name, value in found if value is not None}

    yield _gauge(
        "agent_peer_info", "The kind of path to a member, and how it stands.",
        {(name, peer["node"], _route(peer), _presence(peer)): 1 for name, peer in named},
        "peer", "node", "route", "presence",
    )  # fmt: skip
    sessions = {(name,): peer["path"] == "direct" for name, peer in named}
    yield _gauge(
        "agent_peer_connected", "Whether WireGuard has a session with a member.", sessions, "peer"
    )
    for name, text, values in (
        ("rtt_seconds", "Round trip of the path to a member.", of("path_rtt_ms", 1e-3)),
        ("jitter_seconds", "How much its round trips differ.", of("path_jitter_ms", 1e-3)),
        ("loss_ratio", "Which part of pings to a member was not answered.", of("path_loss")),
        ("handshake_age_seconds", "Age of WireGuard's last handshake.", of("handshake_age_s")),
    ):
        yield _gauge(f"agent_peer_{name}", text, values, "peer")
    for way, text, key in (
        ("receive", "Bytes that WireGuard had from a member.", "rx_bytes"),
        ("transmit", "Bytes that WireGuard sent to a member.", "tx_bytes"),
    ):
        yield _counter(f"agent_peer_{way}_bytes", text, of(key), "peer")


def _underneath(figures: Figures) -> Iterator[Metric]:
    yield _gauge(
        "agent_discovery_contacts", "Nodes in the routing table of discovery.", figures.contacts
    )
    yield _gauge(
        "agent_discovery_reachable",
        "Whether this node is reached from outside, or nobody could try.", figures.reachable,
    )  # fmt: skip
    events = {(name,): count for name, count in sorted(figures.discovery.items())}
    yield _counter("agent_discovery_events", "What was sent, asked and refused.", events, "event")
    relay = figures.relay or {"pairs": (), "tunnels": 0, "sent_bytes": 0}
    kinds = Counter(pair["forwarding"] for pair in relay["pairs"])
    yield _gauge(
        "agent_relay_pairs", "Pairs of members whose packets this node passes on.",
        {(kind,): kinds[kind] for kind in ("kernel", "userspace")}, "forwarding",
    )  # fmt: skip
    yield _gauge("agent_relay_tunnels", "Members that are here by WebSocket.", relay["tunnels"])
    yield _counter("agent_relay_bytes", "Bytes that were passed on.", relay["sent_bytes"])


def _deployments(figures: Figures) -> Iterator[Metric]:
    names = sorted(figures.wanted)[:MOST_DEPLOYMENTS]
    for state, text, rings in (
        ("wanted", "Rings that a deployment shall have.", figures.wanted),
        ("ready", "Rings of a deployment whose head answers.", figures.ready),
    ):
        values = {(name,): rings.get(name, 0) for name in names}
        yield _gauge(f"agent_deployment_rings_{state}", text, values, "deployment")


def _engines(figures: Figures) -> Iterator[Metric]:
    running, started, failed = (
        figures.engines.running, figures.engines.started, figures.engines.failed
    )  # fmt: skip
    for name, text, counts in (
        ("starts", "Engine processes that were started.", started),
        ("failures", "Engine processes that ended unasked, or whose ring broke.", failed),
    ):
        yield _counter(
            f"engine_{name}", text, {(role,): counts.get(role, 0) for role in started}, "role"
        )

    def of(*which: str) -> Values:
        """Return the sum of these stats of the engines that have any of them."""
        return _summed(
            (one, sum(one.stats.get(name, 0.0) for name in which))
            for one in running
            if any(name in one.stats for name in which)
        )

    memory = _summed((one, one.resident_bytes) for one in running)
    for name, text, values in (
        ("ready", "Engines that serve.", _summed((one, one.ready) for one in running)),
        ("resident_memory_bytes", "Memory in use, with what is mapped of files.", memory),
        ("cache_cells", "Tokens that the KV cache has room for.", of("cells")),
        ("cache_cells_used", "Those taken, also by what is kept for others.", of("cells_taken")),
        ("streams_running", "Answers that are computed.", of("running")),
        ("streams_waiting", "Answers that wait for room, or for another ring.", of("waiting")),
    ):
        yield _gauge(f"engine_{name}", text, values, *_ENGINE)
    cpu = _summed((one, one.cpu_s) for one in running)
    for name, text, values in (
        ("cpu_seconds", "CPU time of the process.", cpu),
        ("frames", "Frames, or a head's batches, that were computed.", of("frames", "batches")),
        ("rows", "Rows (tokens) that were computed.", of("rows")),
        ("decode_seconds", "Time in llama.cpp.", of("decode_s", "encode_s")),
        ("own_seconds", "CPU time of Covey's own code around it.", of("own_s")),
        ("wait_seconds", "Time that a head waited for frames of its ring.", of("waited_s")),
    ):
        yield _counter(f"engine_{name}", text, values, *_ENGINE)


def _summed(values: Iterable[tuple[EngineFigures, float]]) -> Values:
    """Return sums by place: for a moment a ring may have an old engine and a new one there."""
    sums: dict[tuple[str, ...], float] = {}
    for one, value in values:
        place = one.deployment, one.ring, str(one.stage), one.role
        sums[place] = sums.get(place, 0.0) + value
    return sums


def _named(peers: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give each member a name that no other has: two may have been given the same."""
    given: set[str] = set()
    for peer in sorted(peers, key=lambda one: (one["name"], one["node"]))[:MOST_PEERS]:
        name = peer["name"] if peer["name"] not in given else f"{peer['name']} {peer['node']}"
        given.add(name)
        yield name, peer


def _route(peer: Mapping[str, Any]) -> str:
    """Return one of ROUTES."""
    route = peer.get("route", "none")
    if route == "none" and peer["path"] == "direct":
        return "unknown"
    return route if route in ROUTES else "unknown"


def _presence(peer: Mapping[str, Any]) -> str:
    return str(peer["presence"]) if peer["presence"] in PHASES else "unknown"


def _gauge(name: str, text: str, values: Mapping[_Labels, float] | float, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"covey_{name}", text, labels=labels), values)


def _counter(name: str, text: str, values: Mapping[_Labels, float] | float, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"covey_{name}", text, labels=labels), values)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[_Labels, float] | float
) -> Metric:
    """Add values by their labels', or the only one there is."""
    if not isinstance(values, Mapping):
        family.add_metric((), float(values))
        return family
    for which, value in values.items():
        family.add_metric(which, float(value))
    return family
