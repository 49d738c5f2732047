"""The simulated mesh is shared by the tests of this folder."""

import sys
from pathlib import Path

# `simulation` lies beside the tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))
