"""An appliance takes an update from another member, which was updated to it before."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from imagebuild import ROOT
from versions import Made


# Two machines start twice each, and are updated.
@pytest.mark.timeout(5400)
def test_a_member_gives_the_update_that_it_runs(made: Made, tmp_path: Path) -> None:
    script = Path(__file__).with_name("from_member.py")
    done = subprocess.run(
        [sys.executable, "-m", "agent.demo.sandbox", "--",
         sys.executable, script, made.image, tmp_path, made.folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"the update came from the member within {found['took_s']:.0f} s")
    # One that was flashed has it as well, if its image was signed.
    with (made.folder / "base.update").open("rb") as file:
        assert found["flashed"] == hashlib.file_digest(file, "sha256").hexdigest()
    assert "host does not give the update" in found["refused"]
    # Over the overlay, whole.
    assert found["received"] > (made.folder / "good.update").stat().st_size
    for standing in found["standings"]:
        assert (standing["version"], standing["slot"], standing["trial"]) == ("0.2.0", "b", None)
        assert standing["last_error"] == ""
