"""wireguard-go without real root: the same cases in a user, network and mount namespace.

The demo runs like this. As root only some cases are run again here; without root, where the other
files skip their namespaces, all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_FOLDER = Path(__file__).parent
_WITH_NAMESPACES = ("device_contract", "userspace", "kernel", "shell")
_SOME = "traffic_flows or left"


def test_userspace_wireguard_in_a_user_namespace() -> None:
    select = ["-k", _SOME] if os.geteuid() == 0 else []
    files = [str(_FOLDER / f"test_{name}.py") for name in _WITH_NAMESPACES]
    plugins = ["-p", "no:hypothesispytest"]  # unused here, and slow to load
    root = ["--rootdir", str(_FOLDER.parents[2])]
    pytest = [sys.executable, "-m", "pytest", *plugins, *root, *select, *files]
    namespaces = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--"]
    # wireguard-go's sockets are in /run, which is not ours to write in.
    inside = 'mount -t tmpfs tmpfs /run && exec "$@"'
    done = subprocess.run(
        [*namespaces, "sh", "-c", inside, "sh", *pytest],
        env={**os.environ, "COVEY_TEST_DEVICES": "userspace"},
        cwd=_FOLDER.parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, (
        "real WireGuard devices could not be tested: this needs root, or user namespaces and"
        f" /dev/net/tun open to everyone\n{done.stdout}\n{done.stderr}"
    )
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
