"""The OCI images run: crun starts the agent and the gateway out of what the tar says of them.

Needs: crun, and root, since the gateway's user is another one.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import __version__

ROOT = Path(__file__).parents[2]
# On a machine with other work.
START_S = 120.0
# Control groups are the engine's affair. Debian's crun refuses a machine that has both versions of
# them, so that it is shown none.
_WITHOUT_CGROUPS = 'umount -R -l /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; exec "$@"'
_CRUN = ("unshare", "-m", "sh", "-c", _WITHOUT_CGROUPS, "sh", "crun", "--cgroup-manager=disabled")
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.getuid() != 0 or shutil.which("crun") is None, reason="no crun, or root"),
]


class Images:
    """The tar, taken apart in a folder: one root for both images."""

    def __init__(self, tar: Path, folder: Path) -> None:
        with tarfile.open(tar) as archive:
            archive.extractall(folder / "layout")
        self._layout = folder / "layout"
        self._folder = folder
        index = json.loads((self._layout / "index.json").read_bytes())
        self._manifests = {
            found["annotations"]["org.opencontainers.image.ref.name"]: self._json(found)
            for found in index["manifests"]
        }
        layer = self._blob(self._manifests["agent"]["layers"][0])
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as archive:
            archive.extractall(folder / "root", numeric_owner=True)

    @contextmanager
    def running(
        self, name: str, *arguments: str, **settings: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start an image as an engine does; leaving the block ends it."""
        said = self._json(self._manifests[name]["config"])["config"]
        bundle = self._folder / name
        bundle.mkdir()
        subprocess.run(["crun", "spec"], cwd=bundle, check=True)
        spec = json.loads((bundle / "config.json").read_text())
        user, _, group = said.get("User", "0:0").partition(":")
        spec["root"] = {"path": str(self._folder / "root"), "readonly": False}
        spec["process"] |= {
            "terminal": False, "cwd": said["WorkingDir"],
            "args": [*said["Entrypoint"], *(arguments or said["Cmd"])],
            "env": [*said["Env"], *(f"{key}={value}" for key, value in settings.items())],
            "user": {"uid": int(user), "gid": int(group)},
        }  # fmt: skip
        # This machine's network, so that its port can be asked.
        spec["linux"].pop("resources", None)
        spaces = spec["linux"]["namespaces"]
        spec["linux"]["namespaces"] = [one for one in spaces if one["type"] != "network"]
        (bundle / "config.json").write_text(json.dumps(spec))
        container = f"covey-test-{os.getpid()}-{name}"
        command = [*_CRUN, "run", container]
        with subprocess.Popen(
            command, cwd=bundle, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                subprocess.run([*_CRUN, "delete", "--force", container], check=False,
                               capture_output=True)  # fmt: skip

    def _blob(self, descriptor: dict[str, Any]) -> bytes:
        return (self._layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()

    def _json(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._blob(descriptor))
        return found


def health(listen: str) -> str | None:
    """Return what a gateway says of itself; None while it does not listen."""
    try:
        with urllib.request.urlopen(f"http://{listen}/health", timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images' tar; COVEY_TEST_OCI names one that is there already."""
    if named := os.environ.get("COVEY_TEST_OCI"):
        return Path(named)
    out = tmp_path_factory.mktemp("oci") / "covey-oci.tar"
    done = subprocess.run(
        [sys.executable, "-m", "image.make", "--oci", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def images(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tar, tmp_path_factory.mktemp("images"))


def test_the_agent_says_its_version(images: Images) -> None:
    with images.running("agent", "--version") as process:
        words, _ = process.communicate(timeout=START_S)
    assert words.strip() == f"agent, version {__version__}"
    assert process.returncode == 0


def test_the_gateway_answers_as_a_user_without_rights(images: Images) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listen = f"127.0.0.1:{port}"
    with images.running("gateway", COVEY_GATEWAY_LISTEN=listen) as process:
        deadline = time.monotonic() + START_S
        answer = None
        while answer is None and time.monotonic() < deadline and process.poll() is None:
            answer = health(listen)
            time.sleep(0.3)
        shown = subprocess.run(
            ["ps", "-C", "gateway,python3", "-o", "uid=,args="], capture_output=True, text=True,
            check=False,
        ).stdout  # fmt: skip
    assert any(
        line.split()[0] == "65532" and "gateway serve" in line for line in shown.splitlines()
    ), shown
    # There is no agent beside it, and so it says.
    assert answer is not None
    assert "no agent is running on /run/covey-gateway/agent.sock" in answer
