"""Puts the files that other folders' tests share on the path, which importlib mode does not."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "disk"), str(HERE.parent / "node")]
