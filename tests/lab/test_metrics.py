"""What agents and the gateway of a mesh that runs models tell Prometheus, and what is asked them.

The dashboard and the alerts ask for it: docs/monitoring/.
"""

from __future__ import annotations

import json

from patience import answer, wait
from prometheus_client.parser import text_string_to_metric_families
from queries import Exported, queries

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, WORKERS, DemoMesh

PAGES = "http://127.0.0.1:7074"
# It has no sample before a request is refused.
UNSEEN = ("covey_gateway_requests_refused_total",)


def read(mesh: DemoMesh, name: str, url: str) -> str:
    done = mesh.machine(name).run(["curl", "-sf", "-m", "20", url])
    assert done.returncode == 0, (name, url, done.stderr)
    return done.stdout


def sums(text: str, **labels: str) -> dict[str, float]:
    """Return the sum of each metric's samples that have these labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_an_agent_tells_of_the_mesh_and_its_members(mesh: DemoMesh) -> None:
    mesh.wait_connected("alpha")
    told = sums(read(mesh, "alpha", f"{PAGES}/metrics"))
    # Beside the mesh's own, those are known that other tests had join and leave.
    known = len(mesh.get("alpha", "/v1/peers")["peers"])
    assert told["covey_agent_members_known"] == told["covey_agent_members_by_route"] == known
    assert 3 <= told["covey_agent_peer_connected"] <= known
    assert told["covey_agent_discovery_contacts"] > 0
    assert told["process_resident_memory_bytes"] > 10e6
    assert 0 < told["covey_agent_peer_rtt_seconds"] < 60
    assert told["covey_agent_peer_receive_bytes_total"] > 0
    assert told["covey_agent_deployment_rings_wanted"] >= 3
    status = mesh.get("alpha", "/v1/status")
    assert told["covey_health_fault"] == len(status["health"])


def test_engines_of_a_ring_tell_what_they_computed(mesh: DemoMesh) -> None:
    before = {name: read(mesh, name, f"{PAGES}/metrics") for name in WORKERS}
    assert answer(mesh, "trio")

    def rows_grew() -> bool:
        after = {name: read(mesh, name, f"{PAGES}/metrics") for name in WORKERS}
        return all(
            sums(after[name])["covey_engine_rows_total"]
            > sums(before[name])["covey_engine_rows_total"]
            for name in WORKERS
        )

    assert wait(rows_grew)
    rings = {d["name"]: d for d in mesh.get("alpha", "/v1/deployments")["deployments"]}
    leads = rings["trio"]["head_name"]
    head = sums(read(mesh, leads, f"{PAGES}/metrics"), role="head", deployment="trio")
    assert head["covey_engine_ready"] == 1
    assert 0 < head["covey_engine_cache_cells_used"] <= head["covey_engine_cache_cells"]
    assert head["covey_engine_decode_seconds_total"] > 0
    assert head["covey_engine_resident_memory_bytes"] > 1e6
    follows = next(name for name in WORKERS if name != leads)
    stage = sums(read(mesh, follows, f"{PAGES}/metrics"), role="stage")
    assert stage["covey_engine_frames_total"] > 0
    assert stage["covey_engine_ready"] >= 1


def stream(mesh: DemoMesh, model: str) -> str:
    """Return a stream of the gateway's as it came: times to tokens are told of streams alone."""
    body = {"model": model, "stream": True, "max_tokens": 8,
            "messages": [{"role": "user", "content": "What is 27 + 15?"}]}  # fmt: skip
    url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions"
    done = mesh.machine(GATEWAY).run(["curl", "-sfN", "-m", "30", url, "-d", json.dumps(body)])
    return done.stdout


def test_all_that_is_asked_for_is_exported_by_real_ones(mesh: DemoMesh) -> None:
    assert answer(mesh, "solo")
    assert "[DONE]" in stream(mesh, "solo")
    said = [read(mesh, name, f"{PAGES}/metrics") for name in (*WORKERS, GATEWAY)]
    exported = Exported([*said, read(mesh, GATEWAY, f"http://127.0.0.1:{GATEWAY_PORT}/metrics")])
    seen = [q for q in queries() if not any(name in q.expression for name in UNSEEN)]
    assert [fault for query in seen for fault in exported.faults(query, values=False)] == []


def test_pages_are_read_by_this_machine_alone(mesh: DemoMesh) -> None:
    health = json.loads(read(mesh, "beta", f"{PAGES}/health"))
    assert {item["code"] for item in health["items"]} == {
        item["code"] for item in mesh.get("beta", "/v1/status")["health"]
    }
    named = mesh.machine("beta").run(
        ["curl", "-s", "-m", "20", "-H", "Host: evil.example", f"{PAGES}/metrics"]
    )
    assert "covey_" not in named.stdout
    own = mesh.get("beta", "/v1/status")["ipv6"]
    other = mesh.machine("alpha").run(["curl", "-s", "-m", "5", f"http://[{own}]:7074/metrics"])
    assert other.returncode != 0
