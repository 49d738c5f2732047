"""Runs the programs that building takes; says which package has a missing one. A shell."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.errors import EnvironmentFault

# Debian's packages, by program. tests/vm and image/build need them, `make test` does not.
PACKAGES = {
    "apt-get": "apt", "dpkg-deb": "dpkg", "depmod": "kmod", "mksquashfs": "squashfs-tools",
    "unsquashfs": "squashfs-tools", "grub-mkimage": "grub-common", "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
}  # fmt: skip
# Of one source only.
_MORE = {"bwrap": "bubblewrap"}
# What compiles for a CPU that is not this machine's; as (this machine's, the other).
_CROSS = {
    ("x86_64", "aarch64"): {
        "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
        "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    },
}
# Debian keeps administrators' programs off the path of people.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_TIMEOUT_S = 1800.0
_SHOWN_LINES = 3


def missing(arch: str = "") -> list[str]:
    """Return the packages whose programs are not there; with those that compile for `arch`."""
    wanted = PACKAGES | _CROSS.get((platform.machine(), arch), {})
    return sorted({wanted[name] for name in wanted if not shutil.which(name, path=PATH)})


def crosses(arch: str) -> bool:
    """Say whether this machine has another architecture, and builds for that one all the same."""
    return (platform.machine(), arch) in _CROSS


def require_machine(arch: str) -> None:
    """Raise EnvironmentFault unless this machine runs programs of an architecture."""
    if arch != platform.machine():
        raise EnvironmentFault(
            f"an image for {arch} is built with its own programs, and this machine is "
            f"{platform.machine()}",
            hint=f"Build it on a machine with {arch}.",
        )


def run(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None,
    hint: str = "", timeout_s: float = _TIMEOUT_S,
) -> str:  # fmt: skip
    """Run a program and return what it prints.

    Raises EnvironmentFault with its last words when it is missing, fails, or takes too long.
    """
    program = Path(command[0]).name
    try:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, "LC_ALL": "C", "TZ": "UTC", "PATH": PATH,
                                   **(env or {})},
            capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{program} is not installed",
            hint=f"Install the package {({**PACKAGES, **_MORE}).get(program, program)}.",
        ) from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{program} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        words = "; ".join(line.strip() for line in said[-_SHOWN_LINES:])
        raise EnvironmentFault(
            f"{program} failed: {words or f'exit status {done.returncode}'}", hint=hint
        )
    return done.stdout.decode(errors="replace")
