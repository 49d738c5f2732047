"""The log's lines: as the library writes them, for less."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import TextFormatter


@given(st.lists(st.floats(0, 4e9, allow_nan=False), min_size=1, max_size=8))
def test_times_are_those_of_the_library(times: list[float]) -> None:
    ours, plain = (
        TextFormatter("worker 2: "),
        logging.Formatter("%(asctime)s %(levelname)s worker 2: %(message)s"),
    )
    for at in times:
        record = logging.LogRecord("gateway", logging.INFO, "", 0, "said %d", (7,), None)
        record.created, record.msecs = at, (at - int(at)) * 1000
        assert ours.format(record) == plain.format(record)
