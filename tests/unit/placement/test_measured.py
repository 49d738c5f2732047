"""What was measured: how long it is believed, by which way, and what is due."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity.keys import NodeId, NodeKey
from agent.placement.measured import (
    DEVICE_BUSY_S,
    DEVICE_FRESH_S,
    LINK_AGAIN_S,
    LINK_FRESH_S,
    Heard,
    LinkBook,
    Measured,
    Transfer,
    device_due,
    one_way,
    quiet,
)

ANNA, BEN = (NodeKey(bytes([number]) * 32).id for number in (1, 2))
NODES = st.sampled_from([ANNA, BEN])
WAYS = st.sampled_from(["lan 10.0.0.2", "punched 192.0.2.1", "relayed x"])
NOW = 1.8e9


def test_devices_are_measured_first_then_weekly_and_sooner_after_a_busy_machine() -> None:
    assert device_due(None, NOW, busy=False)
    assert not device_due(NOW - DEVICE_FRESH_S + 1, NOW, busy=False)
    assert device_due(NOW - DEVICE_FRESH_S, NOW, busy=False)
    assert not device_due(NOW - DEVICE_BUSY_S + 1, NOW, busy=True)
    assert device_due(NOW - DEVICE_BUSY_S, NOW, busy=True)
    assert device_due(NOW + 60, NOW, busy=False), "the clock was set back"


@given(st.floats(0, 1))
def test_a_turn_is_lost_where_either_way_loses_it(loss: float) -> None:
    assert abs(one_way(1 - (1 - loss) ** 2) - loss) < 1e-6
    assert one_way(1.5) == 1.0


def test_a_machine_is_quiet_by_its_load_for_each_cpu() -> None:
    assert quiet(0.5, 2)
    assert not quiet(0.6, 2)
    assert quiet(3.0, 16)


def test_a_link_is_what_the_path_tells_and_what_a_transfer_by_that_way_came_to() -> None:
    book, lan = LinkBook(), Heard("lan 10.0.0.2", 0.001, 0.0001, 0.02)
    assert book.link(ANNA, lan, NOW) == Measured(0.001, 0.0001, 0.02, None)
    book.carried(ANNA, Transfer(lan.way, 1e8, 0.002, NOW))
    assert book.link(ANNA, lan, NOW + 1) == Measured(0.001, 0.0001, 0.02, 1e8)
    # Without the path engine the fastest turn is the round trip; unknown by another way.
    assert book.link(ANNA, Heard(lan.way), NOW + 1) == Measured(0.002, 0.0, 0.0, 1e8)
    assert book.link(ANNA, Heard("relayed x"), NOW + 1) is None
    assert book.link(ANNA, lan, NOW + LINK_FRESH_S) == Measured(0.001, 0.0001, 0.02, None)


def test_a_way_that_comes_back_is_known_again() -> None:
    book = LinkBook()
    book.carried(ANNA, Transfer("lan a", 1e8, 0.001, NOW))
    book.carried(ANNA, Transfer("relayed x", 1e6, 0.05, NOW))
    assert book.due({ANNA: "lan a"}, NOW + 9) == []
    assert book.due({ANNA: "relayed x"}, NOW + 9) == []
    assert book.due({ANNA: "punched b"}, NOW + 9) == [ANNA]


def test_what_was_tried_is_left_alone_a_while_and_the_longest_untried_comes_first() -> None:
    book, ways = LinkBook(), {ANNA: "lan a", BEN: "lan b"}
    assert set(book.due(ways, NOW)) == {ANNA, BEN}
    book.tried(ANNA, NOW)
    book.tried(BEN, NOW - 50)
    assert book.due(ways, NOW + 60) == []
    assert book.due(ways, NOW + 80) == [BEN]
    assert book.due(ways, NOW + LINK_AGAIN_S) == [BEN, ANNA]
    book.keep([BEN])
    assert book.due(ways, NOW + 60) == [ANNA]


Step = tuple[NodeId, str, float, float]


@settings(max_examples=40)
@given(st.lists(st.tuples(NODES, WAYS, st.floats(1.0, 1e12), st.floats(0, 2 * LINK_FRESH_S))))
def test_the_newest_transfer_by_a_way_counts_and_is_kept_with_the_others(steps: list[Step]) -> None:
    book, last, now = LinkBook(), dict[tuple[NodeId, str], tuple[float, float]](), NOW
    for node, way, bytes_s, later_s in steps:
        now += later_s / 4
        book.tried(node, now)
        book.carried(node, Transfer(way, bytes_s, 0.01, now))
        last[node, way] = bytes_s, now
    kept = LinkBook()
    kept.restore(book.transfers())
    for (node, way), (bytes_s, at) in last.items():
        for each in (book, kept):
            link = each.link(node, Heard(way, 0.02), now)
            fresh = now - at < LINK_FRESH_S
            assert link == Measured(0.02, 0.0, 0.0, bytes_s if fresh else None)
        assert (kept.due({node: way}, now) == []) == (now - at < LINK_FRESH_S)


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=9, max_size=20))
def test_the_ways_of_a_node_are_bounded(ways: list[str]) -> None:
    book = LinkBook()
    for number, way in enumerate(ways):
        book.carried(ANNA, Transfer(way, 1.0, 0.0, NOW + number))
    assert [transfer.way for transfer in book.transfers()[ANNA]] == ways[-8:]
