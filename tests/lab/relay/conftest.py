"""Puts what lies beside the tests on the path, which pytest's importlib mode does not."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "unit" / "relay")]
