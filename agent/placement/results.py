"""What a placement says: the stages, what they are predicted to do, and why it is so.

A core. Made by `plan.py`; `agent.deploy` builds rings from it, and people read it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Layers [first, last) on one node; a ring's head has two of these, the first and the last."""

    node: str
    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Memory:
    """What a node has to hold, a share for buffers included, and what it has free, in bytes."""

    node: str
    name: str
    needed: int
    free: int


@dataclass(frozen=True)
class Alternative:
    """Another ring and what it is predicted to do; `title` says of what it is the best."""

    title: str
    names: tuple[str, ...]
    token_s: float
    tokens_s: float


@dataclass(frozen=True)
class Plan:
    """The stages in the order in which a token passes them, and why it is so.

    Predicted: `token_s` for a token of one stream, `tokens_s` for all streams together, `first_s`
    from a prompt to its first token; 0 where nothing is predicted. `moved` bytes of weights have
    to be fetched. The best possible plan is better by the share `gap` at most.
    """

    stages: tuple[Stage, ...]
    reasons: tuple[str, ...]
    token_s: float = 0.0
    tokens_s: float = 0.0
    first_s: float = 0.0
    memory: tuple[Memory, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    moved: int = 0
    gap: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether one node runs the whole model."""
        return len(self.stages) == 1

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes' ids, the head first."""
        return tuple(dict.fromkeys(stage.node for stage in self.stages))
