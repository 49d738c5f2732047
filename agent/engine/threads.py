"""How many threads llama.cpp gets: the fewest that are about as fast as the best. A core.

More threads than that only wait for each other: for memory, of which a few cores often use all
bandwidth, or for the core that two of them share. `probe.py` measures, `selftest.py` keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

# Of the best speed; less is what two measurements of the same differ by.
NEARLY = 0.95


def candidates(allowed: int, cores: int) -> tuple[int, ...]:
    """Return the numbers of threads to try, in order, where `allowed` can run on `cores` cores."""
    found = {allowed, min(allowed, cores)}
    power = 1
    while power < allowed:
        found.add(power)
        power *= 2
    return tuple(sorted(found))


def choose(speeds: Mapping[int, float]) -> int:
    """Return the fewest threads whose tokens a second come close to the most of any number."""
    enough = NEARLY * max(speeds.values())
    return min(count for count, speed in speeds.items() if speed >= enough)


def counted(count: int) -> str:
    """Return the number for people."""
    return f"{count} thread{'' if count == 1 else 's'}"


def described(speeds: Mapping[int, float]) -> str:
    """Return what was measured, for people: `1: 41, 2: 78 tokens/s`."""
    return ", ".join(f"{count}: {speeds[count]:.0f}" for count in sorted(speeds)) + " tokens/s"
