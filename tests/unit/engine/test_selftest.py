"""The self-test, with probes that really die."""

from __future__ import annotations

import logging
import platform
import sys
import time
from pathlib import Path

import msgspec
import pytest

from agent.engine import selftest, threads
from agent.engine.cpus import Cpus
from agent.errors import EngineError

pytestmark = pytest.mark.slow

# A CPU that masks AMX kills whoever uses it; this stands for one, and then runs the real probe.
_DIES_WITH_EXTRA_BUFTS = """
import os, runpy, signal, sys
if "--without-extra-bufts" not in sys.argv:
    os.kill(os.getpid(), signal.SIGILL)
sys.argv[:1] = ["probe", "cpu"]
runpy.run_module("agent.engine.probe", run_name="__main__")
"""
_DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
DIES = [sys.executable, "-c", _DIES]


def test_this_machine_proves_itself_and_the_result_is_kept(tmp_path: Path) -> None:
    assert selftest.prove(tmp_path).use_extra_bufts
    # A probe that would die is not run any more.
    assert selftest.prove(tmp_path, DIES).use_extra_bufts
    (kept,) = tmp_path.iterdir()
    kept.write_text("{garbled")
    with pytest.raises(EngineError):
        selftest.prove(tmp_path, DIES)


def test_a_probe_killed_by_a_signal_falls_back_and_that_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", _DIES_WITH_EXTRA_BUFTS]
    assert not selftest.prove(tmp_path, command).use_extra_bufts
    assert "was killed by SIGILL" in caplog.text
    assert not selftest.prove(tmp_path, DIES).use_extra_bufts


def test_a_cpu_on_which_nothing_works_is_one_clear_line() -> None:
    with pytest.raises(EngineError) as caught:
        selftest.prove(None, DIES)
    assert caught.value.message == (
        "llama.cpp does not work on this CPU: its self-test was killed by SIGILL, and without "
        "extra buffer types it was killed by SIGILL."
    )
    with pytest.raises(EngineError, match="ended with code 1 \\(no such thing\\)"):
        selftest.prove(None, [sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.cpus, "find", lambda: Cpus(2, 1, (0, 1)))


@pytest.mark.usefixtures("two_cpus")
def test_threads_are_measured_once_and_the_fewest_good_ones_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = selftest.prove(tmp_path, measure=True)
    assert found.speeds.keys() == {1, 2}
    assert all(speed > 0 for speed in found.speeds.values())
    assert found.threads == threads.choose(found.speeds)
    assert "SSE3" in found.found.features or platform.machine() != "x86_64"
    said = f"{threads.counted(found.threads)} of {threads.described(found.speeds)}"
    assert f"llama.cpp gets {said}" in caplog.text
    assert selftest.prove(tmp_path, DIES, measure=True) == found == selftest.kept(tmp_path)


@pytest.mark.usefixtures("two_cpus")
def test_a_proof_without_speeds_does_for_who_wants_none(tmp_path: Path) -> None:
    proven = selftest.prove(tmp_path)
    assert proven.speeds == {}
    assert proven.threads == 2
    assert selftest.prove(tmp_path, DIES) == proven
    with pytest.raises(EngineError):
        selftest.prove(tmp_path, DIES, measure=True)


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize(("busy", "age_s", "again"), [
    (False, 1e6, False), (True, 10, False), (True, 1e6, True), (True, -1e6, True),
])  # fmt: skip
def test_what_was_measured_on_a_busy_machine_is_kept_for_a_while(
    tmp_path: Path, busy: bool, age_s: float, again: bool
) -> None:
    found = selftest.Found(("AVX2",), ((1, 2.0), (2, 3.0)), busy)
    selftest._keep(tmp_path, selftest.Proof(True, found, time.time() - age_s))
    other = msgspec.json.encode(selftest.Found((), ((1, 5.0), (2, 5.0)))).decode()
    proof = selftest.prove(tmp_path, [sys.executable, "-c", f"print({other!r})"], measure=True)
    assert proof.threads == (1 if again else 2)


def test_with_one_cpu_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.cpus, "find", lambda: Cpus(1, 1, (0,)))
    proof = selftest.prove(tmp_path, measure=True)
    assert (proof.speeds, proof.threads) == ({}, 1)
    monkeypatch.setattr(selftest.cpus, "find", lambda: Cpus(2, 2, (0, 1)))
    assert selftest.kept(tmp_path) is None  # other CPUs, another result
