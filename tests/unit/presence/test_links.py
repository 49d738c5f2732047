"""Links: at least three each, all the living connected, few changes when one dies."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity.keys import NodeId
from agent.presence.links import LINKS, PASSED_OVER_S, PATIENCE_S, LinkChooser, choice


def nodes(count: int, salt: int = 0) -> list[NodeId]:
    return [NodeId(hashlib.sha256(b"%d-%d" % (salt, n)).digest()) for n in range(count)]


def reached(members: list[NodeId]) -> int:
    """Return to how many a message comes that the first member sends along all links."""
    links: dict[NodeId, set[NodeId]] = {node: set() for node in members}
    for node in members:
        for other in choice(node, [m for m in members if m != node]):
            links[node].add(other)
            links[other].add(node)
    found, waiting = set(), [members[0]]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += links[node]
    return len(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_all_are_connected_and_each_has_three_links(count: int, salt: int) -> None:
    members = nodes(count, salt)
    assert reached(members) == count
    for node in members:
        chosen = choice(node, [m for m in members if m != node])
        assert len(set(chosen)) == min(LINKS, count - 1)
        assert node not in chosen


def test_one_death_changes_the_links_of_its_neighbours_only() -> None:
    members = nodes(60)
    dead = members[17]
    for node in members:
        if node == dead:
            continue
        before = choice(node, [m for m in members if m != node])
        after = choice(node, [m for m in members if m not in (node, dead)])
        if dead in before:
            assert len(set(before) & set(after)) == LINKS - 1
        else:
            assert after == before


def test_who_cannot_be_linked_is_passed_over_and_tried_again_later() -> None:
    members = nodes(10)
    own, others = members[0], members[1:]
    chooser = LinkChooser(own)
    first = chooser.choose(others, frozenset(), 0.0)
    stubborn, linked = first[0], frozenset(first[1:])
    chooser.choose(others, linked, PATIENCE_S - 1)
    second = chooser.choose(others, linked, PATIENCE_S + 1)
    assert stubborn not in second
    assert len(second) == LINKS
    assert stubborn in chooser.choose(others, linked | set(second), PATIENCE_S + PASSED_OVER_S + 2)


@given(st.integers(2, 8), st.integers(1, 12))
def test_there_are_three_links_to_make_whoever_was_passed_over(count: int, rounds: int) -> None:
    """A node that nobody heard for a while is heard by all of a sudden."""
    members = nodes(count)
    chooser = LinkChooser(members[0])
    for number in range(rounds):
        now = 0.7 * number * PATIENCE_S
        chosen = chooser.choose(members[1:], frozenset(), now)
        assert len(set(chosen)) == min(LINKS, count - 1)


def test_with_nobody_else_left_those_passed_over_are_tried() -> None:
    own, other = nodes(2)
    chooser = LinkChooser(own)
    assert chooser.choose([other], frozenset(), 0.0) == (other,)
    chooser.choose([other], frozenset(), PATIENCE_S + 1)
    assert chooser.choose([other], frozenset(), PATIENCE_S + 2) == (other,)


def test_alone_there_is_nobody_to_link_to() -> None:
    own = nodes(1)[0]
    assert LinkChooser(own).choose([own], frozenset(), 0.0) == ()
