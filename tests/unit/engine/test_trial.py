"""A piece in a process of its own: what it did wrong as words, and when it is held to hang."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from agent.engine import trial

ASLEEP = [sys.executable, "-c", "import time; time.sleep({}); print('woke')"]


def asleep(seconds: float) -> list[str]:
    return [word.format(seconds) for word in ASLEEP]


def test_what_went_wrong_is_said_as_a_verb() -> None:
    said = {
        "print('fine')": trial.Outcome(b"fine\n"),
        "import sys; sys.exit('no such model')": trial.Outcome(
            fault="ended with code 1 (no such model)"
        ),
        "import os; os.abort()": trial.Outcome(fault="was killed by SIGABRT"),
    }
    for code, expected in said.items():
        assert trial.run([sys.executable, "-c", code], 30, {}) == expected


def test_who_hangs_is_ended(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    found = trial.run([sys.executable, "-c", code], 2, {})
    assert found.fault.startswith("did not end within ")
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_waiting_for_a_cpu_is_no_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "waits_s", lambda _: [0.0, 100.0])
    assert trial.run(asleep(1.0), 0.4, {}).output == b"woke\n"
    # It has an end as well.
    found = trial.run(asleep(600), 0.1, {})
    assert found.fault.startswith("did not end within ")


def test_what_a_process_waited_for_is_told_by_thread() -> None:
    assert min(trial.waits_s()) >= 0
    assert trial.waits_s(2**30) == []
