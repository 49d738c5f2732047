"""The issuer: free addresses, unique names, usable keys."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import grant as grants
from agent.membership import issuer
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer

ROOT = NodeKey(b"r" * 32)
NOW = 1_800_000_000.5
WIDE = IPv4Network("10.77.0.0/16")
NARROW = IPv4Network("10.9.0.0/28")  # 14 addresses
NODES_KEYS = [NodeKey(number.to_bytes(32, "big")) for number in range(20)]
NODES = [key.id for key in NODES_KEYS]


def issue(
    node: NodeId,
    members: list[Certificate],
    name: str = "box",
    network: IPv4Network = WIDE,
    root: NodeKey = ROOT,
) -> Certificate:
    signer = Signer.of_root(root)
    return issuer.issue(signer, members, node, name, ["worker"], ["home"], network, NOW, 3600)


def test_what_is_issued_verifies() -> None:
    certificate = issue(NODES[0], [])
    certificates.verify(certificate, ROOT.id, addresses.mesh_id(ROOT.id), NOW)
    assert certificate.node_id == NODES[0]
    assert (certificate.name, certificate.roles, certificate.tags) == (
        "box",
        ("worker",),
        ("home",),
    )
    assert certificate.ipv4_counter == 0
    assert (certificate.not_before, certificate.not_after) == (int(NOW), int(NOW) + 3600)


def test_a_small_network_is_filled_with_no_address_twice_and_then_refused() -> None:
    members: list[Certificate] = []
    for node in NODES[:14]:
        members.append(issue(node, members, network=NARROW))
    taken = [member.ipv4(NARROW) for member in members]
    assert set(taken) == set(NARROW.hosts())
    assert len(taken) == 14
    with pytest.raises(MembershipError, match=r"every address of 10.9.0.0/28 is taken"):
        issue(NODES[14], members, network=NARROW)


@settings(max_examples=20)
@given(st.permutations(NODES[:10]))
def test_the_counter_is_the_smallest_that_is_free(order: list[NodeId]) -> None:
    members: list[Certificate] = []
    for node in order:
        taken = {member.ipv4(NARROW) for member in members}
        certificate = issue(node, members, network=NARROW)
        assert certificate.ipv4(NARROW) not in taken
        for smaller in range(certificate.ipv4_counter):
            assert addresses.overlay_ipv4(NARROW, node, smaller) in taken
        members.append(certificate)


def test_a_known_node_keeps_its_address_and_name() -> None:
    members: list[Certificate] = []
    for node in NODES[:14]:
        members.append(issue(node, members, network=NARROW))
    last = members[-1]
    assert last.ipv4_counter > 0
    again = issue(last.node_id, members[1:], name=last.name, network=NARROW)
    assert again.ipv4_counter == last.ipv4_counter
    assert again.name == last.name


def test_a_known_node_whose_address_another_has_gets_a_new_one() -> None:
    # All with counter 0, as if issuers had not known of each other: some addresses are the same.
    blind = [issue(node, [], str(node.short).lower(), NARROW) for node in NODES[:10]]
    shared = [c for c in blind if [o.ipv4(NARROW) for o in blind].count(c.ipv4(NARROW)) > 1]
    first = shared[0].ipv4(NARROW)
    low, *_, high = sorted((c for c in shared if c.ipv4(NARROW) == first), key=lambda c: c.node)
    assert issuer.collision(low, blind, NARROW) is None
    assert issuer.collision(high, blind, NARROW) is not None
    kept = issue(low.node_id, blind, low.name, NARROW)
    assert kept.ipv4_counter == low.ipv4_counter
    settled = issue(high.node_id, blind, high.name, NARROW)
    others = {c.ipv4(NARROW) for c in blind if c.node != high.node}
    assert settled.ipv4(NARROW) not in others
    assert issuer.collision(settled, blind, NARROW) is None


def test_of_two_with_one_name_the_lower_key_keeps_it() -> None:
    low, high = sorted(NODES[:2])
    both = [issue(low, []), issue(high, [])]
    assert both[0].name == both[1].name == "box"
    assert issuer.collision(both[0], both, WIDE) is None
    assert issuer.collision(both[1], both, WIDE) == both[0]
    assert issue(low, both).name == "box"
    assert issue(high, both).name == "box-2"
    # a new name is not taken from anyone, whatever the keys
    third = issue(NODES[2], both, name="pi")
    assert issue(low, [*both, third], name="pi").name == "pi-2"


def test_a_new_certificate_is_newer_even_within_the_second() -> None:
    first = issue(NODES[0], [])
    second = issue(NODES[0], [first])
    assert second.not_before == first.not_before + 1
    assert second.newer_than(first, NOW)


def test_a_granted_issuer_ends_with_its_grant() -> None:
    grant = grants.sign(ROOT, NODES_KEYS[0].id, int(NOW) - 50, int(NOW) + 100)
    signer = Signer(NODES_KEYS[0], ROOT.id, grant)

    def by_grant(now: float, lifetime_s: float | None = None) -> Certificate:
        return issuer.issue(signer, [], NODES[1], "pi", ["worker"], [], WIDE, now, lifetime_s)

    assert by_grant(NOW).not_after == int(NOW) + 100
    assert by_grant(NOW, 60).not_after == int(NOW) + 60
    assert by_grant(NOW - 90).not_before == int(NOW) - 50  # its clock went back
    with pytest.raises(MembershipError, match="right to issue has ended") as caught:
        by_grant(NOW + 200)
    assert "--root-key" in caught.value.hint


def test_what_only_the_root_renews_lasts_as_long_as_a_grant() -> None:
    assert issuer.lifetime(["worker", "gateway"]) == 90 * 86400
    assert issuer.lifetime(["worker", "admin"]) == issuer.lifetime(["issuer"]) == 365 * 86400


def test_names_are_made_unique() -> None:
    members: list[Certificate] = []
    for node in NODES[:3]:
        members.append(issue(node, members))
    assert [member.name for member in members] == ["box", "box-2", "box-3"]


@pytest.mark.parametrize("name", ["", "Box", "a" * 64, "-", "a.b"])
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        issue(NODES[0], [], name=name)


def test_the_negative_of_a_members_key_is_refused() -> None:
    raw = bytearray(NODES[0].ed25519)
    raw[31] ^= 0x80  # the other sign of x: the same y, so the same X25519 key
    twin = NodeId(bytes(raw))
    assert twin.wireguard_public == NODES[0].wireguard_public
    with pytest.raises(MembershipError, match="already has the WireGuard key"):
        issue(twin, [issue(NODES[0], [])])


def test_a_key_that_is_no_point_is_refused() -> None:
    with pytest.raises(MembershipError, match="is not a valid key"):
        issue(NodeId(bytes(32)), [])


@pytest.mark.parametrize("text", ["10.77.0.0/16", "192.168.1.0/24", "100.64.0.0/10", "10.0.0.0/28"])
def test_networks_that_can_be(text: str) -> None:
    assert str(issuer.check_network(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an IPv4 network"),
        ("10.77.0.1/16", "is not an IPv4 network"),
        ("10.77.0.0/33", "is not an IPv4 network"),
        ("fd00::/48", "is not an IPv4 network"),
        ("0.0.0.0/0", "is not a private network"),
        ("8.8.8.0/24", "is not a private network"),
        ("10.0.0.0/7", "is not an IPv4 network|is not a private network"),
        ("127.0.0.0/8", "is not a private network"),
        ("10.0.0.0/29", "is too small"),
    ],
)
def test_networks_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        issuer.check_network(text)
