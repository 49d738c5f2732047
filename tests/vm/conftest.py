"""Tests in a guest with a Debian kernel: `guest/` are those that run only there.

Here stands what puts the files beside the tests on the path; importlib mode does not.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# In the guest the cases run, here what starts them.
IN_GUEST = os.environ.get("COVEY_TEST_DEVICES") == "kernel"
_HERE = [path.name for path in Path(__file__).parent.glob("test_*.py")]
collect_ignore = _HERE if IN_GUEST else ["guest"]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the appliance's image."""
    from test_image import build

    out = tmp_path_factory.mktemp("image") / "covey.img"
    build(out)
    return out
