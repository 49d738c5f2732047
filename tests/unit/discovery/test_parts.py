"""Liveness, the routing table, endpoints and the saved state."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kademlia.node import Node

from agent.discovery import liveness, saved
from agent.discovery.allowance import Allowance
from agent.discovery.contact import Contact
from agent.discovery.endpoints import resolve
from agent.discovery.liveness import Liveness
from agent.discovery.port import SystemPorts, open_port
from agent.discovery.roster import Roster
from agent.discovery.routing import Table
from agent.errors import EnvironmentFault, StateError
from agent.identity.keys import NodeId, NodeKey

MESH = b"m" * 32
PLACE = (b"i" * 20, "192.0.2.1", 4002)


def contact(number: int, port: int = 4002) -> Contact:
    return Contact(MESH, NodeId(number.to_bytes(32, "big")), "192.0.2.1", port)


# -- liveness


def test_a_silent_place_is_passed_over_longer_each_time_until_it_is_heard() -> None:
    life, now, spans = Liveness(), 100.0, []
    for _ in range(7):
        life.silent(PLACE, now)
        span = next(s for s in (5, 10, 20, 40, 80, 120) if not life.is_dead(PLACE, now + s))
        assert life.is_dead(PLACE, now + span - 0.1)
        spans.append(span)
        now += 1000
    assert spans == [5, 10, 20, 40, 80, 120, 120]
    life.heard(PLACE)
    assert not life.is_dead(PLACE, now)
    life.silent(PLACE, now)
    assert not life.is_dead(PLACE, now + liveness.DEAD_MIN_S)


def test_one_address_being_dead_says_nothing_of_another() -> None:
    life = Liveness()
    life.silent(PLACE, 0.0)
    assert not life.is_dead((PLACE[0], "192.0.2.2", 4002), 1.0)


def test_a_proof_is_asked_for_once_in_a_while() -> None:
    life = Liveness()
    assert life.may_prove(PLACE, 0.0)
    assert not life.may_prove(PLACE, liveness.PROVE_AGAIN_S - 1)
    assert life.may_prove(PLACE, liveness.PROVE_AGAIN_S)
    life.answered(PLACE, 20.0)
    assert not life.may_prove(PLACE, 20.0 + liveness.PROOF_S - 1)
    life.silent(PLACE, 30.0)
    assert life.may_prove(PLACE, 30.0 + liveness.PROVE_AGAIN_S)


def test_patience_grows_with_round_trips_and_has_bounds() -> None:
    life = Liveness()
    assert (life.slow_s, life.repeat_s, life.timeout_s) == (0.1, 0.25, 0.75)
    for _ in range(50):
        life.measured(0.15)
    assert life.slow_s == pytest.approx(0.45, rel=0.01)
    assert life.timeout_s == pytest.approx(0.9, rel=0.01)
    for _ in range(50):
        life.measured(9.0)
    assert (life.slow_s, life.repeat_s, life.timeout_s) == (0.5, 0.5, 1.0)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PLACES_MAX", 4)
    life = Liveness()
    for number in range(20):
        place = (bytes(20), "192.0.2.1", number)
        life.silent(place, 0.0)
        life.may_prove(place, 0.0)
    assert len(life._dead) <= 4
    assert len(life._prove_after) <= 4
    life.silent(PLACE, 100.0)
    assert life.is_dead(PLACE, 101.0), "old entries make room"


# -- routing


@settings(max_examples=20, deadline=None)
@given(
    numbers=st.sets(st.integers(1, 2**64), min_size=1, max_size=60),
    target=st.binary(min_size=20, max_size=20),
)
def test_the_table_returns_the_truly_nearest_of_those_it_holds(
    numbers: set[int], target: bytes
) -> None:
    table = Table(None, 4, Node(b"o" * 20))
    for number in numbers:
        table.add_contact(contact(number))
    held = table.contacts()
    assert len({c.id for c in held}) == len(held)
    assert all(len(bucket) <= 4 for bucket in table.buckets)
    assert all(table.get(c.id) is c for c in held)
    wanted = int.from_bytes(target, "big")
    right = sorted(held, key=lambda c: c.long_id ^ wanted)[:4]
    assert table.nearest(target, 4) == right
    assert (
        table.nearest(target, 4, lambda c: c is not right[0])
        == [c for c in sorted(held, key=lambda c: c.long_id ^ wanted) if c is not right[0]][:4]
    )


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "move", "leave", "refuse", "flush"]), st.integers(1, 40)),
        max_size=80,
    )
)
def test_the_contacts_are_those_in_the_buckets_whatever_happened(
    steps: list[tuple[str, int]],
) -> None:
    table = Table(None, 4, Node(b"o" * 20))
    for step, number in steps:
        table.contacts().clear()  # the answer is the caller's own
        one = contact(number)
        match step:
            case "add":
                table.add_contact(one)
            case "move":
                table.add_contact(contact(number, port=9))
            case "leave":
                table.remove_place(one.place)
            case "refuse":
                table.remove_all(lambda c, node=one.node: c.node == node)
            case _:
                table.flush()
        assert table.contacts() == [c for b in table.buckets for c in b.nodes.values()]


def test_a_table_knows_the_size_of_the_mesh_by_its_neighbourhood() -> None:
    for own in (b"a", b"k", b"z"):
        table, sizes, known = Table(None, 16, Node(own * 20)), {}, {}
        for number in range(1, 3001):
            table.add_contact(contact(number))
            sizes[number], known[number] = table.size(), len(table.contacts())
        assert [sizes[number] for number in (1, 2, 15)] == [1, 2, 15]
        for number in (16, 30, 100, 300, 1000, 3000):
            assert number / 2 < sizes[number] < number * 2
        # What the number of contacts does not show.
        assert sizes[1000] > 1.5 * sizes[360]
        assert known[1000] < 1.5 * known[360]
        few = set(table.contacts()[:3])
        table.remove_all(lambda c, few=few: c not in few)
        assert table.size() == 3


def test_a_contact_leaves_only_from_its_own_address() -> None:
    table = Table(None, 16, Node(b"o" * 20))
    table.add_contact(contact(1))
    assert not table.remove_place(contact(1, port=1).place)
    assert table.get(contact(1).id) is not None
    assert table.remove_place(contact(1).place)
    assert table.contacts() == []


def test_a_contact_that_leaves_makes_room_for_a_replacement() -> None:
    table = Table(None, 2, Node(b"\xff" * 20))
    far = [c for c in map(contact, range(1, 200)) if c.id[0] < 0x40][:3]
    near = [c for c in map(contact, range(1, 200)) if c.id[0] >= 0xC0][:3]
    for one in near + far:
        table.add_contact(one)
    full = [one for one in far if table.get(one.id) is not None]
    assert len(full) < 3
    table.remove_place(full[0].place)
    assert sum(table.get(one.id) is not None for one in far) == len(full)


# -- saved state


def test_the_saved_state_comes_back() -> None:
    contacts = [contact(1), Contact(MESH, NodeId(b"x" * 32), "2001:db8::1", 9)]
    found, endpoints = saved.parse(MESH, saved.dump(contacts, ["host.example:1"]))
    assert [c.place for c in found] == [c.place for c in contacts]
    assert endpoints == ["host.example:1"]


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_state_is_a_state_error_or_another_state(data: st.DataObject) -> None:
    raw = bytearray(saved.dump([contact(1)], ["h:1"]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        saved.parse(MESH, bytes(raw))
    except StateError as error:
        assert "damaged" in error.message
        assert error.hint


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\x93\x02\x90\x90", b"\x93\x01\x91\xc4\x01x\x90"])
def test_what_was_never_saved_is_a_state_error(raw: bytes) -> None:
    with pytest.raises(StateError, match="damaged"):
        saved.parse(MESH, raw)


# -- endpoints and the port


async def test_resolving_passes_over_what_cannot_be() -> None:
    found = await resolve(["127.0.0.1:5", "nonsense", "[::1]:6", "127.0.0.1:5", "a..b:1"])
    assert found == [("127.0.0.1", 5), ("::1", 6)]


async def test_names_are_resolved() -> None:
    assert ("127.0.0.1", 7) in await resolve(["localhost:7"])


def test_a_port_in_use_is_one_clear_line() -> None:
    with open_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=f"UDP port {port} .discovery. is in use") as e:
            open_port("127.0.0.1", port)
    assert e.value.hint


def test_an_address_of_another_machine_is_one_clear_line() -> None:
    with pytest.raises(EnvironmentFault, match=r"cannot open UDP 192\.0\.2\.1"):
        open_port("192.0.2.1", 0)


def test_all_addresses_means_ipv4_too() -> None:
    with open_port("::", 0) as opened, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", opened.getsockname()[1]))
        opened.settimeout(5)
        assert opened.recvfrom(10)[0] == b"x"


def test_without_ipv6_all_addresses_are_the_ipv4_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr("agent.discovery.port.socket.socket", without)
    with open_port("::", 0) as opened:
        assert opened.getsockname()[0] == "0.0.0.0"


# -- allowances and the roster


def test_an_allowance_saves_up_and_no_more() -> None:
    allowance = Allowance(rate=2.0, burst=3.0)
    assert [allowance.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert not allowance.take(10.4)
    assert allowance.take(10.5)
    assert not allowance.take(10.6)
    assert [allowance.take(99.0) for _ in range(4)] == [True, True, True, False]
    assert not allowance.take(98.0), "a clock that goes back gives nothing"


def test_the_roster_keeps_those_who_spoke_last(make_root: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("agent.discovery.roster.SENDERS_MAX", 3)
    root = make_root()
    now = 1_800_000_000.0
    roster = Roster(root.verifier(), b"ours")
    nodes = [NodeKey(bytes([n]) * 32).id for n in range(1, 6)]
    for node in nodes[:3]:
        assert roster.learn(node, root.certify(node), 0, now)
    assert roster.learn(nodes[0], b"", 7, now), "it is known"
    assert roster.generation(nodes[0]) == 7
    assert roster.learn(nodes[3], root.certify(nodes[3]), 0, now)
    assert [roster.knows(node) for node in nodes] == [True, False, True, True, False]
    assert not roster.learn(nodes[1], b"", 0, now), "it has to show its certificate again"
    assert not roster.learn(nodes[1], root.certify(nodes[2]), 0, now)
    root.revoked.add(nodes[2])
    assert not roster.is_member(nodes[2], now + 10)
    roster.recheck(now + 10)
    assert len(roster) == 2


def test_a_new_certificate_is_shown_to_all_again(make_root: Any) -> None:
    roster = Roster(make_root().verifier(), b"ours")
    node = NodeKey(b"k" * 32).id
    roster.showed(node)
    roster.set_certificate(b"ours")
    assert roster.has_ours(node)
    roster.set_certificate(b"newer")
    assert not roster.has_ours(node)
    assert roster.certificate == b"newer"


def test_a_table_stays_small_and_keeps_few_replacements() -> None:
    table = Table(None, 16, Node(b"o" * 20))
    contacts = [contact(number) for number in range(1, 3001)]
    for one in contacts:
        table.add_contact(one)
    assert 100 < len(table.contacts()) < 16 * 14
    assert all(len(bucket.replacement_nodes) <= 4 for bucket in table.buckets)
    out = [one for one in contacts if table.get(one.id) is None]
    assert not any(table.has_room(one) for one in out), "none of them would be kept"
    gone = table.remove_all(lambda c: c.node.ed25519[-1] % 2 == 0)
    assert gone
    assert all(c.node.ed25519[-1] % 2 for c in table.contacts())
    left = [c for b in table.buckets for c in b.replacement_nodes.values()]
    assert all(c.node.ed25519[-1] % 2 for c in left)


# -- a port of its own for one datagram


def test_a_probe_leaves_from_a_port_of_its_own() -> None:
    with open_port("127.0.0.1", 0) as opened:
        opened.settimeout(5)
        sources = set()
        for _ in range(3):
            SystemPorts().send_once(b"probe", opened.getsockname())
            datagram, source = opened.recvfrom(10)
            assert datagram == b"probe"
            sources.add(source)
        assert opened.getsockname() not in sources


def test_what_the_system_cannot_send_is_lost() -> None:
    SystemPorts().send_once(b"x", ("255.255.255.255", 9))
    SystemPorts().send_once(bytes(70_000), ("127.0.0.1", 9))
