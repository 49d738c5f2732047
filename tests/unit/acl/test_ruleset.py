"""The ruleset says what `explain` says; what it refuses besides; and that its text is stable."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

import acl_worlds as worlds
import pytest
from acl_worlds import COVEY, INTERFACE, Interpreter, Packet
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.acl.policy import Policy, parse
from agent.acl.ruleset import removal, ruleset, table_name
from agent.acl.verdict import explain

COUNTERS = ("covey", "default", "strangers", "around", "forwarded")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(0, 6))
def test_the_ruleset_agrees_with_explain(seed: int, count: int, rules: int) -> None:
    random = Random(seed)
    members = worlds.members(random, count)
    policy = worlds.policy(random, count, rules)
    own = random.choice(members)
    table = Interpreter(ruleset(INTERFACE, policy, COVEY, own, members))
    for source in members:
        if source == own:
            continue
        for protocol, port in worlds.all_ports():
            verdict = explain(policy, COVEY, source, own, protocol, port)
            counter = verdict.rule if isinstance(verdict.rule, str) else f"rule{verdict.rule}"
            for address in (source.ipv6, source.ipv4):
                before = table.counted[counter]
                to = own.ipv6 if address.version == 6 else own.ipv4
                done = table.input(Packet(address, to, protocol, port))
                assert done == ("accept" if verdict.allowed else "reject"), verdict
                assert table.counted[counter] == before + 1


def only(own_number: int = 0, count: int = 3, text: str = "") -> Interpreter:
    members = [worlds.subject(n) for n in range(count)]
    policy = parse(text.encode(), "acl.toml")
    return Interpreter(ruleset(INTERFACE, policy, COVEY, members[own_number], members))


OWN, OTHER = worlds.subject(0), worlds.subject(1)


@pytest.mark.parametrize("address", ["fd00:77::ffff", "10.77.9.9", "fd00:77::10", "10.77.0.16"])
def test_who_is_no_member_gets_no_answer(address: str) -> None:
    """Nor does this node's own address: it cannot come from outside."""
    table = only()
    packet = Packet(ip_address(address), OWN.ipv6, "tcp", 4001)
    assert table.input(packet) == "drop"
    assert table.counted["strangers"] == 1


@pytest.mark.parametrize("protocol", ["other", "icmp", "udp"])
def test_all_ports_are_all_protocols(protocol: str) -> None:
    rule = '[[rule]]\nfrom = "*"\nto = "*"\nports = "*"\naction = "allow"\n'
    packet = Packet(OTHER.ipv6, OWN.ipv6, protocol, 0)
    assert only(text=rule).input(packet) == "accept"
    assert only(text=rule.replace("allow", "deny")).input(packet) == "reject"


def test_other_interfaces_are_left_alone_but_for_overlay_addresses() -> None:
    table = only()
    outside = ip_address("198.18.1.1")
    for iif in ("eth0", "lo"):
        assert table.input(Packet(outside, ip_address("198.18.1.2"), "tcp", 22, iif)) == "accept"
    for own in (OWN.ipv6, OWN.ipv4):
        assert table.input(Packet(outside, own, "tcp", 7070, "eth0")) == "drop"
        assert table.input(Packet(own, own, "tcp", 7070, "lo")) == "accept"
    assert table.counted["around"] == 2


def test_nothing_is_forwarded_from_or_to_the_overlay() -> None:
    table = only(text='[[rule]]\nfrom = "*"\nto = "*"\nports = "*"\naction = "allow"\n')
    packet = Packet(OTHER.ipv6, ip_address("2001:db8::1"), "tcp", 443, INTERFACE, "eth0")
    assert table.forward(packet) == "drop"
    assert table.forward(replace(packet, iif="eth0", oif=INTERFACE)) == "drop"
    assert table.forward(replace(packet, iif="eth0", oif="eth1")) == "accept"


def test_an_address_of_two_members_identifies_neither() -> None:
    members = [worlds.subject(n) for n in range(4)]
    members[2] = replace(members[2], ipv4=members[1].ipv4)
    table = Interpreter(ruleset(INTERFACE, Policy(), COVEY, members[0], members))
    assert table.input(Packet(members[1].ipv4, OWN.ipv4, "tcp", 4001)) == "drop"
    assert table.input(Packet(members[3].ipv4, OWN.ipv4, "tcp", 4001)) == "accept"
    for member in members[1:]:
        assert table.input(Packet(member.ipv6, OWN.ipv6, "tcp", 4001)) == "accept"


def test_a_node_that_is_no_member_lets_nobody_in() -> None:
    members = [worlds.subject(n) for n in range(3)]
    table = Interpreter(ruleset(INTERFACE, Policy(), COVEY, None, members))
    assert table.input(Packet(OTHER.ipv6, OWN.ipv6, "tcp", 4001)) == "drop"


def test_the_text_depends_on_what_it_says_alone() -> None:
    random = Random(3)
    members = worlds.members(random, 40)
    policy = worlds.policy(random, 40, 8)
    text = ruleset(INTERFACE, policy, COVEY, members[0], members)
    shuffled = list(members)
    random.shuffle(shuffled)
    assert ruleset(INTERFACE, policy, COVEY, members[0], shuffled) == text
    assert ruleset(INTERFACE, policy, COVEY, members[0], members[1:]) == text
    assert ruleset(INTERFACE, policy, COVEY, members[0], members[:-1]) != text


def test_rules_with_the_same_sources_share_their_sets() -> None:
    rule = '[[rule]]\nfrom = ["tag:gpu"]\nto = "*"\nports = ["tcp:{}"]\naction = "allow"\n'
    members = [worlds.subject(n, tags=("gpu",) if n % 2 else ()) for n in range(10)]
    policy = parse("".join(rule.format(port) for port in range(1, 50)).encode(), "acl.toml")
    table = Interpreter(ruleset(INTERFACE, policy, COVEY, members[0], members))
    assert len(table.sets) == 4
    assert set(table.counted) == {*COUNTERS, *(f"rule{n}" for n in range(1, 50))}


def test_a_rule_for_other_nodes_is_not_in_the_table() -> None:
    rule = '[[rule]]\nfrom = "*"\nto = ["name:node-{}"]\nports = ["tcp:22"]\naction = "allow"\n'
    table = only(text=rule.format(2) + rule.format(0))
    assert set(table.counted) == {*COUNTERS, "rule2"}


@pytest.mark.parametrize(
    ("interface", "table"),
    [("covey0", "covey-covey0"), ("wg_a.b-c", "covey-wg_a.b-c"), ("a=b+c", "covey-a/eb/pc")],
)
def test_every_interface_has_a_table_of_its_own(interface: str, table: str) -> None:
    assert table_name(interface) == table
    assert removal(interface) == f"table inet {table}\ndelete table inet {table}\n"
