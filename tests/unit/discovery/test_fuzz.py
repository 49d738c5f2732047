"""The long fuzz of tests/fuzz/discovery.py with a small count."""

from __future__ import annotations

import pytest
from discovery import fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_datagrams_do_no_harm(seed: int) -> None:
    counters = fuzz(1500, seed)
    refused = {name for name, count in counters.items() if name.startswith("refused_") and count}
    assert refused == {
        "refused_foreign", "refused_malformed", "refused_clock", "refused_unproven",
        "refused_replay", "refused_not_member",
    }  # fmt: skip
    assert counters["question_store"] > 0
    assert counters["answers_unasked"] > 0
