"""The registry of things that are wrong with this node: typed items, shown alike everywhere.

A core. `agent status` and the local API show the same items; a part of the agent sets an item
when it sees the fault and clears it when the fault is gone. `agent doctor` (agent/doctor/) makes
items of the same type, also of what is in order or only worth knowing; those are never set here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import msgspec

_log = logging.getLogger(__name__)

# `ok`: looked at, and in order. `note`: worth knowing, but it works.
Severity = Literal["ok", "note", "warning", "error"]
FAULTS: tuple[Severity, ...] = ("error", "warning")
SEVERITIES: tuple[Severity, ...] = (*FAULTS, "note", "ok")


class HealthItem(msgspec.Struct, frozen=True):
    """One finding: a stable code, a title, what it means here, what to do; `details` are lines."""

    code: str
    severity: Severity
    title: str
    text: str
    what_to_do: str = ""
    details: tuple[str, ...] = ()

    @property
    def fault(self) -> bool:
        """Whether something is wrong."""
        return self.severity in FAULTS


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
        return ordered(self._items.values())


def ordered(items: Iterable[HealthItem]) -> list[HealthItem]:
    """Return items, the severest first."""
    return sorted(items, key=lambda item: (SEVERITIES.index(item.severity), item.code))
