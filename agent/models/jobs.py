"""What the store is doing for somebody: a pull or a verification, how far it is, how it ended.

Whoever asks again sees the same job; it belongs to the agent, not to a command line. Used by
`service.py`, and by `pull.py` to tell how far it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from agent.errors import CoveyError, to_wire
from agent.models.fetch import Progress
from agent.models.wanted import Wanted

Phase = Literal["waiting", "fetching", "checking", "done", "failed", "cancelled"]
OVER: tuple[Phase, ...] = ("done", "failed", "cancelled")


class EndedError(Exception):
    """The job was ended while a thread still worked for it; nobody hears this."""


@dataclass
class Job:
    """One piece of work; `result` is what it found or made, `note` what people should know."""

    number: int
    kind: Literal["pull", "verify"]
    name: str
    wanted: Wanted | None = None
    phase: Phase = "waiting"
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0.0))
    note: str = ""
    error: CoveyError | None = None
    result: dict[str, Any] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is done for it any more."""
        return self.phase in OVER

    def watch(self, progress: Progress) -> None:
        """Take in how the fetch stands."""
        self.progress = progress

    def read(self, done: int) -> None:
        """Take in how much of the file was read again; ends the thread of a job that is over."""
        if self.over:
            raise EndedError
        self.progress = Progress(done, self.progress.total, 0.0, self.progress.sources)

    def read_after(self, before: int) -> Callable[[int], None]:
        """Return `read` for a file of several, of which so many bytes were read before."""
        return lambda done: self.read(before + done)

    def end(self, phase: Phase, error: CoveyError | None = None) -> None:
        """It is over."""
        self.phase = phase
        self.error = error

    def describe(self) -> dict[str, Any]:
        """Describe it for the API; sizes in bytes, rates in bytes/s, times in s (None: unknown)."""
        progress = self.progress
        rate = progress.rate if self.phase == "fetching" else 0.0
        return {
            "job": self.number, "kind": self.kind, "name": self.name, "phase": self.phase,
            "source": self.wanted.source if self.wanted else "",
            "done": progress.done, "total": progress.total, "rate": rate,
            "left_s": (progress.total - progress.done) / rate if rate > 0 else None,
            "sources": [msgspec.to_builtins(source) for source in progress.sources],
            "note": self.note, "result": self.result,
            "error": to_wire(self.error) if self.error else None,
        }  # fmt: skip
