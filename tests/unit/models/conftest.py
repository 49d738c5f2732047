"""Where the tests of models find their servers and models."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "engine"):
    sys.path.insert(0, str(folder))
