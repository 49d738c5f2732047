"""The containers run: podman, with compose.yaml and with the pods of kubernetes/, in a sandbox.

`make containers` starts them; they take minutes, and root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine import ROOT, Engine

from agent.demo import sandbox

_NEEDED = ("podman", "crun", "conmon", "iptables", "catatonit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.timeout(3600))
        if os.getuid() != 0 or missing or not sandbox.inside():
            why = f"needs root, a sandbox, and {' '.join(missing) or 'nothing else'}"
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images' tar; COVEY_TEST_OCI names one that is there already."""
    if named := os.environ.get("COVEY_TEST_OCI"):
        return Path(named)
    out = tmp_path_factory.mktemp("oci") / "covey-oci.tar"
    done = subprocess.run(
        [sys.executable, "-m", "image.make", "--oci", "--plain", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def engine(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """podman, with both images."""
    # crun refuses a machine that has both versions of control groups; here it sees the older one.
    if Path("/sys/fs/cgroup/unified").is_mount():
        subprocess.run(["umount", "/sys/fs/cgroup/unified"], check=True)
    made = Engine(tmp_path_factory.mktemp("podman") / "engine")
    try:
        made.done("load", "-q", "-i", str(images))
        yield made
    finally:
        made.remove()
