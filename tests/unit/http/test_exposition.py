"""A node's figures, as Prometheus' own parser reads them."""

from __future__ import annotations

import re
from typing import Any

from figures_given import EMBEDDER, HEAD, STAGE, figures, more_status, peer
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.doctor.checks import CODES
from agent.figures import Engined, Figures
from agent.http import exposition
from agent.http.exposition import MOST_DEPLOYMENTS, MOST_PEERS, ROUTES

Place = tuple[str, frozenset[Any]]
CHAT = {"deployment": "chat", "ring": "0a1b2c3d", "stage": "0", "role": "head"}


def read(of: Figures) -> dict[Place, float]:
    found: dict[Place, float] = {}
    for family in text_string_to_metric_families(exposition.exposition(of).decode()):
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            place = (sample.name, frozenset(sample.labels.items()))
            assert place not in found, f"{place} is there twice"
            found[place] = sample.value
    return found


def value(of: Figures, metric: str, **labels: str) -> float | None:
    return read(of).get((f"covey_{metric}", frozenset(labels.items())))


def test_names_are_of_one_scheme_and_units_are_base_units() -> None:
    for family in text_string_to_metric_families(exposition.exposition(figures()).decode()):
        assert re.fullmatch(r"covey_(agent|engine|health)_[a-z_]+", family.name)
        assert not re.search(r"_(ms|kb|mb|mib|percent|minutes|hours|total)\Z", family.name)
        assert all((sample.name == f"{family.name}_total") == (family.type == "counter")
                   for sample in family.samples)  # fmt: skip


def test_each_code_of_the_doctor_is_told_whether_it_is_there_or_not() -> None:
    found = read(figures())
    codes = {dict(labels)["code"] for name, labels in found if name == "covey_health_fault"}
    assert codes == CODES
    assert value(figures(), "health_fault", code="disk-low", severity="warning") == 1
    assert value(figures(), "health_fault", code="disk-low", severity="error") == 0
    assert value(figures(), "health_fault", code="udp-blocked", severity="error") == 0


def test_a_fault_that_a_part_set_is_told_like_the_doctors() -> None:
    item = {"code": "overlay-down", "severity": "error"}
    of = figures(status=more_status(health=[item]))
    assert value(of, "health_fault", code="overlay-down", severity="error") == 1


def test_who_it_is_and_until_when() -> None:
    assert value(figures(), "agent_build_info", version="0.1.0") == 1
    assert value(figures(), "agent_node_info", mesh_name="home", name="alpha", node="12D3KooA") == 1
    assert value(figures(), "agent_certificate_expiry_timestamp_seconds") == 1_800_001_000.0
    assert value(figures(), "agent_draining") == 0


def test_members_by_route_are_all_of_them() -> None:
    found = read(figures())
    routes = {dict(labels)["route"]: count for (name, labels), count in found.items()
              if name == "covey_agent_members_by_route"}  # fmt: skip
    assert tuple(routes) == ROUTES
    assert routes == dict.fromkeys(ROUTES, 0) | {"lan": 1, "none": 1}
    assert value(figures(), "agent_members_known") == 2
    assert value(figures(), "agent_members_connected") == 1


def test_a_member_in_seconds_and_bytes() -> None:
    of = figures()
    assert value(of, "agent_peer_rtt_seconds", peer="beta") == 0.0015
    assert value(of, "agent_peer_handshake_age_seconds", peer="beta") == 12
    assert value(of, "agent_peer_receive_bytes_total", peer="beta") == 1000
    assert value(of, "agent_peer_transmit_bytes_total", peer="beta") == 2000
    assert value(of, "agent_peer_connected", peer="gamma") == 0
    assert value(of, "agent_peer_rtt_seconds", peer="gamma") is None
    said = {"peer": "gamma", "node": "12D3KooC", "route": "none", "presence": "gone"}
    assert value(of, "agent_peer_info", **said) == 1


def test_a_session_without_a_path_engine_has_no_kind() -> None:
    plain = peer()
    del plain["route"], plain["path_rtt_ms"], plain["path_jitter_ms"], plain["path_loss"]
    of = figures(peers=[plain])
    assert value(of, "agent_members_by_route", route="unknown") == 1
    assert value(of, "agent_peer_connected", peer="beta") == 1


