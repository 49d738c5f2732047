"""Each check is provoked through the facts: what is wrong, how badly, and what the item says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

import msgspec
import pytest

from agent.doctor import checks
from agent.doctor.checks import CODES, examine, together
from agent.doctor.facts import (
    NET_ADMIN,
    NET_RAW,
    Agent,
    Build,
    Computes,
    Count,
    Disk,
    Facts,
    Gpu,
    Link,
    Machine,
    Member,
    Network,
    Peer,
    Port,
    Route,
    Taken,
    agent_of,
)
from agent.health import HealthItem, Severity

OVERLAY = IPv4Network("10.77.0.0/16")
MEMBER = Member("home", OVERLAY)
UPLINK = Link("eth0", addresses=(IPv4Interface("192.168.1.5/24"),))
PEERS = (
    Peer("alpha", "10.77.0.2", "alive", "lan", "1.0"),
    Peer("beta", "10.77.0.3", "alive", "public", "1.0"),
)
AGENT = Agent(
    pid=7, name="box", mesh="home", software="1.0", uptime_s=600.0, ipv4="10.77.0.1",
    network=Network("kernel", 51820, "easy", False, 2, 1, ("alpha",)), peers=Count(2, 2, 0, 2),
    peer_list=PEERS,
)  # fmt: skip
MACHINE = Machine(links=(UPLINK,), uplinks=("eth0",), ruleset={"nftables": []})
UP = Facts(machine=MACHINE, member=MEMBER, agent=AGENT)
DOWN = replace(UP, agent=None, fault="no agent is running on x", hint="Start it with `agent up`.")
BARE = replace(DOWN, member=None)
NVIDIA, AMD = Gpu("NVIDIA", "0000:01:00.0"), Gpu("AMD", "0000:02:00.0")


def machine(base: Facts = UP, **changed: Any) -> Facts:
    return replace(base, machine=replace(base.machine, **changed))


def agent(**changed: Any) -> Facts:
    return replace(UP, agent=msgspec.structs.replace(AGENT, **changed))


def network(**changed: Any) -> Facts:
    return agent(network=msgspec.structs.replace(AGENT.network, **changed))


def wanted(base: Facts, **changed: Any) -> Facts:
    return replace(base, wanted=replace(base.wanted, **changed))


def rules(*statements: Mapping[str, Any], policy: str = "accept") -> dict[str, Any]:
    """Return a ruleset with one chain at the hook `input`, and in it one rule."""
    place = {"family": "inet", "table": "filter"}
    chain = {**place, "name": "input", "type": "filter", "hook": "input", "policy": policy}
    rule = {**place, "chain": "input", "expr": list(statements)}
    return {"nftables": [{"chain": chain}, {"rule": rule}]}


@dataclass(frozen=True)
class Case:
    code: str
    severity: Severity
    facts: Facts
    says: str


PORT = Port("udp", 51820, "network.listen_port")
TUN = "there is no /dev/net/tun"
NO_WIREGUARD = machine(DOWN, kernel_wireguard=False, wireguard_go=False)
CASES = (
    Case("agent-down", "error", DOWN, "no agent is running"),
    Case("no-mesh", "note", BARE, "agent join TICKET"),
    Case("state-unreadable", "error", replace(BARE, state_fault="cannot read x."), "cannot read x"),
    Case("wireguard-missing", "error", NO_WIREGUARD, "wireguard-go is not installed"),
    Case("wireguard-missing", "error",
         wanted(machine(DOWN, kernel_wireguard=False), backend="kernel"), "backend is kernel"),
    Case("wireguard-missing", "error",
         wanted(machine(DOWN, wireguard_go=False), backend="userspace"), "backend is userspace"),
    Case("wireguard-userspace", "note", machine(DOWN, kernel_wireguard=False), "modprobe"),
    Case("wireguard-userspace", "note", network(overlay="userspace"), "more of the CPU"),
    Case("tun-missing", "error", machine(DOWN, kernel_wireguard=False, tun_fault=TUN), TUN),
    Case("tun-missing", "error", wanted(machine(DOWN, tun_fault=TUN), backend="userspace"), TUN),
    Case("rights-missing", "error", machine(capabilities=frozenset({NET_RAW})), NET_ADMIN),
    Case("raw-sockets-missing", "warning", machine(capabilities=frozenset({NET_ADMIN})), NET_RAW),
    Case("ipv6-missing", "error", machine(ipv6=False), "ipv6.disable=1"),
    Case("port-taken", "error", machine(DOWN, taken=(Taken(PORT, "wg-quick (pid 5)"),)),
         "UDP 51820 (network.listen_port): wg-quick (pid 5)"),
    Case("firewall-drops", "warning", machine(ruleset=rules(policy="drop")), "inet filter input"),
    # A mesh on one LAN: no route leads elsewhere.
    Case("firewall-drops", "warning", machine(ruleset=rules(policy="drop"), uplinks=()), "eth0"),
    Case("udp-blocked", "warning", network(nat="blocked"), "No UDP gets out"),
    Case("udp-blocked", "error",
         agent(network=Network("kernel", 51820, "blocked"), peers=Count(2, 0, 0, 0)), "TCP"),
    Case("nat-hard", "note", network(nat="hard"), "hard NAT"),
    Case("nat-hard", "warning", network(nat="hard", relays=0), "No relay is known"),
    Case("nat-unknown", "note", network(nat="unknown", rendezvous=0), "public address"),
    Case("nat-unknown", "note", network(nat="a-kind-of-tomorrow", rendezvous=0), "public address"),
    Case("clock-behind", "error", machine(now=5.0, installed_at=9.0), "software was installed"),
    Case("clock-behind", "error", replace(UP, member=Member("home", OVERLAY, 1.9e9)), "this node"),
    Case("clock-not-kept", "note", machine(synchronised=False), "time server"),
    Case("mtu-small", "warning", machine(links=(replace(UPLINK, mtu=1280),)), "eth0: 1280 bytes"),
    Case("mdns-blocked", "note", machine(ruleset=rules(policy="drop")), "UDP 5353"),
    Case("mdns-blocked", "note", network(lan=()), "alpha: on this LAN"),
    Case("vpn-takes-all", "warning",
         machine(links=(UPLINK, Link("wg0", "wireguard", tunnel=True)), uplinks=("wg0",)), "wg0"),
    Case("vpn-beside", "note", machine(links=(UPLINK, Link("tailscale0", "tun", tunnel=True))),
         "tailscale0 (tun)"),
    Case("address-conflict", "warning",
         machine(links=(Link("eth1", addresses=(IPv4Interface("10.77.3.4/24"),)),)),
         "eth1 has 10.77.3.4/24"),
    Case("address-conflict", "warning",
         machine(routes=(Route(IPv4Network("10.77.9.0/24"), "eth1"),)), "10.77.9.0/24 by eth1"),
    Case("address-conflict", "warning",
         agent(peer_list=(*PEERS, Peer("gamma", "10.77.0.3"))), "beta and gamma have 10.77.0.3"),
    Case("disk-low", "warning", machine(disks=(Disk("/var", 500 << 20),)), "500 MiB free in /var"),
    Case("disk-low", "error", machine(disks=(Disk("/a", 1 << 40), Disk("/b", 1))), "be written"),
    Case("memory-low", "warning", machine(free_memory=100 << 20), "100 MiB"),
    Case("gpu-driver", "warning", machine(gpus=(NVIDIA,)), "driver is missing"),
    Case("gpu-driver", "warning",
         machine(gpus=(NVIDIA,), nvidia_driver="470.82", build=Build(("cuda",), 12)), "525.60"),
    Case("gpu-fails", "warning", agent(computes=Computes((), "the self-test died.")), "died"),
    Case("gpu-unused", "warning", machine(gpus=(NVIDIA,), nvidia_driver="550.54"), "GGML_CUDA"),
    Case("gpu-unused", "note", machine(gpus=(AMD,)), "GGML_VULKAN"),
    Case("cpu-masked", "note", machine(masked=("AMX",)), "announces AMX"),
    Case("cpu-masked", "note", machine(repacking=False), "self-test died"),
    Case("llama-missing", "error", machine(build=Build(installed=False)), "make setup"),
    Case("sees-only-itself", "warning", agent(peers=Count(2, 0, 0, 0)), "Of 2 other members"),
    Case("only-member", "note", agent(peers=Count(), peer_list=()), "agent invite"),
    Case("versions-mixed", "warning",
         agent(peer_list=(Peer("old", "", "alive", "lan", "0.9"),)), "old has 0.9"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.severity}")
def test_each_fault_is_found_and_told(case: Case) -> None:
    (item,) = [item for item in examine(case.facts) if item.code == case.code]
    assert item.severity == case.severity
    assert item.what_to_do.endswith(".")
    assert item.text.endswith(".")
    assert case.says in " ".join([item.title, item.text, item.what_to_do, *item.details])


def test_every_code_is_provoked_by_some_case() -> None:
    assert {case.code for case in CASES} == CODES


@pytest.mark.parametrize("facts", [UP, *(case.facts for case in CASES)])
def test_a_check_says_one_thing_with_a_code_of_its_own(facts: Facts) -> None:
    for check in checks.CHECKS:
        item = check.look(facts)
        assert item is None or item.code in check.codes
    codes = [code for check in checks.CHECKS for code in check.codes]
    assert len(codes) == len(set(codes))


def test_where_all_is_in_order_nothing_but_that_is_said() -> None:
    assert {item.severity for item in examine(UP)} == {"ok"}


def test_before_a_mesh_is_joined_nothing_is_a_fault() -> None:
    assert [item.code for item in examine(BARE) if item.severity != "ok"] == ["no-mesh"]


@pytest.mark.parametrize(
    "facts",
    [
        # A look right after the start: nobody can have been found.
        agent(peers=Count(2, 0, 0, 0), uptime_s=5.0),
        # All are asleep: that is how a large mesh is when nothing flows.
        agent(peers=Count(2, 0, 2, 0)),
        network(nat="hard", mapped=True),
        agent(network=msgspec.structs.replace(AGENT.network, lan=()), uptime_s=5.0),
        wanted(network(lan=()), mdns=False),
        # Another Covey node on this machine, and a VPN that is down.
        machine(links=(UPLINK, Link("covey1", "tun", tunnel=True, ours=True,
                                    addresses=(IPv4Interface("10.77.0.9/16"),)))),
        machine(links=(UPLINK, Link("wg0", "wireguard", up=False, tunnel=True))),
        # The overlay's own route, and one that is wider than the overlay's.
        machine(routes=(Route(OVERLAY, "covey0"), Route(IPv4Network("10.0.0.0/8"), "eth0"))),
        # The running agent has its ports itself, and needs no /dev/net/tun any more.
        machine(taken=(Taken(PORT, "agent (pid 7)"),), tun_fault=TUN),
        machine(kernel_wireguard=False, wireguard_go=False),
        machine(gpus=(NVIDIA,), nvidia_driver="580.65.06", build=Build(("cuda",), 13)),
        wanted(machine(gpus=(NVIDIA,)), gpu=False),
        machine(ruleset=None),
        agent(peer_list=(Peer("gone", "", "gone", "none", "0.1"), Peer("mute", "", "alive"))),
    ],
)  # fmt: skip
def test_what_is_no_fault(facts: Facts) -> None:
    assert [item for item in examine(facts) if item.severity != "ok"] == []


def test_the_severest_comes_first() -> None:
    found = examine(machine(NO_WIREGUARD, free_memory=0, masked=("AMX",)))
    order = [item.severity for item in found]
    assert order == sorted(order, key=("error", "warning", "note", "ok").index)


def test_what_the_agent_found_by_the_same_checks_is_not_told_twice() -> None:
    old = HealthItem("disk-low", "warning", "The disk is nearly full", "x")
    part = HealthItem("overlay-down", "error", "WireGuard fails", "x")
    found = together(examine(UP), [old, part])
    assert found[0] == part
    assert old not in found


def test_an_agent_is_read_from_what_it_answers() -> None:
    status = {
        "pid": 7, "name": "box", "mesh": "home", "software": "1.0", "uptime_s": 1, "more": {},
        "network": {"overlay": "kernel", "port": 51820, "nat": "hard", "lan": ["alpha"]},
        "peers": {"known": 1, "connected": 1, "asleep": 0, "alive": 1, "linked": 1},
        "computes": {"used": ["CUDA0"], "fault": "", "lines": []},
        "health": [{"code": "x", "severity": "warning", "title": "t", "text": "x",
                    "what_to_do": "y"}],
    }  # fmt: skip
    peers = {"peers": [{"name": "alpha", "presence": "alive", "software": "1.0", "rtt_ms": 1.0}]}
    found = agent_of(status, peers)
    assert (found.network.nat, found.peers.linked, found.computes.used) == ("hard", 1, ("CUDA0",))
    assert found.peer_list[0].route == "none"
    assert found.health[0].what_to_do == "y"
    # An agent of before these checks, and one that did not answer for its peers.
    assert agent_of({"pid": 7}, {"error": "…"}).network.nat == "unknown"


def test_the_port_that_is_asked_for_is_the_agents() -> None:
    drop = {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}},
                      "right": 6000}}  # fmt: skip
    facts = wanted(machine(ruleset=rules(drop, {"drop": None})), wireguard_port=6000)
    assert "UDP port 6000" in next(i for i in examine(facts) if i.code == "firewall-drops").text
