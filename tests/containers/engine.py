"""podman with a store of its own, in a sandbox: what a person's engine does, and no trace of it.

Used by the tests of containers alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "image" / "containers" / "compose.yaml"
# A slow machine with other work.
PATIENCE_S = 600.0
# To load images is slow where the disk is.
_COMMAND_S = 1200.0
_GROUPS = Path("/sys/fs/cgroup")


def limit(kind: int, most: int) -> str:
    """Return SOFT:HARD of a limit that an engine may set here, which may be no larger than ours."""
    hard = resource.getrlimit(kind)[1]
    found = most if hard == resource.RLIM_INFINITY else min(most, hard // 2)
    return f"{found}:{found}"


class Engine:
    """One podman; `folder` has all that it keeps."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        files, processes = limit(resource.RLIMIT_NOFILE, 65536), limit(resource.RLIMIT_NPROC, 32768)
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\n'
            f'runroot = "{folder}/run"\n'
        )
        (folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["nofile={files}", "nproc={processes}"]\n'
            f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "crun"\n'
            f'tmp_dir = "{folder}/tmp"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n'
        )
        self._environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "CONTAINERS_CONF": f"{folder}/containers.conf",
        }

    def podman(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run podman to its end."""
        return subprocess.run(
            ["podman", *arguments], env=self._environment, capture_output=True, text=True,
            check=False, timeout=_COMMAND_S, input=text,
        )  # fmt: skip

    def done(self, *arguments: str, text: str | None = None) -> str:
        """Return what podman says; what fails fails the test."""
        found = self.podman(*arguments, text=text)
        assert found.returncode == 0, (arguments, found.stdout, found.stderr)
        return found.stdout

    def compose(self, *arguments: str, **settings: str) -> str:
        """Run podman-compose on compose.yaml, with variables of its own."""
        found = subprocess.run(
            [sys.executable, "-m", "podman_compose", "-f", str(COMPOSE), *arguments],
            env={**self._environment, **settings}, capture_output=True, text=True, check=False,
            timeout=_COMMAND_S,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    def inspect(self, container: str) -> dict[str, Any]:
        """Return all that podman knows of a container."""
        found: dict[str, Any] = json.loads(self.done("inspect", container))[0]
        return found

    def remove(self) -> None:
        """Remove containers, volumes, images and the store."""
        self.podman("pod", "rm", "-fa", "-t", "0")
        self.podman("rm", "-fa", "-t", "0")
        self.podman("volume", "rm", "-fa")
        self.podman("rmi", "-fa")
        subprocess.run(["umount", "-R", "-l", str(self._folder / "graph")], check=False,
                       capture_output=True)  # fmt: skip
        shutil.rmtree(self._folder, ignore_errors=True)
        # podman leaves the groups that it made others in; those that another one uses stay.
        for made in (*_GROUPS.glob("libpod_parent"), *_GROUPS.glob("*/libpod_parent")):
            for folder, _, _ in os.walk(made, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def eventually(found: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Return what is found once it is true; its last state fails the test."""
    deadline = time.monotonic() + within_s
    while not (last := found()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {last}"
        time.sleep(0.5)
    return last
