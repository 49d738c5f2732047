"""The long fuzz sees memory that grows: a run with a leak fails, one with a bounded store does not.

The leaks are of one input in ten, once of Python's objects and once of a C library's memory.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

import growth
import run

from agent.control import gossip

pytestmark = pytest.mark.slow

COUNT = 100_000


@pytest.fixture(autouse=True)
def quick_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full collection of all that pytest holds takes as long as thousands of inputs."""
    monkeypatch.setattr(growth, "SAMPLES", 16)
    gc.collect()
    gc.freeze()


def fuzz_with(take: Callable[[int], None]) -> run.Fuzz:
    def fuzz(count: int, seed: int, pulse: Callable[[int], None]) -> None:
        for number in range(count):
            take(number)
            pulse(number)

    return fuzz


def test_objects_that_are_kept_for_ever_fail_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[bytes] = []

    def leak(number: int) -> None:
        if number % 10 == 0:
            kept.append(number.to_bytes(40, "big"))

    assert not run.run("leaky", fuzz_with(leak), COUNT, 1)
    out, error = capsys.readouterr()
    assert out.startswith(f"leaky: {COUNT} inputs in ")
    assert error.startswith("leaky: memory grows: 2")
    assert "blocks more are held after the last 25000 inputs" in error


LEAK_IN_C = """
import ctypes, sys
import growth, run

growth.SAMPLES = 16
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_size_t

def fuzz(count, seed, pulse):
    for number in range(count):
        if number % 10 == 0:
            ctypes.memset(libc.malloc(ctypes.c_size_t(2048)), 1, 2048)
        pulse(number)

sys.exit(not run.run("leaky", fuzz, 100_000, 1))
"""


def test_memory_that_python_does_not_count_fails_the_run() -> None:
    """In a process of its own: here, what other tests gave back would be taken first."""
    done = subprocess.run(
        [sys.executable, "-c", LEAK_IN_C], cwd=Path(run.__file__).parent, capture_output=True,
        text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        r"leaky: memory grows: [456]\.\d MB more are held after the last 25000 inputs\n",
        done.stderr,
    )


def test_a_store_with_a_limit_passes() -> None:
    kept: OrderedDict[int, bytes] = OrderedDict()

    def take(number: int) -> None:
        kept[number] = number.to_bytes(40, "big")
        if len(kept) > 5000:
            kept.popitem(last=False)

    assert run.run("bounded", fuzz_with(take), COUNT, 1)


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="0 samples"):
        growth.Growth(10).verdict()


def test_a_store_of_ours_that_lost_its_limit_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The router's known ids, in the real fuzz: they grow by some for each hostile RPC."""

    def see(self: gossip.Gossip, name: bytes) -> None:
        self._seen[name] = None
        self._wanted.came(name)

    class Unchecked(run.control.Router):
        def check(self) -> None:
            """Leave it to the memory."""

    monkeypatch.setattr(run.control, "Router", Unchecked)
    monkeypatch.setattr(gossip.Gossip, "_see", see)
    assert not run.run("control", run.control.fuzz, 80_000, 1)
    assert "control: memory grows" in capsys.readouterr().err
