"""Builds the appliance's image as people do; used by conftest.py and test_image.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(out: Path, *flags: str) -> None:
    """Build an image into a file; what went wrong fails the test."""
    command = [sys.executable, "-m", "image.make", "--out", str(out), *flags]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, cwd=out.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
