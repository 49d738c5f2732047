"""What a gateway's workers tell of themselves, and what they come to together.

A core, used by `worker.py` and `standing.py`. A gateway of one process is one worker.

    what is counted                 the sum, with that of workers that have ended
    requests that run or wait       the sum
    keys' limits a minute           the sum of what each used, which each is told
    a replica, known by its URL     usable if one worker may use it; its breaker is the worst of
                                    theirs, its times the mean by requests, its round trip the least
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.keys.limits import Minute
from gateway.metrics import Counted
from gateway.recent import Seen

_WORST = ("closed", "half-open", "open")

Entry = dict[str, Any]


class Sheet(msgspec.Struct, frozen=True):
    """What one process tells: what it counted, what is the case, and which it is.

    `dropped` and `waiting` as in `metrics.Now`, `replicas` as of `Router.view`; `gateway` is its
    name in the store of keys, `unreported` how many totals that store does not have yet, `minutes`
    what keys used of their limits a minute; `live` and `past` which requests run and ended last.
    """

    pid: int
    counted: Counted
    dropped: dict[str, int]
    in_flight: int
    waiting: dict[str, int]
    replicas: list[Entry]
    gateway: str = ""
    unreported: int = 0
    minutes: dict[str, Minute] = {}
    live: list[Seen] = []
    past: list[Seen] = []

    def ended(self) -> Sheet:
        """Return what is left of it when its process is gone: what was counted."""
        return msgspec.structs.replace(
            self, pid=0, in_flight=0, waiting={}, replicas=[], unreported=0, minutes={}, live=[]
        )


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums by name; names whose sum is 0 are there too."""
    sums: dict[str, int] = {}
    for count in counts:
        for name, value in count.items():
            sums[name] = sums.get(name, 0) + value
    return sums


def replicas(sheets: Iterable[Sheet]) -> list[Entry]:
    """Return one entry for each replica that a worker knows, in the order of `Router.view`."""
    by_url: dict[str, list[Entry]] = {}
    for sheet in sheets:
        for entry in sheet.replicas:
            by_url.setdefault(entry["url"], []).append(entry)
    found = [_one(entries) for entries in by_url.values()]
    return sorted(found, key=lambda entry: (entry["name"], entry["url"]))


def models(found: Iterable[Entry]) -> list[Entry]:
    """Return `id` of each model of the replicas, and how many of them are `usable`."""
    usable: Counter[str] = Counter()
    for entry in found:
        for model in entry["models"]:
            usable[model] += int(entry["usable"])
    return [{"id": model, "usable": usable[model]} for model in sorted(usable)]


def _one(entries: Sequence[Entry]) -> Entry:
    """Return a replica's entry, of one or several workers'."""
    first = entries[0]
    if len(entries) == 1:
        return first
    well = any(entry["usable"] and not entry["reason"] for entry in entries)
    said = next((entry["reason"] for entry in entries if entry["reason"]), "")
    kinds = sorted({kind for entry in entries for kind in entry["first_byte_s"]})
    ours = sum(entry["in_flight"] for entry in entries)
    there = max(entry["in_flight"] + entry["others_in_flight"] for entry in entries)
    trips = [entry["rtt_s"] for entry in entries if entry["rtt_s"] is not None]
    return first | {
        "models": list(dict.fromkeys(model for entry in entries for model in entry["models"])),
        "usable": any(entry["usable"] for entry in entries),
        "reason": "" if well else said,
        "cooling_s": min(entry["cooling_s"] for entry in entries),
        "breaker": max((entry["breaker"] for entry in entries), key=_WORST.index),
        "in_flight": ours,
        "others_in_flight": round(max(there - ours, 0.0), 1),  # each worker's has the others' own
        "requests": sum(entry["requests"] for entry in entries),
        "first_byte_s": {
            kind: _mean([(x["first_byte_s"][kind], x["requests"]) for x in entries
                         if kind in x["first_byte_s"]])
            for kind in kinds
        },
        "token_s": _mean([(entry["token_s"], entry["requests"]) for entry in entries]),
        "rtt_s": min(trips, default=None),
    }  # fmt: skip


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    """Return the mean of values by their weights; of all alike where none has any."""
    weight = sum(w for _, w in weighted)
    if not weight:
        return round(sum(value for value, _ in weighted) / len(weighted), 6)
    return round(sum(value * w for value, w in weighted) / weight, 6)
