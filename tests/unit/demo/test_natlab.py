"""The NAT lab's rules as text, its addresses, and that it is never built on the machine itself."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.demo import natlab, natrules
from agent.demo.natlab import NatLab
from agent.demo.natrules import KINDS, Filtering, Kind, Mapping
from agent.discovery.reach import scope_of
from agent.errors import EnvironmentFault


def rules(kind: Kind, remaps: int = 0) -> str:
    return natrules.gateway(kind, "192.88.99.10", 120, remaps)


def by_name(kind: Kind) -> str:
    return kind.name


def test_it_is_refused_outside_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVEY_SANDBOX", raising=False)
    monkeypatch.setattr(natlab, "_ip", lambda *_: pytest.fail("it built something"))
    with pytest.raises(EnvironmentFault, match="only built in a sandbox"):
        NatLab()


@pytest.mark.parametrize("program", ["miniupnpd", "conntrack"])
def test_it_names_the_package_that_is_missing(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVEY_SANDBOX", "1")
    monkeypatch.setattr(natlab, "_ip", lambda *_: pytest.fail("it built something"))
    monkeypatch.setattr(natlab.shutil, "which", lambda name: None if name == program else name)
    with pytest.raises(EnvironmentFault, match=f"{program} is not installed") as caught:
        NatLab()
    assert program in (caught.value.hint or "")


def test_the_internet_is_global_and_the_lans_are_not() -> None:
    """As Covey tells them apart, which decides what it does with a candidate."""
    internet = [natlab._PUBLIC.format(10), natlab._MAPPED.format(10), natlab._HOP,
                natlab._PREFIX.format(1) + "::2"]  # fmt: skip
    lans = [f"{network}.2" for network in (*natlab._NETWORKS, natlab._CARRIER)]
    assert {scope_of(address) for address in internet} == {"IPv4 global", "IPv6 global"}
    assert {scope_of(address) for address in lans} == {"IPv4 private"}
    assert not any(ip_address(address).is_global for address in lans)


def test_a_kind_is_known_by_its_name() -> None:
    assert all(name == kind.name for name, kind in KINDS.items())
    assert len({kind.text for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.levels], ids=by_name)
def test_only_an_endpoint_dependent_nat_draws_ports(kind: Kind) -> None:
    assert ("fully-random" in rules(kind)) is (kind.mapping is Mapping.DIFFERS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.levels], ids=by_name)
def test_a_gateway_replaces_its_rules_and_remembers_only_what_it_needs(kind: Kind) -> None:
    text = rules(kind)
    # The first line makes sure that there is a table, so that the second never fails.
    assert text.startswith("table inet lab\ndelete table inet lab\ntable inet lab {\n")
    assert text.count("{") == text.count("}")
    needs = kind.filtering is Filtering.ADDRESS or kind.hairpin
    assert ("map owner" in text) is needs
    assert ("chain input" in text) is kind.firewall


def test_remaps_move_an_easy_nat_to_ports_that_it_did_not_have() -> None:
    ranges = []
    for remaps in range(1, 10):
        (line,) = (one for one in rules(KINDS["easy"], remaps).splitlines() if " to :" in one)
        low, high = map(int, line.rpartition(":")[2].split("-"))
        ranges.append(range(low, high + 1))
        assert not {7001, 32768, 51820, 51821} & set(ranges[-1])
        assert high < 32768
    for one, other in zip(ranges, ranges[1:] + ranges[:1], strict=True):
        assert not set(one) & set(other)
    assert " to :" not in rules(KINDS["easy"])
    # A hard NAT draws anew anyway.
    assert rules(KINDS["hard"], 3) == rules(KINDS["hard"])


@pytest.mark.parametrize(
    ("percent", "rule"),
    [(0, None), (0.1, "numgen random mod 1000 < 1 drop"), (30, "numgen random mod 1000 < 300 drop"),
     (100, "drop")],
)  # fmt: skip
def test_loss(percent: float, rule: str | None) -> None:
    lines = natrules.weather("site3", percent, udp=True).splitlines()
    drops = [line for line in lines if line.endswith("drop")]
    assert drops == ([rule] if rule else [])
    assert 'iifname "site3" jump weather' in lines
    assert 'oifname "site3" jump weather' in lines


def test_udp_is_dropped_before_chance_is_asked() -> None:
    lines = natrules.weather("site3", 10, udp=False).splitlines()
    assert lines.index("meta l4proto udp drop") < lines.index("numgen random mod 1000 < 100 drop")


@pytest.mark.parametrize("name", ["upnp", "hard-pmp"])
def test_a_mapper_speaks_what_its_kind_does_and_serves_its_lan_alone(name: str) -> None:
    kind = KINDS[name]
    lines = natrules.mapper(kind, "192.168.1.0/24", "/run/x").splitlines()
    assert f"enable_upnp={'yes' if kind.upnp else 'no'}" in lines
    assert "enable_natpmp=yes" in lines
    assert [line for line in lines if line.startswith("allow")] == [
        "allow 1024-65535 192.168.1.0/24 1024-65535"
    ]
    for chain in ("forward", "prerouting", "postrouting"):
        assert f"chain {chain}_miniupnpd {{ }}" in natrules.MAPPER_CHAINS
        assert any(line.endswith(f"={chain}_miniupnpd") for line in lines)
