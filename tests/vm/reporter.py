"""A pytest plugin for the guest: one JSON line to the second serial port for each case that ends.

`test_guest.py` reads them on the other side.
"""

from __future__ import annotations

import json
import os

import pytest
from boot import REPORTS

# A serial port is slow, and nobody reads more.
_WORDS_MAX = 20_000


class Reporter:
    """Sums up setup, call and teardown of one case after the other."""

    def __init__(self) -> None:
        self._port = os.open(REPORTS, os.O_WRONLY | os.O_NOCTTY)
        self._reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        reports, self._reports = self._reports, []
        outcomes = {report.outcome for report in reports}
        words = [report.longreprtext for report in reports if report.longreprtext]
        # Of all stages the last report has what was captured in them all.
        words += [f"-- {title}\n{text}" for title, text in reports[-1].sections if text.strip()]
        self._say(
            case=nodeid,
            outcome=next(o for o in ("failed", "skipped", "passed") if o in outcomes),
            seconds=sum(report.duration for report in reports),
            words="\n".join(words)[-_WORDS_MAX:],
        )

    def _say(self, **fields: object) -> None:
        line = json.dumps(fields).encode() + b"\n"
        while line:
            line = line[os.write(self._port, line) :]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reporter())
