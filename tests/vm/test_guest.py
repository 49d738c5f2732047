"""Covey on a Debian kernel: each case runs in one guest and is a result of its own here.

Not part of `make test`: run `make vm`. The cases of tests/unit and tests/lab are the same that run
with wireguard-go elsewhere; here WireGuard is the kernel's. `-k` chooses among all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boot
import pytest

ROOT = Path(__file__).parents[2]
CASES = (
    # The device's contract, and what only kernel WireGuard has.
    "tests/unit/overlay/test_device_contract.py",
    "tests/unit/overlay/test_kernel_only.py",
    "tests/unit/overlay/test_kernel_routes.py",
    # Punching beside WireGuard's port, birthday and its rules, the segments' clamp. Not
    # test_changes.py: it waits for tenths of a second, which an emulated processor does not keep.
    "tests/lab/probing/test_wireguard_port.py",
    "tests/lab/probing/test_birthday_path.py",
    "tests/lab/probing/test_mss.py",
    # The relay between two whose WireGuard is the kernel's, by rules and by the agent.
    "tests/lab/relay/test_relay.py::test_by_nftables",
    "tests/lab/relay/test_relay.py::test_a_new_place_is_found_without_being_told",
    # What engines give up, by an older Landlock.
    "tests/unit/engine/test_enclose.py::test_an_enclosed_process_has_its_model_and_nothing_else",
    "tests/unit/engine/test_enclose.py::"
    "test_a_stage_that_has_met_its_neighbours_calls_nobody_by_any_thread",
    # Weather, wifi, and in the end what the kernel says of it all.
    "tests/vm/guest/test_netem.py",
    "tests/vm/guest/test_wifi.py",
    "tests/vm/guest/test_taint.py",
)
ENVIRONMENT = {
    "COVEY_TEST_DEVICES": "kernel",
    # The guest is a machine of its own, which ends with the tests.
    "COVEY_SANDBOX": "1",
    "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# No case uses it, and it warns where it cannot write. Emulated, all takes some ten times as long.
PYTEST = (
    sys.executable, "-m", "pytest", "--color=no", "--tb=short", "-p", "no:hypothesispytest",
    "-o", "timeout=300",
)  # fmt: skip
# From one case's end to the next one's: that one's own limit, and the boot before the first.
CASE_LIMIT_S = 1200.0
_COLLECT_S = 300.0
_CONSOLE_LINES = 60


class GuestFailure(Exception):
    """A case failed in the guest; the message is what was said there."""


def collected() -> list[str]:
    """Return the ids of all cases, as pytest finds them here."""
    command = [*PYTEST, "--collect-only", *CASES]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
        check=False, timeout=_COLLECT_S,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the guest's cases cannot be collected:\n{done.stdout}{done.stderr}")
    cases = [line for line in done.stdout.splitlines() if "::" in line]
    if len(cases) < len(CASES):
        raise RuntimeError(f"these are not all of the guest's cases:\n{done.stdout}")
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", collected(), ids=lambda case: case.rpartition("/")[2])


class Run:
    """The cases under way in a guest."""

    def __init__(self, guest: boot.Guest) -> None:
        self._guest = guest

    def result(self, case: str) -> dict[str, Any]:
        """Wait for a case's report; GuestFailure if none will come, or takes too long."""
        deadline = time.monotonic() + CASE_LIMIT_S
        while True:
            ended = not self._guest.runs
            for line in self._guest.reports():
                found: dict[str, Any] = json.loads(line)
                if found["case"] == case:
                    return found
            if ended or time.monotonic() > deadline:
                self._guest.end()  # those after this case have not to wait as long
                tail = "\n".join(self._guest.console().splitlines()[-_CONSOLE_LINES:])
                why = "ended" if ended else f"was silent for {CASE_LIMIT_S:.0f} s"
                raise GuestFailure(f"the guest {why} before this case had; its console:\n{tail}")
            time.sleep(0.1)


@contextmanager
def running(cases: list[str]) -> Iterator[Run]:
    """Run the cases in a guest."""
    # Two more than pyproject.toml's -q: the console names each case as it begins.
    pytest_there = [*PYTEST, "-vv", "-p", "reporter"]
    command = ["sh", "-c", 'exec "$@" "@$COVEY_VM_FILES/cases"', "sh", *pytest_there]
    files = {"cases": "".join(f"{case}\n" for case in cases)}
    with boot.start(command, folder=ROOT, environment=ENVIRONMENT, files=files) as guest:
        yield Run(guest)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """The guest, with those cases that were chosen here."""
    chosen = [item for item in request.session.items if isinstance(item, pytest.Function)]
    cases = [item.callspec.params["case"] for item in chosen if hasattr(item, "callspec")]
    with running(cases) as made:
        yield made


@pytest.mark.timeout(0)
def test_on_debians_kernel(run: Run, case: str) -> None:
    found = run.result(case)
    print(f"{found['seconds']:.1f} s in the guest\n{found['words']}")
    if found["outcome"] != "passed":
        # Skipped is no better: a Debian kernel has all that they need.
        raise GuestFailure(f"{found['outcome']} in the guest:\n{found['words']}")
