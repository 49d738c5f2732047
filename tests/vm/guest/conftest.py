"""Puts the networks of the lab's tests on the path, which pytest's importlib mode does not."""

import sys
from pathlib import Path

_LAB = Path(__file__).parents[2] / "lab"
sys.path[:0] = [str(_LAB / "probing"), str(_LAB / "nat")]
