"""What discovery is told of the overlay: which addresses lie in it, and which lead nowhere. A core.

Members are asked over the overlay as well where a path is kept, as their presence is. But a
question to one that nothing else flows to would open a path for it (`agent/probing/demand.py`), so
it is not asked there; and an overlay address never takes the place of one on the underlay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _no(host: str) -> bool:
    return False


@dataclass(frozen=True)
class Ways:
    """Both are asked with a numeric IP address."""

    inside: Callable[[str], bool] = _no
    """Whether it is an overlay address."""
    asleep: Callable[[str], bool] = _no
    """Whether it is that of a member to which no path is kept."""
