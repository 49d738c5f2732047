"""A TCP stream over the overlay survives whatever happens to the path under it: no byte is lost.

Real agents, wireguard-go and NATs. How long the stream stands still is printed; `make bench` gives
it as figures, with the goals.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from stream_changes import CHANGES, StreamLab


@pytest.mark.timeout(400)
def test_a_stream_outlives_every_change_of_its_path(tmp_path: Path) -> None:
    gaps: dict[str, float] = {}
    with StreamLab(tmp_path) as lab:
        for change in CHANGES:
            gaps[change.name] = lab.measure(change)
            print(f"{change.name}: {gaps[change.name]:.2f} s")
        sent = lab.end()
    assert sent > 64 * 1024 * 20, "hardly anything was sent"
    slow = {c.name: gaps[c.name] for c in CHANGES if gaps[c.name] > c.bound_s}
    assert not slow, f"the stream stood still for seconds: {slow}; all: {gaps}"
    # What is measured is there at all: a path that vanishes without a word costs something.
    assert gaps["direct to relay"] > 0.2
