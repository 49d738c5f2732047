"""Who is doubted, and for how long."""

from __future__ import annotations

from agent.deploy.doubts import DOUBT_S, Doubts
from agent.identity.keys import NodeId

ONE, OTHER = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)


def test_a_doubt_lasts_until_trust_or_its_time_is_over() -> None:
    doubts = Doubts()
    assert doubts.nodes(0.0) == frozenset()
    doubts.suspect(ONE, 0.0)
    doubts.suspect(OTHER, 1.0)
    assert doubts.nodes(2.0) == {ONE, OTHER}
    doubts.trust(OTHER)
    doubts.trust(OTHER)
    assert doubts.nodes(DOUBT_S - 0.1) == {ONE}
    doubts.suspect(ONE, DOUBT_S - 0.1)  # another hint
    assert doubts.nodes(DOUBT_S + 1.0) == {ONE}
    assert doubts.nodes(2 * DOUBT_S) == frozenset()
