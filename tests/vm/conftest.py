"""Tests in a guest with a Debian kernel, and of the appliance.

`guest/` are those that run only in the guest. Here stands what puts the files beside the tests on
the path; importlib mode does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from versions import Made

sys.path.insert(0, str(Path(__file__).parent))

# In the guest the cases run, here what starts them.
IN_GUEST = os.environ.get("COVEY_TEST_DEVICES") == "kernel"
_HERE = [path.name for path in Path(__file__).parent.glob("test_*.py")]
collect_ignore = _HERE if IN_GUEST else ["guest"]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the appliance's image."""
    from imagebuild import build

    out = tmp_path_factory.mktemp("image") / "covey.img"
    build(out)
    return out


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Return an image that takes updates, and updates to it."""
    from versions import make

    with make(tmp_path_factory.mktemp("updates")) as found:
        yield found


@pytest.fixture(scope="session")
def expected() -> str:
    """Return what llama.cpp answers on this machine, in one process and nothing else with it."""
    from answer import QUESTION
    from imagebuild import ROOT

    from agent.models import bundled

    script = ROOT / "tests/lab/reference.py"
    done = subprocess.run(
        [sys.executable, str(script), str(bundled.path()), QUESTION],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return "".join(json.loads(done.stdout)[0])
