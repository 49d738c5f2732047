"""Whom this node keeps a path to: a member that it talks to, not each of a thousand. A core.

    kept                                               because
    ----                                               -------
    everyone, in a mesh of few (network.keep_paths)    it costs little, and whatever is asked of
                                                        whomever is answered at once
    the members to which it holds control links        gossip and signals go by them
    those whose stages form rings with its own         a token must not wait for a path
    where heads answer, for a gateway                  nor must a request

Whoever else is needed is connected when a packet is sent to it (`agent/probing/demand.py`), and
whoever wants this node is let in; both for as long as packets flow (`agent/paths/engine.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agent.identity.keys import NodeId


def talked_to(
    alive: Collection[NodeId],
    few: int,
    links: Iterable[NodeId],
    partners: Iterable[NodeId],
    heads: Iterable[NodeId],
) -> frozenset[NodeId]:
    """Return whom to keep a path to, of the other members that are `alive`.

    `few`: how many others there may be for all of them to be kept.
    """
    there = frozenset(alive)
    if len(there) <= few:
        return there
    return there & {*links, *partners, *heads}
