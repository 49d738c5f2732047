"""An engine of an agent that is no root has none of that agent's rights over the network."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
os.geteuid, os._exit = lambda: {user}, lambda code: None
from agent.engine import process
process.main()
sys.stderr.write(open("/proc/self/status").read())
"""


@pytest.mark.parametrize("user", [900, 0])
def test_only_roots_engine_keeps_its_rights(user: int) -> None:
    # Told nothing, it ends; what is asked here comes before it is told.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(user=user)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = dict(re.findall(r"^Cap(\w+):\s+(\w+)$", done.stderr, re.MULTILINE))
    with open("/proc/self/status") as status:
        ours = dict(re.findall(r"^Cap(\w+):\s+(\w+)$", status.read(), re.MULTILINE))
    kinds = ("Eff", "Prm", "Inh", "Amb")
    none = dict.fromkeys(kinds, f"{0:016x}")
    assert {kind: found[kind] for kind in kinds} == (
        none if user else {kind: ours[kind] for kind in kinds}
    )
