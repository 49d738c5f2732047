"""Whether a model fits on the disk and into the quota, and what must go for it. A core.

What was used last stays longest. What a deployment uses, what is pinned and what is just being
fetched is never taken. Used by `pull.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.errors import EnvironmentFault

# Records, journals and logs lie on the same disk; a full one stops more than a download.
RESERVE_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A model in the store: its bytes on disk, when it was last used (unix s), why it must stay.

    `kept` is "" for one that may go.
    """

    name: str
    size: int
    used_at: float
    kept: str = ""


def check_disk(needed: int, free: int, place: str) -> None:
    """Raise EnvironmentFault where `needed` more bytes do not fit into the `free` ones."""
    if needed + RESERVE_BYTES > free:
        raise EnvironmentFault(
            f"{size(needed)} are needed in {place}, and {size(free)} are free there "
            f"({size(RESERVE_BYTES)} of them stay free)",
            hint="Free some space, `agent rm` a model, or set models.dir to a larger disk.",
        )


def evictions(name: str, needed: int, quota: int, stored: Iterable[Stored]) -> list[str]:
    """Return which models go, the longest unused first, so that `needed` bytes fit for `name`.

    `quota` 0 is no bound. Raises EnvironmentFault, before anything goes, where that cannot be.
    """
    others = [model for model in stored if model.name != name]
    excess = sum(model.size for model in others) + needed - quota
    if not quota or excess <= 0:
        return []
    going = []
    for model in sorted(others, key=lambda m: (m.used_at, m.name)):
        if excess <= 0:
            break
        if not model.kept:
            going.append(model.name)
            excess -= model.size
    if excess > 0:
        kept = ", ".join(f"{m.name} ({m.kept})" for m in others if m.kept)
        because = f"; these stay: {kept}" if kept else ""
        raise EnvironmentFault(
            f"{name} has {size(needed)}, which is {size(excess)} too much for models.quota_bytes "
            f"({size(quota)}){because}",
            hint="Raise the quota, or `agent rm` a model.",
        )
    return going


def size(count: float) -> str:
    """Return a number of bytes for people: 512 B, 1.5 MB, 43 GB; in powers of 1000."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            number = count / power
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{count:.0f} B"
