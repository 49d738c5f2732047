"""Whose stage was lost, and who is left out for it."""

from agent.deploy.carried import LOSSES_S, Losses, lost_node
from agent.identity.keys import NodeId

OWN, DEN, ATTIC = (NodeId(bytes([number]) * 32) for number in (1, 2, 3))


def never(_node: NodeId) -> float:
    return 0.0


def test_one_loss_is_no_reason_two_of_late_are() -> None:
    losses = Losses()
    losses.add(DEN, 100.0)
    losses.add(ATTIC, 110.0)
    assert losses.repeated(120.0, never) == frozenset()
    losses.add(DEN, 130.0)
    assert losses.repeated(131.0, never) == {DEN}
    assert losses.repeated(100.0 + LOSSES_S, never) == frozenset()
    losses.add(DEN, 150.0)
    assert losses.repeated(100.0 + LOSSES_S, never) == {DEN}, "the last two count"


def test_who_is_there_anew_since_is_taken_again() -> None:
    losses = Losses()
    losses.add(DEN, 100.0)
    losses.add(DEN, 110.0)
    assert losses.repeated(120.0, lambda _: 105.0) == {DEN}
    assert losses.repeated(120.0, lambda _: 115.0) == frozenset()


def test_stages_are_numbered_by_the_rings_processes_and_the_head_is_none() -> None:
    nodes = [OWN, DEN, ATTIC]
    assert [lost_node(nodes, stage) for stage in (-1, 0, 1, 2, 3)] == [None, None, DEN, ATTIC, None]
