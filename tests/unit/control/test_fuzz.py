"""A small part of tests/fuzz/control.py, so that it is known to work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "fuzz" / "control.py"


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_bytes_raise_nothing_of_their_own(seed: int) -> None:
    spec = importlib.util.spec_from_file_location("fuzz_control", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.fuzz(3000, seed)
