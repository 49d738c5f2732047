"""The playbooks against the appliance, beside a machine that they install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from imagebuild import ROOT
from playbooks import ISSUER, NAME

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.skipif(os.geteuid() != 0, reason="the playbooks' machines are made by root alone")
def test_site_yml_takes_an_appliance_in(image: Path, tmp_path: Path) -> None:
    prepare = [sys.executable, ROOT / "tests/ansible/prepare.py"]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    script = Path(__file__).with_name("playbooks.py")
    done = subprocess.run(
        [sys.executable, "-m", "agent.demo.sandbox", "--",
         sys.executable, script, image, tmp_path / "appliance"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    members = {member["name"]: member for member in found["members"]}
    assert members.keys() == {ISSUER, NAME}
    assert members[NAME]["tags"] == ["cellar"]
    (deployment,) = found["deployments"]
    assert {stage["name"] for stage in deployment["stages"]} == {ISSUER, NAME}
    for name, figures in found["second"]["figures"].items():
        assert not figures["changed"], (name, found["second"]["output"])
    assert f"{NAME} is an appliance, which keeps its release here" in " ".join(
        found["upgrade"]["output"].split()
    )
