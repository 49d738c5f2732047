"""The self-test, with probes that really die."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.engine import selftest
from agent.errors import EngineError

# A CPU that masks AMX kills whoever uses it; this stands for one, and then runs the real probe.
_DIES_WITH_EXTRA_BUFTS = """
import os, runpy, signal, sys
if "--without-extra-bufts" not in sys.argv:
    os.kill(os.getpid(), signal.SIGILL)
sys.argv[0] = "selftest"
runpy.run_module("agent.engine.selftest", run_name="__main__")
"""
_DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"


def test_this_machine_proves_itself_and_the_result_is_kept(tmp_path: Path) -> None:
    assert selftest.prove(tmp_path).use_extra_bufts
    # A probe that would die is not run any more.
    assert selftest.prove(tmp_path, [sys.executable, "-c", _DIES]).use_extra_bufts
    (kept,) = tmp_path.iterdir()
    kept.write_text("{garbled")
    with pytest.raises(EngineError):
        selftest.prove(tmp_path, [sys.executable, "-c", _DIES])


def test_a_probe_killed_by_a_signal_falls_back_and_that_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", _DIES_WITH_EXTRA_BUFTS]
    assert not selftest.prove(tmp_path, command).use_extra_bufts
    assert "was killed by SIGILL" in caplog.text
    assert not selftest.prove(tmp_path, [sys.executable, "-c", _DIES]).use_extra_bufts


def test_a_cpu_on_which_nothing_works_is_one_clear_line() -> None:
    with pytest.raises(EngineError) as caught:
        selftest.prove(None, [sys.executable, "-c", _DIES])
    assert caught.value.message == (
        "llama.cpp does not work on this CPU: its self-test was killed by SIGILL, and without "
        "extra buffer types it was killed by SIGILL."
    )
    with pytest.raises(EngineError, match="ended with code 1 \\(no such thing\\)"):
        selftest.prove(None, [sys.executable, "-c", "raise SystemExit('no such thing')"])
