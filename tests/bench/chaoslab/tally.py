"""What the answers and the events come to: the rows of `chaos.py`. A core."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from report import Row, row

from chaoslab.answers import ENDS, Seen
from chaoslab.events import KINDS, Event

# Who asks learns of an event a little later than it is over.
_SLACK_S = 2.0
# A refusal comes at once; one that took longer had been taken in before.
_AT_ONCE_S = 1.0
_NEVER = {
    "wrong": "wrong, or a part that claims to be all",
    "denied": "denied as if the request were wrong",
    "cut": "cut without an honest word",
    "hung": "hung",
}
_SHARES = {"p50": 0.5, "p99": 0.99, "longest": 1.0}


def causes(seen: Seen, events: Sequence[Event], end: float) -> list[Event]:
    """Return the events in the way of answers while a request ran."""
    found = []
    for event in events:
        if event.serving:
            until = max(event.over, event.whole, event.answered) or end
            if event.began <= seen.ended and until + _SLACK_S >= seen.began:
                found.append(event)
    return found


def blame(found: Sequence[Event]) -> Event | None:
    """Return the one that a loss is counted to: one that may lose answers, else the last."""
    return next((e for e in found if e.may_lose), found[-1] if found else None)


def rows(seen: Sequence[Seen], events: Sequence[Event], end: float) -> list[Row]:
    """Return the rows of requests, gaps and kinds of events."""
    counts = {kind: [s for s in seen if s.end == kind] for kind in ENDS}
    found = [row("requests", len(seen), "requests"),
             row("answered, as undisturbed", len(counts["ok"]), "requests")]  # fmt: skip
    blamed: dict[str, list[tuple[Seen, Event]]] = {}
    unknown, undesigned = [], []
    for one in counts["refused"] + counts["lost"]:
        event = blame(causes(one, events, end))
        if event is None:
            unknown.append(one)
            continue
        blamed.setdefault(event.kind, []).append((one, event))
        taken_in = one.end == "lost" or one.ended - one.began > _AT_ONCE_S
        if taken_in and not event.may_lose:
            undesigned.append(one)
    late = [s for s in counts["refused"] if s.ended - s.began > _AT_ONCE_S]
    found += [
        row("refused with an honest error", len(counts["refused"]), "requests"),
        row("of these after more than 1 s", len(late), "requests", limit=_words(late)),
        row("lost, with an honest error", len(counts["lost"]), "requests"),
        row("lost by what should lose none", len(undesigned), "requests", goal=0,
            limit=_words(undesigned)),
        row("refused or lost without an event", len(unknown), "requests", goal=0,
            limit=_words(unknown)),
    ]  # fmt: skip
    for kind, name in _NEVER.items():
        found.append(row(name, len(counts[kind]), "requests", goal=0, limit=_words(counts[kind])))
    gaps = sorted(s.gap_s for s in counts["ok"] if s.streamed)
    waits = sorted(s.first - s.began for s in counts["ok"] if s.streamed)
    for name, values in (("longest gap of a stream", gaps), ("first piece", waits)):
        if values:
            for label, share in _SHARES.items():
                found.append(row(f"{name}, {label}", values[int(share * (len(values) - 1))], "s"))
    for kind in KINDS:
        if times := [event for event in events if event.kind == kind and not event.words]:
            found += _of_kind(kind, times, counts["ok"], [s for s, _ in blamed.get(kind, [])], end)
    return found


def _of_kind(
    kind: str, times: Sequence[Event], ok: Sequence[Seen], failed: Sequence[Seen], end: float
) -> list[Row]:
    serving = [event for event in times if event.serving]
    gaps = [
        s.gap_s
        for s in ok
        if s.gap_s
        and any(e.began <= s.gap_at + s.gap_s and s.gap_at <= (e.whole or end) for e in serving)
    ]
    lost = [s for s in failed if s.end == "lost"]
    by_design = any(event.may_lose for event in times)
    found = [row(f"{kind}: times", len(times), "times")]
    if serving:
        found += [
            row(f"{kind}: lost", len(lost), "requests", goal=None if by_design else 0,
                limit=_words(lost)),
            row(f"{kind}: refused", len(failed) - len(lost), "requests"),
        ]  # fmt: skip
        if gaps:
            found.append(row(f"{kind}: longest gap of one that went on", max(gaps), "s"))
        if moments := [e.again - e.began for e in serving if e.again]:
            found.append(row(f"{kind}: until whole, median", statistics.median(moments), "s"))
            found.append(row(f"{kind}: until whole, longest", max(moments), "s"))
    never = sum(1 for e in serving if not e.again)
    failed_to = [event.error for event in times if event.error]
    if never:
        found.append(row(f"{kind}: never whole after it", never, "times", goal=0))
    if failed_to:
        found.append(row(f"{kind}: could not be put right", len(failed_to), "times", goal=0,
                         limit=failed_to[0]))  # fmt: skip
    return found


def _words(seen: Sequence[Seen]) -> str | None:
    """Return what most of them said."""
    errors = [s.error or f"{s.status} {s.finish} {s.text[-80:]!r}" for s in seen]
    return max(set(errors), key=errors.count) if errors else None
