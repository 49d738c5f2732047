"""How long, in words: "5 minutes". A core, for messages that people read."""

from __future__ import annotations

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def duration(seconds: float) -> str:
    """Return a duration in its largest whole unit: "1 second", "5 minutes", "3 days"."""
    whole = max(0, int(seconds))
    for size, unit in _UNITS:
        count = whole // size
        if count:
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a second"