def test_two_members_of_one_name_are_two() -> None:
    of = figures(peers=[peer("beta", "12D3KooB", rx_bytes=1), peer("beta", "12D3KooC", rx_bytes=2)])
    assert value(of, "agent_peer_receive_bytes_total", peer="beta") == 1
    assert value(of, "agent_peer_receive_bytes_total", peer="beta 12D3KooC") == 2


def test_labels_are_bounded_and_sums_are_of_all() -> None:
    many = MOST_PEERS + 50
    of = figures(
        peers=[peer(f"n{number:04}", f"id{number}") for number in range(many)],
        wanted={f"m{number}": 1 for number in range(MOST_DEPLOYMENTS + 50)},
    )
    found = read(of)
    names = [name for name, _ in found]
    assert names.count("covey_agent_peer_info") == MOST_PEERS
    assert names.count("covey_agent_deployment_rings_wanted") == MOST_DEPLOYMENTS
    assert value(of, "agent_members_by_route", route="lan") == many


def test_rings_wanted_and_ready() -> None:
    of = figures()
    assert value(of, "agent_deployment_rings_wanted", deployment="chat") == 2
    assert value(of, "agent_deployment_rings_ready", deployment="chat") == 1
    assert value(of, "agent_deployment_rings_ready", deployment="embed") == 0
    assert value(of, "agent_deployment_rings_ready", deployment="gone") is None


def test_an_engine_tells_what_its_kind_has() -> None:
    of = figures()
    assert value(of, "engine_rows_total", **CHAT) == 70
    assert value(of, "engine_frames_total", **CHAT) == 5
    assert value(of, "engine_decode_seconds_total", **CHAT) == 0.5
    assert value(of, "engine_wait_seconds_total", **CHAT) == 0.7
    assert value(of, "engine_cache_cells_used", **CHAT) == 90
    assert value(of, "engine_streams_running", **CHAT) == 2
    stage = CHAT | {"deployment": "", "stage": "1", "role": "stage"}
    assert value(of, "engine_frames_total", **stage) == 5
    assert value(of, "engine_cache_cells", **stage) is None
    embedder = {"deployment": "embed", "ring": "", "stage": "0", "role": "whole"}
    assert value(of, "engine_decode_seconds_total", **embedder) == 0.01
    loading = embedder | {"deployment": "other"}
    assert value(of, "engine_ready", **loading) == 0
    assert value(of, "engine_rows_total", **loading) is None
    assert value(of, "engine_resident_memory_bytes", **loading) == 10_000_000


def test_starts_and_failures_by_role() -> None:
    assert value(figures(), "engine_starts_total", role="head") == 2
    assert value(figures(), "engine_failures_total", role="head") == 1
    assert value(figures(), "engine_failures_total", role="stage") == 0


def test_the_engines_of_one_place_are_one() -> None:
    of = figures(engines=Engined([HEAD, HEAD, STAGE, EMBEDDER]))
    assert value(of, "engine_rows_total", **CHAT) == 140
    assert value(of, "engine_ready", **CHAT) == 2


def test_a_node_that_does_not_relay_has_no_pairs() -> None:
    assert value(figures(), "agent_relay_pairs", forwarding="kernel") == 2
    assert value(figures(), "agent_relay_bytes_total") == 512
    assert value(figures(relay=None), "agent_relay_pairs", forwarding="kernel") == 0


@given(st.lists(st.tuples(st.text(max_size=6), st.sampled_from(["direct", "none"]),
                          st.none() | st.floats(0, 1e6)), max_size=6),
       st.dictionaries(st.text(max_size=6), st.integers(0, 9), max_size=4))  # fmt: skip
def test_whatever_others_are_called_it_can_be_read_and_nothing_is_there_twice(
    peers: list[tuple[str, str, float | None]], wanted: dict[str, int]
) -> None:
    of = figures(
        peers=[peer(name, f"id{number}", path=path, path_rtt_ms=rtt)
               for number, (name, path, rtt) in enumerate(peers)],
        wanted=wanted,
    )  # fmt: skip
    names = [name for name, _ in read(of)]
    assert names.count("covey_agent_peer_info") == len(peers)
    assert names.count("covey_agent_deployment_rings_wanted") == len(wanted)
