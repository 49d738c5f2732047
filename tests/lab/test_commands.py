"""The commands as people type them: what they print, and the same as JSON."""

from __future__ import annotations

import json
import time

import pytest

from agent.demo.mesh import DemoMesh


def test_status_and_peers_for_people(mesh: DemoMesh) -> None:
    status = mesh.agent("beta", "status")
    assert status.startswith("beta of mesh demo (up ")
    assert "userspace" in status or "kernel" in status
    assert "3 of 3 connected" in status
    peers = mesh.agent("beta", "peers").splitlines()
    assert peers[0].split()[:3] == ["NAME", "IPV6", "IPV4"]
    assert [line.split()[0] for line in peers[1:]] == ["alpha", "door", "gamma"]
    assert all(" public " in line for line in peers[1:])


@pytest.mark.parametrize("name", ["status", "peers", "ps"])
def test_json_is_json(mesh: DemoMesh, name: str) -> None:
    assert mesh.ask("alpha", name)


def test_ps_draws_the_ring(mesh: DemoMesh) -> None:
    drawn = mesh.agent("alpha", "ps")
    assert {line.split()[0] for line in drawn.splitlines()[1:4]} == {"solo", "duo", "trio"}
    assert "gamma  stage" in drawn
    assert "█" in drawn


def test_the_catalogue_says_what_fits_these_nodes(mesh: DemoMesh) -> None:
    lines = mesh.agent("gamma", "catalogue").splitlines()
    (mini,) = [line for line in lines if line.startswith("covey-mini")]
    assert "fits one node (" in mini
    (kimi,) = [line for line in lines if line.startswith("kimi-k2-thinking")]
    assert " more" in kimi
    assert lines[-1].startswith("Free now: ")
    told = json.loads(mesh.agent("gamma", "catalogue", "covey-mini", "--json"))
    assert {worker["name"] for worker in told["workers"]} == {"alpha", "beta", "gamma"}


def test_every_member_computes_the_same_addresses(mesh: DemoMesh) -> None:
    own = {name: mesh.get(name, "/v1/status") for name in ("alpha", "beta", "gamma", "door")}
    for name in own:
        for peer in mesh.get(name, "/v1/peers")["peers"]:
            assert peer["ipv6"] == own[peer["name"]]["ipv6"]
            assert peer["ipv4"] == own[peer["name"]]["ipv4"]
            assert peer["node"] == own[peer["name"]]["node"]


def test_both_overlay_addresses_carry_packets(mesh: DemoMesh) -> None:
    gamma = mesh.get("gamma", "/v1/status")
    for address in (gamma["ipv4"], f"[{gamma['ipv6']}]"):
        url = f"http://{address}:7070/stage/none"
        done = mesh.machine("beta").run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url]
        )
        # The stage files' server is on the IPv6 address alone; on IPv4 the refusal comes back.
        assert done.stdout == ("404" if ":" in address else "000")
        assert done.returncode == (0 if ":" in address else 7)


def test_the_wg_quick_file_is_what_wireguard_has(mesh: DemoMesh) -> None:
    file = mesh.root / "beta" / "covey-beta.conf"
    assert file.stat().st_mode & 0o777 == 0o600
    deadline = time.monotonic() + 20
    while True:  # it is written some seconds after a change
        stripped = mesh.machine("beta").run(["wg-quick", "strip", str(file)])
        assert stripped.returncode == 0, stripped.stderr
        shown = mesh.machine("beta").run(["wg", "show", "covey-beta", "peers"]).stdout.split()
        listed = [
            line.partition("=")[2].strip()
            for line in stripped.stdout.splitlines()
            if line.startswith("PublicKey")
        ]
        if sorted(listed) == sorted(shown) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert shown
    assert sorted(listed) == sorted(shown)
    assert len(listed) == 3


def test_the_gateway_says_what_it_sees(mesh: DemoMesh) -> None:
    done = mesh.machine("door").run(["curl", "-s", "http://127.0.0.1:8088/health"])
    assert done.returncode == 0
    assert json.loads(done.stdout)
