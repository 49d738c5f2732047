"""Which requests run now and which ended last, for the dashboard. A core, used by `observe.py`.

Of a process; all processes of a gateway have the same clock (that of time.monotonic), so that what
one tells another needs no translation. Neither prompts nor answers are kept.
"""

from __future__ import annotations

from collections import deque

import msgspec

from gateway.record import MOST_LETTERS, Record

# Of a process; the dashboard shows the youngest of all processes'.
MOST_RUNNING = 50
MOST_ENDED = 40


class Seen(msgspec.Struct, frozen=True):
    """One request; `begun`, `first_at` and `ended` in seconds on the clock, None: not yet.

    `key` is its key's name, `key_id` that key's id; both empty for nobody's. `status` 0: none yet.
    """

    id: str
    operation: str
    model: str
    replica: str
    streamed: bool
    key: str
    key_id: str
    begun: float
    first_at: float | None = None
    ended: float | None = None
    status: int = 0
    token_s: float | None = None
    prompt: int | None = None
    completion: int | None = None
    error: str = ""


class Recent:
    """The requests of a process, as `observe.py` notes them."""

    def __init__(self) -> None:
        self._running: dict[str, Record] = {}
        self._ended: deque[Seen] = deque(maxlen=MOST_ENDED)

    def begin(self, record: Record) -> None:
        """Note that a request has come."""
        self._running[record.trace.span] = record

    def end(self, record: Record) -> None:
        """Note that it has ended, all of its record being known."""
        if self._running.pop(record.trace.span, None) is not None:
            self._ended.append(_seen(record))

    def running(self) -> list[Seen]:
        """Return the requests that run, the youngest first, `MOST_RUNNING` at most."""
        youngest = list(self._running.values())[-MOST_RUNNING:]
        return [_seen(record) for record in reversed(youngest)]

    def ended(self) -> list[Seen]:
        """Return the last that ended, the latest first."""
        return list(reversed(self._ended))


def _seen(record: Record) -> Seen:
    return Seen(
        id=record.trace.span, operation=record.operation, model=record.model[:MOST_LETTERS],
        replica=record.replica, streamed=record.streamed, key=record.key, key_id=record.key_id,
        begun=record.begun, first_at=record.first_at, ended=record.ended or None,
        status=record.status, token_s=record.token_s if record.ended else None,
        prompt=record.prompt, completion=record.completion, error=record.error,
    )  # fmt: skip
