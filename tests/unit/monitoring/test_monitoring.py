"""The dashboard and the alerts in docs/monitoring/ ask for what is exported, and for no more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from figures_given import figures
from prometheus_client.process_collector import ProcessCollector
from queries import FOLDER, METRIC, Exported, Query, dashboard, queries

from agent.http.exposition import exposition
from gateway.metrics import Metrics, Now
from gateway.record import Record
from gateway.tracing import Context

ROOT = Path(__file__).parents[3]


def gateways() -> str:
    """Return what a gateway exports that answered a streamed request, and failed at one."""
    metrics = Metrics()
    for error in ("", "no_answer"):
        metrics.ended(
            Record(
                operation="chat", model="m", streamed=True, attempts=1, status=200, begun=10.0,
                first_at=10.3, ended=12.3, prompt=7, completion=21, error=error,
                refused=bool(error), hedge="won", trace=Context("", "", "", 0, "", False),
                unix_ns=0,
            ),
            known=True,
        )  # fmt: skip
    replica = {"name": "box", "usable": True, "in_flight": 0, "breaker": "open"}
    now = Now({"place": 1, "head": 0}, [replica], [{"id": "m", "usable": 1}], {"spans": 0}, "0.1.0")
    return metrics.exposition(now).decode()


@pytest.fixture(scope="module")
def exported() -> Exported:
    process = ProcessCollector(registry=None).collect()
    return Exported([exposition(figures(), process).decode(), gateways()])


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.where)
def test_what_is_asked_is_exported(exported: Exported, query: Query) -> None:
    assert METRIC.search(query.expression)
    assert exported.faults(query, values=True) == []


@pytest.mark.parametrize(
    ("expression", "text", "fault"),
    [
        ("covey_agent_drainign", "", "covey_agent_drainign is not exported"),
        ("rate(covey_engine_rows[5m])", "", "covey_engine_rows is not exported"),
        ('covey_health_fault{kind="x"}', "", "covey_health_fault has no label kind"),
        ('covey_health_fault{severity="bad"}', "", "severity of covey_health_fault is never bad"),
        ("sum by (peer) (covey_agent_draining)", "", "nothing there has a label peer"),
        ("covey_agent_draining", "{{ $labels.code }}", "nothing there has a label code"),
    ],
)
def test_a_slip_is_found(exported: Exported, expression: str, text: str, fault: str) -> None:
    assert exported.faults(Query("q", expression, (text,)), values=True) == [f"q: {fault}"]


def test_most_of_what_is_exported_is_shown(exported: Exported) -> None:
    """What no panel has is what others say better, or who it is."""
    shown = {name for query in queries() for name in METRIC.findall(query.expression)}
    left = {
        name for name in exported.names
        if name.startswith("covey_") and name not in shown and not name.endswith("_created")
    }  # fmt: skip
    assert {name.removeprefix("covey_") for name in left} == {
        "agent_node_info", "agent_draining", "agent_members_asleep", "agent_members_linked",
        "agent_peer_connected", "agent_peer_jitter_seconds", "agent_discovery_contacts",
        "agent_discovery_reachable", "agent_relay_pairs", "agent_relay_tunnels", "engine_ready",
        "gateway_replica_usable", "gateway_dropped_total",
    }  # fmt: skip


def test_the_documents_name_each_metric_and_no_other(exported: Exported) -> None:
    said = (ROOT / "docs/monitoring.md").read_text()
    named = set(re.findall(r"`(covey_(?:agent|engine|health)_[a-z_]+)`", said))
    assert named == {
        name for name in exported.names
        if name.startswith(("covey_agent", "covey_engine", "covey_health"))
    }  # fmt: skip


def test_panels_lie_beside_each_other_and_say_what_they_show() -> None:
    board = dashboard()
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y) for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }  # fmt: skip
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_panel_asks_the_prometheus_that_was_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard()["panels"]:
        for one in (panel, *panel.get("targets", ())) if panel["type"] != "row" else ():
            assert one["datasource"] == chosen


def test_each_alert_has_a_severity_a_summary_and_what_to_do() -> None:
    names = []
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            names.append(rule["alert"])
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert set(rule["annotations"]) == {"summary", "description"}
    assert len(set(names)) == len(names)
    tested = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    told = {case["alertname"] for test in tested for case in test["alert_rule_test"]}
    assert told <= set(names)


def test_the_role_hands_out_these_alerts() -> None:
    role = ROOT / "ansible/roles/monitoring/files/alerts.yml"
    assert role.resolve() == (FOLDER / "alerts.yml").resolve()
