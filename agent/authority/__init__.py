"""The mesh's authority at work: joining, renewal, revocation, rotation, told to all (design §4).

`Authority` (service.py) is the shell around `agent.membership` that talks to other members; the
daemon runs one and the local API asks it. Cores: messages, wishes, pace. Shells: circle (how others
are reached), desk (what others ask), herald (gossip), upkeep (what time brings), condition (what is
wrong), service.
"""

from agent.authority.service import Authority

__all__ = ["Authority"]
