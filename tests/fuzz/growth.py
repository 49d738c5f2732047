"""Whether a run keeps what it was fed: what Python and the process hold, sampled while it goes on.

    growth = Growth(count)
    …  growth.pulse(number)  …      # at each input, with all that the run keeps still alive
    growth.verdict()                # "" or what grows

Python's blocks (every object, list and string of any size) are counted after a full collection;
the process's resident pages also show what a C library keeps. A store that is bounded fills first:
so the last quarter of the run is held against the quarter before it. Each quarter counts by its
lowest sample, because what expires makes the rest go up and down.
"""

from __future__ import annotations

import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

SAMPLES = 80
# Of one kind among a dozen, every eighth input leaving a single object behind would be more.
BLOCKS_PER_INPUT = 0.01
# Fewer blocks than this are noise: what is kept for a while depends on chance.
BLOCKS_MIN = 800
# The allocator takes pages in arenas of 1 MB (3.11: 256 KB each, mapped by fours).
PAGES_BYTES_PER_INPUT = 16
PAGES_BYTES_MIN = 4 * 1024 * 1024


def nobody(number: int) -> None:
    """Stand in for a pulse that nobody takes."""


@dataclass(frozen=True)
class Sample:
    """What is held at one moment."""

    blocks: int
    resident_bytes: int


class Growth:
    """Samples of one run of `count` inputs."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._every = max(1, count // SAMPLES)
        self.samples: list[Sample] = []

    def pulse(self, number: int) -> None:
        """Take a sample now and then."""
        if number % self._every:
            return
        gc.collect()
        self.samples.append(Sample(sys.getallocatedblocks(), _resident_bytes()))

    @property
    def blocks(self) -> int:
        """How many blocks the last quarter holds more than the one before."""
        return self._risen([sample.blocks for sample in self.samples])

    @property
    def resident_bytes(self) -> int:
        """The same of the process's memory."""
        return self._risen([sample.resident_bytes for sample in self.samples])

    def verdict(self) -> str:
        """Return what grows, or nothing."""
        inputs = self._count / 4
        found = []
        if self.blocks > max(BLOCKS_MIN, BLOCKS_PER_INPUT * inputs):
            found.append(f"{self.blocks} blocks")
        if self.resident_bytes > max(PAGES_BYTES_MIN, PAGES_BYTES_PER_INPUT * inputs):
            found.append(f"{self.resident_bytes / 1e6:.1f} MB")
        if not found:
            return ""
        return f"{' and '.join(found)} more are held after the last {inputs:.0f} inputs"

    def _risen(self, values: list[int]) -> int:
        if len(values) < 4:
            raise ValueError(f"{len(values)} samples say nothing of growth")
        quarter = len(values) // 4
        return min(values[-quarter:]) - min(values[-2 * quarter : -quarter])


def _resident_bytes() -> int:
    """Return the process's own memory: pages of files come and go as the kernel likes."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * resource.getpagesize()
