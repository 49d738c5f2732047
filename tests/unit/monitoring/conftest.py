"""Puts `queries`, and the figures of tests/unit/http, on the path, which pytest does not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "http"))
