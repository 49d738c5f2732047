"""What `tests/bench/gateway.py` measures with: its replica answers, its client sees all of it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BENCHES = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    """The bench's own modules, which lie beside it and not on the path."""

    class Lab:
        client: Any
        contenders: Any
        rounds: Any

    sys.path.append(str(BENCHES))
    try:
        for name in ("client", "contenders", "rounds"):
            setattr(Lab, name, importlib.import_module(f"gatewaylab.{name}"))
        yield Lab
    finally:
        sys.path.remove(str(BENCHES))


@pytest.fixture
def port(lab: Any, tmp_path: Path) -> Iterator[int]:
    process, port = lab.contenders.replica(min(os.sched_getaffinity(0)), tmp_path)
    yield port
    process.stop()


def test_every_connection_is_answered_until_there_are_enough(lab: Any, port: int) -> None:
    seen, last = lab.client.ask(port, lab.client.request(port), 4, 60.0, 20)
    # The one that makes it enough is the last of its connection; each other has one in flight.
    assert 20 <= len(seen.seconds) <= 23
    assert len(seen.first_s) == len(seen.seconds)
    assert b"lazy dog" in lab.client.body(last)
    assert min(seen.seconds) > 0
    assert seen.rate > 0


def test_a_stream_has_its_chunks_one_after_the_other(lab: Any, port: int) -> None:
    seen, last = lab.client.ask(port, lab.client.request(port, 5), 1, 60.0, 1)
    body = lab.client.body(last)
    assert body.count(b"data: ") == 6
    assert body.endswith(b"data: [DONE]\n\n")
    # Five pauses of 2 ms, of which timers may take off their own resolution.
    assert seen.seconds[0] >= 0.009


def test_what_is_no_answer_ends_the_bench(lab: Any, port: int) -> None:
    nowhere = lab.client.request(port).replace(b"POST", b"GET", 1)
    with pytest.raises(lab.client.BenchError, match="404"):
        lab.client.ask(port, nowhere, 1, 60.0, 1)


def test_what_a_gateway_adds_is_told_round_by_round(lab: Any) -> None:
    names = ["direct", "ours", "floor", "a", "b"]
    found = lab.rounds.Rounds(names, ours="ours", direct="direct", floor="floor")
    for values in (
        (1.0, 2.0, 1.5, 4.0, 9.0),
        (10.0, 12.0, 10.5, 13.0, 18.0),
        (2.0, 7.0, 2.5, 3.0, 9.0),
    ):
        for name, value in zip(found.names, values, strict=True):
            found.note(name, {"p50": value})
    assert found.added("p50")("ours") == 2.0
    row = found.row("added", found.added("p50"), "ms", 2.5)
    assert (row["value"], row["peer"], row["met"]) == (2.0, 3.0, True)
    assert row["limit"] == "floor 0.500, a 3.000, b 8.000"
    most = found.row("rate", found.absolute("p50"), "1/s", 8.0, higher=True)
    assert (most["value"], most["peer"], most["met"]) == (7.0, 9.0, False)
