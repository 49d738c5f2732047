"""What presence needs of the agent around it: a control plane, a ping, and what there is to tell.

Used by `service.py`; the daemon gives the real ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.identity.keys import NodeId
from agent.presence.report import Load, Model


class Control(Protocol):
    """What presence needs of the control plane."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Tell every member."""

    def subscribe(self, topic: str, handler: Callable[[NodeId, bytes], Awaitable[bool]]) -> None:
        """Hear a topic."""

    def keep_links(self, wanted: Mapping[NodeId, Sequence[str]]) -> None:
        """Keep connections to these."""

    def on_link(self, callback: Callable[[NodeId, bool], None]) -> None:
        """Hear of links that come and go."""


class Ping(Protocol):
    """Asks a node whether it is there; returns the round-trip time in seconds, or None."""

    async def __call__(self, node: NodeId, timeout_s: float) -> float | None:
        """Ask."""


@dataclass(frozen=True)
class Sources:
    """What a node says of itself, asked anew for each beat."""

    load: Callable[[], Load]
    models: Callable[[], Sequence[Model]]
    name_of: Callable[[NodeId], str]
    control_addresses: Callable[[NodeId], Sequence[str]]
    """Where a member's control plane can be reached now, the best address first."""
    draining: Callable[[], bool] = lambda: False
    """Whether nothing new shall run here."""
