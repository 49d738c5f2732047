"""Health: the present faults, once each, severest first."""

import logging

import pytest

from agent.health import Health, HealthItem

WARNING = HealthItem("a-code", "warning", "A title", "what it means", "what to do")
ERROR = HealthItem("z-code", "error", "Z title", "what it means", "what to do")


def test_errors_come_before_warnings() -> None:
    health = Health()
    health.set(WARNING)
    health.set(ERROR)
    assert health.items() == [ERROR, WARNING]
    health.clear("z-code")
    assert health.items() == [WARNING]


def test_one_log_line_for_a_change_and_none_for_the_same_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = Health()
    with caplog.at_level(logging.INFO):
        health.set(ERROR)
        health.set(ERROR)
        health.clear("z-code")
        health.clear("z-code")
    assert len(caplog.records) == 2
