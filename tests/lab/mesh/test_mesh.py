"""A mesh of real agents on one LAN: who is put out loses everything, who comes back finds the way.

The agents have no addresses but what tickets, the LAN and their own memory give them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from capture import TCP, UDP, capturing, packets

from agent.demo.fleet import Fleet, wait_until
from agent.identity.keys import NodeId
from agent.membership import certificate as certificates
from agent.membership.grant import Signer
from agent.membership.store import StateDir

ROOT = Path("/run/covey-mesh")
HERE = Path(__file__).parent
LOST_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Five agents; n0 is the issuer."""
    made = Fleet(ROOT, 5)
    made.join_all(2)
    for name in made.names:
        made.wait_connected(name, 4)
    try:
        yield made
    finally:
        for log in sorted(ROOT.glob("*/agent.log")):
            print(f"== {log}\n{log.read_text()[-12000:]}")


def wireguard_peers(fleet: Fleet, name: str) -> set[str]:
    """Return the WireGuard public keys that a machine's interface has as peers."""
    done = fleet.machine(name).run(["wg", "show", f"covey-{name}", "peers"])
    return set(done.stdout.split())


def reaches(fleet: Fleet, name: str, address: str) -> bool:
    """Say whether an echo over the overlay is answered within a second."""
    ping = Path(__file__).parents[2] / "bench" / "first_ping.py"
    return fleet.machine(name).run([sys.executable, str(ping), address, "1"]).returncode == 0


def linked(fleet: Fleet, name: str) -> set[str]:
    return {peer for peer, facts in fleet.peers(name).items() if facts["linked"]}


