"""Tests in a guest with a Debian kernel: `guest/` are those that run only there.

Here stands what puts the files beside the tests on the path; importlib mode does not.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# In the guest the cases run, here what starts them.
IN_GUEST = os.environ.get("COVEY_TEST_DEVICES") == "kernel"
_OUTSIDE = ["test_guest.py", "test_boot.py", "test_image.py", "test_update.py"]
collect_ignore = _OUTSIDE if IN_GUEST else ["guest"]
