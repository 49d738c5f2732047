"""The registry of things that are wrong with this node: typed items, shown alike everywhere.

A core. `agent status` and the local API show the same items; a part of the agent sets an item
when it sees the fault and clears it when the fault is gone.
"""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

_log = logging.getLogger(__name__)

Severity = Literal["warning", "error"]


class HealthItem(msgspec.Struct, frozen=True):
    """One fault: a stable code, a title, what it means here, and what to do."""

    code: str
    severity: Severity
    title: str
    text: str
    what_to_do: str


class Health:
    """The present faults by code; the log gets one line when one comes or goes."""

    def __init__(self) -> None:
        self._items: dict[str, HealthItem] = {}

    def set(self, item: HealthItem) -> None:
        """Record a fault; the same fault again changes nothing."""
        if self._items.get(item.code) == item:
            return
        self._items[item.code] = item
        level = logging.ERROR if item.severity == "error" else logging.WARNING
        _log.log(level, "health %s: %s: %s", item.code, item.title, item.text)

    def clear(self, code: str) -> None:
        """Forget a fault that is gone."""
        if self._items.pop(code, None) is not None:
            _log.info("health %s: gone", code)

    def items(self) -> list[HealthItem]:
        """Return the present faults, the severest first."""
        return sorted(self._items.values(), key=lambda item: (item.severity != "error", item.code))