def join(fleet: Fleet, name: str, *arguments: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(fleet.agent(name, "join", *arguments, "--json"))
    return facts


def test_everyone_has_three_links_and_they_go_over_the_overlay(fleet: Fleet) -> None:
    for name in fleet.names:
        wait_until(f"{name} has three links", lambda name=name: len(linked(fleet, name)) >= 3)

    def underlay() -> str:
        sockets = [
            fleet.machine(n).run(["ss", "-Htn", "state", "established", "sport", "= :4001"]).stdout
            for n in fleet.names
        ]
        return "".join(line for s in sockets for line in s.splitlines() if "198.19." in line)

    wait_until("no control connection uses the underlay", lambda: not underlay(), 30)


def test_a_name_is_changed_for_all(fleet: Fleet) -> None:
    fleet.agent("n1", "rename", "first-aid")
    try:
        for name in fleet.names:
            wait_until(
                f"{name} knows the new name",
                lambda name=name: "first-aid" in fleet.members(name), LOST_WITHIN_S,
            )  # fmt: skip
    finally:
        fleet.agent("n0", "rename", "first-aid", "n1")
        for name in fleet.names:
            wait_until(f"{name} knows", lambda name=name: "n1" in fleet.members(name))


def test_tags_are_given_and_the_acl_follows(fleet: Fleet) -> None:
    check = ("acl", "check", "n1", "n2", "tcp:22", "--json")
    assert fleet.try_agent("n2", *check).returncode == 11
    fleet.acl.write_text('[[rule]]\nfrom=["tag:ops"]\nto=["*"]\nports=["tcp:22"]\naction="allow"\n')
    fleet.agent("n0", "grant", "n1", "--tag", "ops")
    wait_until("the rule allows it", lambda: fleet.try_agent("n2", *check).returncode == 0, 10)
    fleet.acl.write_text("")
    wait_until("the rule is gone", lambda: fleet.try_agent("n2", *check).returncode == 11, 10)


def test_a_port_that_covey_does_not_serve_is_closed_over_the_overlay(fleet: Fleet) -> None:
    server = fleet.machine("n2").spawn(
        [sys.executable, "-m", "http.server", "8000", "--bind", "::"]
    )
    try:
        address = fleet.status("n2")["ipv6"]
        underlay = fleet.machine("n2").address
        get = ["curl", "-gs", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}"]
        wait_until("the server is up", lambda: fleet.machine("n1").run(
            [*get, f"http://{underlay}:8000/"]).stdout == "200", 10)  # fmt: skip
        assert fleet.machine("n1").run([*get, f"http://[{address}]:8000/"]).stdout == "000"
    finally:
        server.terminate()
        server.wait(10)


def test_a_key_change_cuts_nobody_off_and_voids_old_tickets(fleet: Fleet) -> None:
    old = fleet.ticket()
    answer = json.loads(fleet.agent("n0", "rotate", "--overlap", "8s", "--force", "--json"))
    time.sleep(max(0.0, answer["retired_at"] - time.time()) + 2.0)
    for name in fleet.names:
        wait_until(
            f"{name} still sees everyone",
            lambda name=name: (
                all(
                    peer["presence"] == "alive" and peer["path"] == "direct"
                    for peer in fleet.peers(name).values()
                )
                and len(linked(fleet, name)) >= 3
            ),
            20,
        )
    state = ["--set", f"node.state_dir={ROOT}/late", "--set", "network.mdns=false"]
    done = fleet.try_agent("n4", "join", old, "--no-up", *state)
    assert done.returncode == 7, done.stderr


def test_a_member_that_was_off_during_a_key_change_comes_back(fleet: Fleet) -> None:
    """It has the old key alone, so nobody hears it; WireGuard does not need that key."""
    fleet.agent("n3", "down")
    answer = json.loads(fleet.agent("n0", "rotate", "--overlap", "8s", "--force", "--json"))
    time.sleep(max(0.0, answer["retired_at"] - time.time()) + 1.0)
    fleet.agent("n3", "up")
    wait_until("n3 is back with links", lambda: len(linked(fleet, "n3")) >= 3, 60)
    assert all(p["path"] == "direct" for p in fleet.peers("n3").values())


def test_a_dead_node_is_gone_without_an_operator_and_comes_back(fleet: Fleet) -> None:
    fleet.kill("n2")
    for name in ("n0", "n1", "n3", "n4"):
        wait_until(
            f"{name} knows that n2 is gone",
            lambda name=name: fleet.peers(name)["n2"]["presence"] == "gone", 15,
        )  # fmt: skip
    fleet.agent("n2", "up")
    for name in ("n0", "n1", "n3", "n4"):
        wait_until(
            f"{name} sees n2 again",
            lambda name=name: fleet.peers(name)["n2"]["presence"] == "alive", 20,
        )  # fmt: skip
    kinds = [json.loads(line)["kind"] for line in
             fleet.agent("n0", "events", "--json").splitlines()]  # fmt: skip
    assert {"member.suspect", "member.gone", "member.alive"} <= set(kinds)


def test_a_restarted_node_is_back_without_any_of_its_bootstraps(fleet: Fleet) -> None:
    """n4 joined by n0's ticket; n0 is off, the LAN is not asked, and n4 remembers the others."""
    fleet.agent("n4", "down")
    fleet.agent("n0", "down")
    try:
        fleet.agent("n4", "up", "--set", "network.mdns=false")
        wait_until("n4 is back", lambda: len(linked(fleet, "n4")) >= 3, 20)
    finally:
        fleet.agent("n0", "up")
        fleet.agent("n4", "down")
        fleet.agent("n4", "up")
    for name in fleet.names:
        fleet.wait_connected(name, 4)


def test_a_newcomer_with_a_ticket_of_no_use_but_its_word_finds_the_mesh_on_the_lan(
    fleet: Fleet,
) -> None:
    """The ticket's address is nobody's; a member that is not the issuer takes the request on."""
    fleet.agent("n4", "leave")
    wait_until("n0 knows that n4 left", lambda: "n4" not in fleet.peers("n0"), LOST_WITHIN_S)
    assert not (ROOT / "n4" / "node.key").exists()
    assert not (ROOT / "n4" / "mesh.json").exists()
    facts = join(fleet, "n4", "--bootstrap", "198.19.2.250", "--ticket", fleet.ticket())
    assert facts["mesh"] == "fleet"
    fleet.wait_connected("n4", 4)


def test_a_revoked_node_loses_everything_within_five_seconds(fleet: Fleet) -> None:
    facts = fleet.status("n4")
    key = NodeId.parse(facts["node"]).wireguard_public_base64
    assert all(key in wireguard_peers(fleet, n) for n in ("n0", "n1", "n2", "n3"))
    founder = fleet.status("n0")["ipv6"]
    assert reaches(fleet, "n4", founder)
    fleet.agent("n0", "revoke", facts["node"], "--reason", "stolen")
    took_s = wait_until(
        "nobody has n4 as a peer",
        lambda: not any(
            key in wireguard_peers(fleet, n) or facts["node"] in
            {p["node"] for p in fleet.peers(n).values()}
            for n in ("n0", "n1", "n2", "n3")
        ),
        LOST_WITHIN_S,
    )  # fmt: skip
    print(f"revoked: out of every WireGuard device and peer list within {took_s:.2f} s")
    assert not reaches(fleet, "n4", founder)
    wait_until("n4 has no link", lambda: not linked(fleet, "n4"), LOST_WITHIN_S)
    # Discovery: nobody answers it any more, so its own questions fail.
    wait_until(
        "n4 has no contact in discovery",
        lambda: " 0 contacts" in fleet.status("n4")["parts"]["discovery"], 60,
    )  # fmt: skip
    before = {n: fleet.peers(n) for n in ("n0", "n1")}
    assert all("n4" not in peers for peers in before.values())
    standing = [m for m in fleet.members("n1").values() if m["node"] == facts["node"]]
    assert [m["state"] for m in standing] == ["revoked"]
    # With the same key it is refused whatever ticket it shows.
    done = fleet.try_agent("n4", "down")
    assert done.returncode == 0, done.stderr
    done = fleet.try_agent("n4", "join", fleet.ticket(), "--no-up")
    assert done.returncode == 6, done.stderr


def test_an_expired_member_loses_everything_within_five_seconds(fleet: Fleet) -> None:
    """n3's certificate ends while the only issuer is off, so it cannot be renewed."""
    fleet.agent("n3", "down")
    fleet.agent("n0", "down")
    now = time.time()
    ends = int(now) + 12
    with StateDir(ROOT / "n0").lock() as state:
        founder = state.membership()
        assert founder is not None
        assert founder.root_key is not None
        root_key = founder.root_key
    with StateDir(ROOT / "n3").lock() as state:
        own = state.membership()
        assert own is not None
        old = own.certificate
        short = certificates.sign(
            Signer.of_root(root_key), node=own.key.id, name=old.name, roles=old.roles,
            tags=old.tags, ipv4_counter=old.ipv4_counter, not_before=int(now), not_after=ends,
        )  # fmt: skip
        own.add_member(short, now)
    fleet.agent("n3", "up")
    key = own.key.id.wireguard_public_base64
    for name in ("n1", "n2"):
        wait_until(
            f"{name} has n3's new certificate",
            lambda name=name: fleet.members(name)["n3"]["certificate_left_s"] < 20, 10,
        )  # fmt: skip
        assert key in wireguard_peers(fleet, name)
    time.sleep(max(0.0, ends - time.time()))
    wait_until(
        "nobody has n3 as a peer",
        lambda: not any(key in wireguard_peers(fleet, n) for n in ("n1", "n2")), LOST_WITHIN_S,
    )  # fmt: skip
    wait_until("n3 has no link", lambda: not linked(fleet, "n3"), LOST_WITHIN_S)
    assert fleet.members("n1")["n3"]["state"] == "expired"
    fleet.agent("n0", "up")


def test_an_outsider_is_sent_nothing(fleet: Fleet) -> None:
    """Whatever an outsider on the LAN sends: not a byte of payload comes back, TCP or UDP."""
    lan = fleet.lab
    stranger = lan.add("stranger")
    file = ROOT / "stranger.pcap"
    # To this address: the LAN's sealed announcements go to everyone, whoever is there.
    between = ["src", fleet.machine("n1").address, "and", "dst", stranger.address]
    with capturing(stranger.command, file, *between):
        done = stranger.run(
            [sys.executable, str(HERE / "stranger.py"), fleet.machine("n1").address]
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0 bytes came back"
    came = [packet for packet in packets(file) if packet.protocol in (TCP, UDP)]
    assert came, "not even a reset was captured"
    assert b"".join(packet.payload for packet in came) == b""
