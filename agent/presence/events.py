"""What happened, lately: on this node, and in the mesh as far as others told. A core.

`agent events` shows it. Kinds are dotted words of a small list, so that programs can select them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

KEPT = 1000

# kind → what it means; docs/how-it-works.md has the same list.
KINDS = {
    "node.up": "this node's agent is up",
    "node.down": "this node's agent stops",
    "member.joined": "a node was let in with a ticket",
    "member.changed": "a member has a new certificate: name, roles, tags or time",
    "member.revoked": "a member was put out, or left",
    "member.alive": "a member is there (again)",
    "member.suspect": "a member stopped answering",
    "member.gone": "a member did not come back; nothing is planned with it",
    "link.up": "a control connection to a member is open",
    "link.down": "the last control connection to a member closed",
    "deployment.owner": "a deployment has a new owner",
    "deployment.phase": "a deployment's ring is in a new phase",
    "key.changed": "the mesh has a new network key",
    "health.set": "something is wrong with a node",
    "health.cleared": "it is no longer",
}


class Entry(msgspec.Struct, frozen=True):
    """An event as it is listed: a number that grows, unix seconds, who told it, what it says."""

    number: int
    at: float
    told_by: str
    scope: str
    kind: str
    subject: str
    text: str


class EventLog:
    """The last events, oldest first; numbers grow by one and never come again while it runs."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._number = 0

    def add(self, at: float, told_by: str, scope: str, kind: str, subject: str, text: str) -> Entry:
        """Append an event. `scope` is "local" (this node saw it) or "mesh" (its node told all)."""
        self._number += 1
        entry = Entry(self._number, at, told_by, scope, kind, subject, text)
        self._entries.append(entry)
        return entry

    def after(self, number: int) -> Iterable[Entry]:
        """Return the events with a higher number that are still kept."""
        return [entry for entry in self._entries if entry.number > number]

    def describe(self, after: int) -> dict[str, Any]:
        """Return what the local API answers: the events, and the number to ask after next."""
        found = [msgspec.to_builtins(entry) for entry in self.after(after)]
        return {"events": found, "next": self._number}
