"""The lookup core against a simulated network: no sockets, time is a number."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from agent.discovery.contact import Contact
from agent.discovery.lookup import (
    ASKED_MAX,
    CANDIDATES_MAX,
    CREDIT,
    EARNED,
    MORE_CREDIT,
    PARALLEL,
    REPLICAS,
    Lookup,
)
from agent.identity.keys import NodeId

MESH = b"m" * 32
SLOW_S, ROUND_TRIP_S, TIMEOUT_S = 0.1, 0.02, 0.75
Answer = Callable[[Contact, bytes], list[Contact] | None]


def contact(number: int, port: int = 4002) -> Contact:
    return Contact(
        MESH, NodeId(number.to_bytes(32, "big")), f"10.0.{number >> 8}.{number & 255}", port
    )


def nearest(contacts: list[Contact], target: bytes, count: int) -> list[Contact]:
    number = int.from_bytes(target, "big")
    return sorted(contacts, key=lambda c: c.long_id ^ number)[:count]


class Network:
    """Nodes that each know 16 neighbours and 16 others; some silent, some liars."""

    def __init__(self, size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.nodes = [contact(n) for n in range(1, size + 1)]
        self.tables = {
            c.id: nearest(self.nodes, c.id, 17)[1:] + self.rng.sample(self.nodes, 16)
            for c in self.nodes
        }
        self.silent: set[bytes] = set()
        self.liars: dict[bytes, Callable[[bytes], list[Contact]]] = {}
        self.asked = 0
        self.took_s = 0.0

    def find(self, target: bytes) -> Lookup:
        lookup = Lookup(target, b"o" * 20, SLOW_S)
        alive = [c for c in self.nodes if c.id not in self.silent and c.id not in self.liars]
        lookup.offer(self.rng.sample(alive, 3))
        now, pending = 0.0, list[tuple[float, int, Contact]]()
        while not lookup.finished(now):
            for one in lookup.ask(now):
                self.asked += 1
                wait = TIMEOUT_S if self._mute(one) else ROUND_TRIP_S
                pending.append((now + wait, self.asked, one))
            assert sum(1 for at, _, _ in pending if at - now <= ROUND_TRIP_S) <= PARALLEL
            wake = now + max(lookup.wake_in(now), 0.001)
            at, _, one = min(pending, default=(wake, 0, None))
            if one is None or at > wake:
                now = wake
                continue
            pending.remove(min(pending))
            now = max(now, at)
            if self._mute(one):
                lookup.failed(one)
            else:
                lookup.offer(self._answer(one, target))
                lookup.answered(one)
        self.took_s = now
        return lookup

    def _mute(self, one: Contact) -> bool:
        return one.id in self.silent or one.id not in self.tables

    def _answer(self, one: Contact, target: bytes) -> list[Contact]:
        if one.id in self.liars:
            return self.liars[one.id](target)
        return nearest(self.tables[one.id], target, 16)


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_nearest(seed: int) -> None:
    network = Network(200, seed)
    target = network.rng.randbytes(20)
    found = network.find(target).nearest()
    assert [c.id for c in found] == [c.id for c in nearest(network.nodes, target, REPLICAS)]
    assert network.asked <= 40


@pytest.mark.parametrize("seed", range(4))
def test_a_third_of_silent_nodes_costs_one_timeout_in_all(seed: int) -> None:
    network = Network(200, seed)
    network.silent = {c.id for c in network.rng.sample(network.nodes, 66)}
    target = network.rng.randbytes(20)
    found = network.find(target).nearest()
    alive = [c for c in network.nodes if c.id not in network.silent]
    right = {c.id for c in nearest(alive, target, REPLICAS)}
    assert len(right & {c.id for c in found}) >= REPLICAS - 1
    assert network.took_s < 2 * TIMEOUT_S


@pytest.mark.parametrize("seed", range(4))
def test_liars_cost_questions_but_do_not_hide_the_nearest(seed: int) -> None:
    network = Network(200, seed)
    numbers = iter(range(1000, 10_000))

    def invent(target: bytes) -> list[Contact]:
        made = [contact(next(numbers)) for _ in range(100)]
        return nearest(made, target, 16)

    network.liars = {c.id: invent for c in network.rng.sample(network.nodes, 20)}
    target = network.rng.randbytes(20)
    found = network.find(target).nearest()
    right = {c.id for c in nearest(network.nodes, target, REPLICAS)}
    assert len(right & {c.id for c in found}) >= REPLICAS - 1
    assert network.asked <= ASKED_MAX


def test_endless_inventions_end() -> None:
    lookup, made, asked, now = Lookup(bytes(20), b"o" * 20, SLOW_S), iter(range(1, 100_000)), 0, 0.0
    lookup.offer([contact(next(made))])
    while not lookup.finished(now):
        for one in lookup.ask(now):
            asked += 1
            lookup.offer([contact(next(made)) for _ in range(200)])
            lookup.answered(one)
        assert len(lookup._candidates) <= CANDIDATES_MAX
    assert asked <= ASKED_MAX


def test_alone_it_is_over_at_once() -> None:
    lookup = Lookup(bytes(20), b"o" * 20, SLOW_S)
    assert lookup.finished(0.0)
    assert lookup.nearest() == []
    assert not lookup.settled(0.0, 4)


def test_it_never_asks_itself() -> None:
    me = contact(1)
    lookup = Lookup(bytes(20), me.id, SLOW_S)
    lookup.offer([me])
    assert lookup.ask(0.0) == []


def test_a_wrong_address_does_not_hide_a_node() -> None:
    wrong, right = contact(1, port=1), contact(1, port=2)
    lookup = Lookup(bytes(20), b"o" * 20, SLOW_S)
    lookup.offer([wrong])
    assert lookup.ask(0.0) == [wrong]
    lookup.offer([right])
    assert lookup.ask(0.01) == []
    assert lookup.ask(SLOW_S) == [right]
    lookup.answered(right)
    assert lookup.finished(SLOW_S), "the other address of a node that answered is not awaited"


def test_a_slow_answer_still_counts() -> None:
    slow, fast = contact(1), contact(2)
    lookup = Lookup(slow.id, b"o" * 20, SLOW_S)
    lookup.offer([slow, fast])
    lookup.ask(0.0)
    lookup.answered(fast)
    assert not lookup.finished(SLOW_S)
    lookup.answered(slow)
    assert lookup.finished(SLOW_S)
    assert lookup.nearest() == [slow, fast]


def test_a_liars_claims_wait_for_everyone_elses() -> None:
    lookup = Lookup(bytes(20), b"o" * 20, SLOW_S)
    ordered = sorted(map(contact, range(1, 40)), key=lambda c: c.long_id)
    invented, known, real = ordered[:20], ordered[20:22], ordered[22:30]
    lookup.offer(known, known=True)
    assert lookup.ask(0.0) == known, "what the asker knows itself needs no credit"
    lookup.answered(known[0])
    lookup.offer(invented)
    lookup.answered(known[1])
    lookup.offer(real)
    # The liar's are the nearest, but it has credit for two; the rest of the places go to others.
    asked = lookup.ask(0.1)
    assert [c for c in asked if c in invented] == invented[:CREDIT]
    assert [c for c in asked if c in real] == real[:CREDIT]
    for one in real[:CREDIT]:
        lookup.answered(one)
    # Whoever answers earns credit for who offered it, whoever does not earns nothing.
    earned = CREDIT * (1 + EARNED)
    assert lookup.ask(0.1 + SLOW_S) == real[CREDIT : CREDIT + earned]


def test_when_nobody_elses_are_left_a_source_gets_a_little_more() -> None:
    lookup = Lookup(bytes(20), b"o" * 20, SLOW_S)
    one, *claims = sorted(map(contact, range(1, 20)), key=lambda c: c.long_id)
    lookup.offer([one], known=True)
    lookup.ask(0.0)
    lookup.answered(one)
    lookup.offer(claims)
    asked, now = list[Contact](), 0.0
    while chosen := lookup.ask(now):
        asked += chosen
        for silent in chosen:
            lookup.failed(silent)
        now += 1
    assert len(asked) == CREDIT + MORE_CREDIT
    assert lookup.finished(now)


def test_one_answer_names_a_node_once() -> None:
    lookup = Lookup(bytes(20), b"o" * 20, SLOW_S)
    lookup.offer([contact(1, port) for port in range(1, 9)])
    lookup.offer([contact(1, 77)])
    assert [c.contact.port for c in lookup._order] == [1, 77]


def test_a_wider_lookup_goes_on_where_it_ended() -> None:
    contacts = sorted(map(contact, range(1, 31)), key=lambda c: c.long_id)
    lookup, now = Lookup(bytes(20), b"o" * 20, SLOW_S), 0.0
    lookup.offer(contacts, known=True)
    for closest in (REPLICAS, 2 * REPLICAS):
        lookup.widen(closest)
        while chosen := lookup.ask(now):
            for one in chosen:
                lookup.answered(one)
            now += 0.01
        assert lookup.finished(now)
        assert lookup.nearest() == contacts[:closest]
        assert lookup.asked == closest


@pytest.mark.parametrize("seed", range(4))
def test_it_is_astray_when_the_nearest_are_not_near_for_so_large_a_mesh(seed: int) -> None:
    rng = random.Random(seed)
    nodes, target = [contact(number) for number in range(1, 2001)], rng.randbytes(20)

    def ended(among: list[Contact]) -> Lookup:
        lookup = Lookup(target, b"o" * 20, SLOW_S)
        lookup.offer(nearest(among, target, REPLICAS), known=True)
        while chosen := lookup.ask(0.0):
            for one in chosen:
                lookup.answered(one)
        assert lookup.finished(0.0)
        return lookup

    assert not ended(nodes).astray(2000.0)
    few = rng.sample(nodes, 200)
    assert ended(few).astray(2000.0)
    assert not ended(few).astray(200.0)
    assert not ended(few[: REPLICAS - 1]).astray(2000.0), "nobody else is known"
