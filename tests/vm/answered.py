"""Runs answer.py in a sandbox and checks what it found; for the tests beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from imagebuild import ROOT

_TIMES = ("joined", "deployed", "answered")


def run(
    image: Path, folder: Path, count: int, cpu: str = "max", arch: str = "x86_64"
) -> dict[str, Any]:
    """Return what answer.py found."""
    script = Path(__file__).with_name("answer.py")
    done = subprocess.run(
        [sys.executable, "-m", "agent.demo.sandbox", "--",
         sys.executable, script, image, folder, str(count), cpu, arch],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    times = ", ".join(f"{what} after {found[f'{what}_s']:.0f} s" for what in _TIMES)
    print(f"{count} with the CPU {cpu} ({arch}): {times}")
    return found


def check(found: dict[str, Any], count: int, expected: str) -> None:
    """Compare with so many appliances that answer as llama.cpp does by itself."""
    names = {f"shed-{number}" for number in range(1, count + 1)}
    stages = found["deployment"]["stages"]
    assert {stage["name"] for stage in stages} == names
    assert found["bytes"].keys() == names
    assert all(received and sent for received, sent in found["bytes"].values())
    for console in found["shown"]:
        assert "WireGuard: covey0 (kernel), UDP port 51820" in console
        assert "ERROR" not in console
        assert re.search(r"Mesh: home, fd\S+, \d peer", console)
    (answer,) = found["answers"]
    assert answer["text"] == expected
    assert "".join(answer["pieces"]) == expected
