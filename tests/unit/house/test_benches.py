"""Every bench of `make bench` starts, and says how it is called."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
(LINE,) = re.findall(r"^BENCHES := (.*)$", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("bench", LINE.split())
def test_it_says_how_it_is_called(bench: str) -> None:
    file = ROOT / "tests" / "bench" / f"{bench}.py"
    done = subprocess.run(
        [sys.executable, str(file), "--help"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--json" in done.stdout
