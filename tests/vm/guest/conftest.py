"""Puts this folder and the lab's networks on the path, which importlib mode does not."""

import sys
from pathlib import Path

_LAB = Path(__file__).parents[2] / "lab"
sys.path[:0] = [str(Path(__file__).parent), str(_LAB / "probing"), str(_LAB / "nat")]
