"""The mesh in one piece: what is in it, what is left out, and what is said of each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.page.overview import EVENTS, Fault, Load, Overview, Trouble, overview

Told = dict[str, Any]


def made(told: Told, **given: Any) -> Overview:
    return overview(100.0, **(told | given))


def test_it_survives_json(told: Told) -> None:
    found = made(told)
    body = msgspec.json.encode(found)
    assert msgspec.json.decode(body, type=Overview) == found
    own = msgspec.json.decode(body)["nodes"][0]
    assert (own["self"], own["path"], own["presence"]) == (True, None, "self")


def test_no_address_and_no_folder_is_in_it(told: Told) -> None:
    text = msgspec.json.encode(made(told)).decode()
    for secret in ("198.18.1.2", "fd00::1", "10.77.0.1", "/srv/models", "https://x"):
        assert secret not in text
    assert made(told).rings[0].model == "mini.gguf"


def test_what_a_newer_agent_says_besides_is_no_fault(told: Told) -> None:
    told["peers"][0]["new"] = 1
    raw = msgspec.to_builtins(made(told)) | {"new": 1}
    assert msgspec.convert(raw, Overview) == made(told)


def test_paths_are_told_as_the_command_line_does(told: Told) -> None:
    _, alpha, beta, gamma = made(told).nodes
    assert alpha.path is not None and beta.path is not None and gamma.path is not None
    assert (alpha.path.route, alpha.path.rtt_ms, alpha.path.loss) == ("public", 11.3, 0.012)
    assert (beta.path.route, beta.path.relay) == ("relayed", "alpha")
    assert (gamma.path.route, gamma.path.rtt_ms, gamma.path.down_bytes_s) == ("none", None, None)


def test_a_relay_that_is_no_member_any_more_is_told_by_its_id(told: Told) -> None:
    told["peers"][1]["relay"] = "12D3KooWstranger"
    path = made(told).nodes[2].path
    assert path is not None and path.relay == "…stranger"


@pytest.mark.parametrize(
    ("given", "route", "rtt_ms"),
    [
        ({"path": "none"}, "none", None),
        ({"path": "none", "route": "asleep", "path_rtt_ms": None}, "asleep", None),
        ({"path_rtt_ms": None}, "public", 20.5),
    ],
)
def test_what_is_known_of_a_path(told: Told, given: Told, route: str, rtt_ms: float | None) -> None:
    told["peers"][0] |= given
    path = made(told).nodes[1].path
    assert path is not None and path.route == route
    if route != "none":
        assert path.rtt_ms == rtt_ms


def test_without_a_path_engine_a_path_is_direct(told: Told) -> None:
    for name in ("route", "path_rtt_ms", "path_jitter_ms", "path_loss", "relay", "why", "path_mtu"):
        del told["peers"][0][name]
    path = made(told).nodes[1].path
    assert path is not None
    assert (path.route, path.rtt_ms, path.mtu) == ("direct", 20.5, None)


def test_memory_is_in_whole_megabytes(told: Told) -> None:
    own, alpha, _, gamma = made(told).nodes
    assert own.load == Load(2**30, 4, 0.2, 1)
    assert alpha.load == Load(3 * 2**20, 2, 5.1, 1)
    assert gamma.load is None


def test_health_is_whole_for_this_node_and_a_code_for_others(told: Told) -> None:
    assert made(told).health == [
        Fault("door", "clock", "warning", "Clock", "Late.", "Set it.", ["by 3 s"]),
        Fault("alpha", "disk", "error"),
    ]


def test_an_error_is_told_with_what_to_do(told: Told) -> None:
    told["rings"][0]["error"] = {"kind": "EngineError", "message": "no", "hint": "yes"}
    told["jobs"][0]["error"] = {"kind": "PeerError", "message": "away"}
    found = made(told)
    assert found.rings[0].error == Trouble("no", "yes")
    assert found.jobs[0].error == Trouble("away", "")


@pytest.mark.parametrize(
    ("roles", "may"), [(["gateway"], False), (["worker"], True), (["gateway", "admin"], True)]
)
def test_who_may_deploy(told: Told, roles: list[str], may: bool) -> None:
    told["status"]["roles"] = roles
    assert made(told).may_deploy is may


def test_the_latest_events_are_told(told: Told) -> None:
    numbers = [event.number for event in made(told).events]
    assert numbers == list(range(100 - EVENTS, 100))
