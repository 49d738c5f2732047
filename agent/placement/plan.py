"""Which layers run on which nodes, so that answers come fast; and why.

    plan(model, nodes, Aims(objective="auto", context=8192))  →  Plan

A core: it knows sizes and speeds, not sockets. A ring's head holds the first and the last layers
together with the embedding and the output matrix; frames go head → node → … → head. Which node is
head, which others are in, in which order, and where the model is cut is one choice: the best by
the objective (`objectives.py`) among all rings that fit. One node that holds all is a ring of one,
and is taken where no ring of several is better. Up to a dozen nodes the answer is exact; beyond,
`Plan.gap` bounds how far it may be from the best. What is not measured is taken as `inputs.py`
says; among nodes that are alike the split is even in bytes. Used by `agent.deploy`. Several rings
at once: `rings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.placement.explain import explained
from agent.placement.inputs import Aims, Links, Model, Node
from agent.placement.line import line
from agent.placement.problem import Problem, does_not_fit, problem
from agent.placement.results import Plan


def plan(
    model: Model, nodes: Sequence[Node], aims: Aims | None = None, links: Links | None = None
) -> Plan:
    """Return the best plan.

    Raises PeerError when fewer nodes are there than asked for, UsageError when what was asked for
    makes no sense or the model has too few layers or stays in one piece, ModelError when it fits on
    none of the rings that were asked for.
    """
    asked = problem(model, nodes, links or Links(), aims or Aims())
    if model.in_line and not model.uncut:
        return _line(asked)
    chooser = asked.chooser()
    choice = chooser.best(asked.aims.objective, asked.least, asked.most, asked.must)
    if choice is None:
        raise does_not_fit(asked)
    return explained(asked, choice, chooser.seen)


def _line(asked: Problem) -> Plan:
    heads = [
        node for node in asked.nodes
        if node.head_allowed and asked.aims.head in ("", node.node)
    ]  # fmt: skip
    if not heads:
        raise does_not_fit(asked)
    others = [node for node in asked.nodes if node is not heads[0]]
    found = line(asked.model, heads[0], others, asked.aims)
    if found is None:
        raise does_not_fit(asked)
    return found
