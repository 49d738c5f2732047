"""What nftables' rules do to a packet of UDP: certain drops are named, all else is not."""

from __future__ import annotations

from typing import Any

import pytest

from agent.doctor.firewall import Packet, drops

IN = Packet("in", port=51820, link="eth0")
OUT = Packet("out", source_port=51820, link="eth0")
INPUT = "inet filter input"
Expr = list[dict[str, Any]]


def chain(name: str, *rules: Expr, hook: str = "", policy: str = "accept") -> list[dict[str, Any]]:
    """Return a chain of table inet filter, as `nft -j` lists it."""
    place = {"family": "inet", "table": "filter"}
    base = {"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {}
    return [
        {"chain": {**place, "name": name, "handle": 1, **base}},
        *({"rule": {**place, "chain": name, "handle": 2, "expr": rule}} for rule in rules),
    ]


def ruleset(*parts: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [one for part in parts for one in part]
    return {"nftables": [{"metainfo": {"version": "1.0.6"}}, *listed]}


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def port(right: Any, field: str = "dport", protocol: str = "udp", op: str = "==") -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": field}}, right, op)


ACCEPT, DROP, RETURN = {"accept": None}, {"drop": None}, {"return": None}
NEW = match({"ct": {"key": "state"}}, ["established", "related"], "in")
LOOPBACK = match({"meta": {"key": "iifname"}}, "lo")
USUAL: list[Expr] = [[NEW, ACCEPT], [LOOPBACK, ACCEPT], [port(22, protocol="tcp"), ACCEPT]]


def closed(*rules: Expr) -> dict[str, Any]:
    """Return what a workstation has: answers, loopback, SSH, and these rules; the rest drops."""
    return ruleset(chain("input", *USUAL, *rules, hook="input", policy="drop"))


def test_a_closed_firewall_drops_a_port_that_it_does_not_name() -> None:
    assert drops(closed(), IN) == INPUT
    assert drops(closed([port(53), ACCEPT]), IN) == INPUT
    assert drops(closed([port({"range": [1, 1024]}), ACCEPT]), IN) == INPUT
    assert drops(closed([match({"meta": {"key": "l4proto"}}, "ipv6-icmp"), ACCEPT]), IN) == INPUT


@pytest.mark.parametrize(
    "rule",
    [
        [port(51820), ACCEPT],
        [port(51820, protocol="th"), ACCEPT],
        [port({"set": [53, 51820]}), ACCEPT],
        [port({"set": [53, {"range": [50000, 60000]}]}), ACCEPT],
        [port(53, op="!="), ACCEPT],
        [match({"meta": {"key": "l4proto"}}, "udp"), ACCEPT],
        [match({"payload": {"protocol": "ip", "field": "protocol"}}, "udp"), ACCEPT],
        [match({"meta": {"key": "iifname"}}, "eth*"), {"counter": {"packets": 0}}, ACCEPT],
    ],
)
def test_a_rule_lets_it_in(rule: Expr) -> None:
    assert drops(closed(rule), IN) == ""


@pytest.mark.parametrize(
    "rule",
    [
        [match({"payload": {"protocol": "ip", "field": "saddr"}}, "192.168.0.0"), ACCEPT],
        [{"limit": {"rate": 5, "per": "second"}}, ACCEPT],
        [{"xt": {"type": "match", "name": "addrtype"}}, ACCEPT],
        [match({"fib": {"result": "type"}}, "local"), ACCEPT],
        [port("@unheard"), ACCEPT],
        [{"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[1, ACCEPT]]}}}],
        [{"vmap": {"key": {"payload": {"protocol": "udp", "field": "dport"}}, "data": "@map"}}],
        [match({"&": [{"meta": {"key": "mark"}}, 1]}, 1), ACCEPT],
    ],
)
def test_where_nobody_can_know_nothing_is_said(rule: Expr) -> None:
    assert drops(closed(rule), IN) == ""


def test_an_uncertain_drop_is_none() -> None:
    saddr = match({"payload": {"protocol": "ip", "field": "saddr"}}, "10.0.0.1")
    assert drops(ruleset(chain("input", [saddr, DROP], hook="input")), IN) == ""
    assert drops(ruleset(chain("input", [port(51820), DROP], hook="input")), IN) == INPUT
    assert (
        drops(ruleset(chain("input", [{"reject": {"type": "icmpx"}}], hook="input")), IN) == INPUT
    )


def test_named_sets_and_verdict_maps_are_read() -> None:
    named = [{"set": {"family": "inet", "table": "filter", "name": "open",
                      "elem": [22, {"elem": {"val": 51820, "comment": "covey"}}]}}]  # fmt: skip
    input_ = chain("input", [port("@open"), ACCEPT], hook="input", policy="drop")
    assert drops(ruleset(named, input_), IN) == ""
    by_state = {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [
        ["established", ACCEPT], ["invalid", DROP],
        ["new", {"jump": {"target": "fresh"}}]]}}}  # fmt: skip
    input_ = chain("input", [by_state], hook="input", policy="drop")
    assert drops(ruleset(chain("fresh", [port(51820), ACCEPT]), input_), IN) == ""
    assert drops(ruleset(chain("fresh", [port(53), ACCEPT]), input_), IN) == INPUT


def test_chains_that_are_jumped_to_come_back_unless_they_decide() -> None:
    to = {"jump": {"target": "services"}}
    closing: list[Expr] = [[to], [DROP]]
    for rules, dropped in (
        ([[port(51820), ACCEPT]], False),
        ([[RETURN], [port(51820), ACCEPT]], True),
        ([[port(53), RETURN], [port(51820), ACCEPT]], False),
        ([[port(51820), RETURN], [ACCEPT]], True),
        ([], True),
    ):
        made = ruleset(chain("input", *closing, hook="input"), chain("services", *rules))
        assert (drops(made, IN) == INPUT) is dropped, rules


def test_a_chain_that_is_gone_to_does_not_come_back() -> None:
    goto: Expr = [{"goto": {"target": "services"}}]
    made = ruleset(chain("input", goto, [ACCEPT], hook="input", policy="drop"), chain("services"))
    assert drops(made, IN) == INPUT


def test_chains_that_call_each_other_end() -> None:
    made = ruleset(
        chain("input", [{"jump": {"target": "one"}}], hook="input", policy="drop"),
        chain("one", [{"jump": {"target": "two"}}]),
        chain("two", [{"jump": {"target": "one"}}]),
    )
    assert drops(made, IN) == ""


def test_hooks_families_and_ways_are_kept_apart() -> None:
    made = ruleset(chain("output", [port(51820, "sport"), DROP], hook="output"))
    assert drops(made, IN) == ""
    assert drops(made, OUT) == "inet filter output"
    six = {"chain": {"family": "ip6", "table": "t", "name": "c", "type": "filter",
                     "hook": "input", "policy": "drop"}}  # fmt: skip
    assert drops({"nftables": [six]}, IN) == ""
    assert drops({"nftables": [six]}, Packet("in", 6, port=51820)) == "ip6 t c"
    forward = chain("forward", hook="forward", policy="drop")
    assert drops(ruleset(forward), IN) == ""
    assert drops({}, IN) == ""
