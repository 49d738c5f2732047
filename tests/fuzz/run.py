"""The long fuzz: a million inputs each for the decoders, the control plane and discovery.

    python tests/fuzz/run.py [--count 1000000 | --seconds S] [--seed N] [--only PART]

Ends with exit code 0; with the first exception that escapes, the first answer to an outsider, the
first store beyond its limit; or with 1 when memory grows with the inputs (`growth.py`).
The unit tests run the same with small counts.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import control
import decoders
import discovery
from growth import Growth, nobody

Fuzz = Callable[[int, int, Callable[[int], None]], object]
PARTS: dict[str, Fuzz] = {
    "decoders": decoders.fuzz,
    "control": control.fuzz,
    "discovery": discovery.fuzz,
}
# Enough that setting up is a small part of what they take.
_TRIED = 5000


def run(name: str, fuzz: Fuzz, count: int, seed: int) -> bool:
    """Run one part, print what it took, and say whether its memory stayed as it was."""
    began = time.monotonic()
    growth = Growth(count)
    fuzz(count, seed, growth.pulse)
    took_s = time.monotonic() - began
    print(
        f"{name}: {count} inputs in {took_s:.0f} s, the last quarter of them "
        f"{growth.blocks:+d} blocks, {growth.resident_bytes / 1e6:+.1f} MB",
        flush=True,
    )
    verdict = growth.verdict()
    if verdict:
        print(f"{name}: memory grows: {verdict}", file=sys.stderr)
    return not verdict


def main() -> int:
    """Parse flags, and run each part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs for each part")
    parser.add_argument("--seconds", type=int, help="about so long in all, instead of a count")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other inputs")
    parser.add_argument("--only", choices=PARTS, help="just this part")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a log of a million refusals helps nobody
    warnings.simplefilter("error")
    parts = {name: fuzz for name, fuzz in PARTS.items() if arguments.only in (None, name)}
    kept = []
    for name, fuzz in parts.items():
        count = arguments.count
        if arguments.seconds is not None:
            count = _count(fuzz, arguments.seconds / len(parts))
        kept.append(run(name, fuzz, count, arguments.seed))
    return 0 if all(kept) else 1


def _count(fuzz: Fuzz, seconds: float) -> int:
    """Return about how many inputs a part is fed in so long, by how long a few take."""
    began = time.monotonic()
    fuzz(_TRIED, 0, nobody)
    return max(_TRIED, int(_TRIED * seconds / (time.monotonic() - began)))


if __name__ == "__main__":
    sys.exit(main())
