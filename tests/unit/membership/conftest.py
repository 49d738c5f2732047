"""For every membership test."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync (5 ms a file); identity/test_keyfile.py tests that it is called, and when."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
