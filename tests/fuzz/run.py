"""The long fuzz: a million inputs over everything that is decoded from others.

    python tests/fuzz/run.py [--count 1000000] [--seed N] [--only PART]

Ends with exit code 0, or with the first exception that escapes; prints how much memory it took.
The unit tests run the same with small counts.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import control
import decoders
import discovery

# What share of the inputs goes where: a datagram that is opened and answered costs the most.
PARTS: dict[str, tuple[float, Callable[[int, int], object]]] = {
    "decoders": (0.5, decoders.fuzz),
    "control": (0.2, control.fuzz),
    "discovery": (0.3, discovery.fuzz),
}


def main() -> int:
    """Parse flags, and run each part with its share."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other inputs")
    parser.add_argument("--only", choices=PARTS, help="just this part")
    arguments = parser.parse_args()
    for name, (share, fuzz) in PARTS.items():
        if arguments.only not in (None, name):
            continue
        count = int(arguments.count * (1.0 if arguments.only else share))
        fuzz(min(count, 1000), arguments.seed + 1)  # what is made once is made
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        fuzz(count, arguments.seed)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"{name}: {count} inputs in {time.monotonic() - began:.0f} s, +{grown / 1000:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
