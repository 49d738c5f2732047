"""Makes the boot partition: FAT32 with files in it, by dosfstools and mtools. A shell.

The same files give the same bytes: each date is SOURCE_DATE_EPOCH's, the volume's id follows from
the files, and they are copied in the order of their names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from agent.errors import EnvironmentFault, UsageError
from image.disk.layout import LEAST_BOOT_BYTES, MIB

# In capitals, as Windows shows it; eleven characters at most.
LABEL = "COVEY"
# The first date that FAT can hold: 1 January 1980.
_FIRST_EPOCH_S = 315_532_800
_TIMEOUT_S = 120.0
_PACKAGES = {"mkfs.vfat": "dosfstools", "mmd": "mtools", "mcopy": "mtools"}
# Debian keeps mkfs off the path of people.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_ENVIRONMENT = {"LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"}
# Of 512-byte clusters a larger one would have a table that GRUB takes seconds to walk.
_SMALL_BYTES = 256 * MIB


def available() -> bool:
    """Say whether the programs that it takes are there."""
    return all(shutil.which(program, path=_PATH) for program in _PACKAGES)


def make(out: Path, size: int, files: Mapping[str, Path], epoch_s: int) -> None:
    """Write a FAT32 file system of `size` bytes with these files, by their paths in it.

    `epoch_s` (unix seconds, 1980 at the earliest) dates everything. Raises UsageError for what does
    not fit, and EnvironmentFault where a program is missing or fails.
    """
    if size < LEAST_BOOT_BYTES or size % MIB:
        raise UsageError(f"{size} bytes are no size of a boot partition")
    if epoch_s < _FIRST_EPOCH_S:
        raise UsageError(
            f"SOURCE_DATE_EPOCH {epoch_s} is before 1980, and FAT cannot hold that",
            hint="Set it to the time of the last commit.",
        )
    environment = _ENVIRONMENT | {"TZ": "UTC", "SOURCE_DATE_EPOCH": str(epoch_s)}
    ordered = sorted(files)
    with tempfile.TemporaryDirectory(prefix="covey-boot-") as folder:
        image = Path(folder) / "image"
        with image.open("wb") as file:
            file.truncate(size)
        cluster = ["-s", "1"] if size <= _SMALL_BYTES else []
        volume = _volume_id(files, ordered, epoch_s)
        _run(
            ["mkfs.vfat", "--invariant", "-F", "32", *cluster, "-i", volume, "-n", LABEL,
             str(image)],
            environment,
        )  # fmt: skip
        for directory in _directories(ordered):
            _run(["mmd", "-i", str(image), f"::{directory}"], environment)
        for name in ordered:
            # mcopy -m takes the file's own time.
            copy = Path(folder) / "file"
            shutil.copyfile(files[name], copy)
            os.utime(copy, (epoch_s, epoch_s))
            _run(["mcopy", "-m", "-i", str(image), str(copy), f"::{name}"], environment)
        shutil.copyfile(image, out)


def put(boot: Path, name: str, raw: bytes, epoch_s: int | None = None) -> None:
    """Put a file into a boot partition that was made, in the place of one of that name.

    `epoch_s` (unix seconds) dates it; without it, it is of now. Raises EnvironmentFault where
    mtools is missing, or the file does not fit.
    """
    environment = dict(_ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="covey-boot-") as folder:
        file = Path(folder) / "file"
        file.write_bytes(raw)
        if epoch_s is not None:
            os.utime(file, (epoch_s, epoch_s))
            environment |= {"TZ": "UTC", "SOURCE_DATE_EPOCH": str(epoch_s)}
        _run(["mcopy", "-o", "-m", "-i", str(boot), str(file), f"::{name}"], environment)


def _directories(names: list[str]) -> list[str]:
    """Return the folders that files lie in, the outer ones first."""
    found = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    return sorted(found - {"."})


def _volume_id(files: Mapping[str, Path], ordered: list[str], epoch_s: int) -> str:
    digest = hashlib.sha256(str(epoch_s).encode())
    for name in ordered:
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name].read_bytes()).digest())
    return digest.hexdigest()[:8]


def _run(command: list[str], environment: dict[str, str]) -> None:
    program = command[0]
    try:
        done = subprocess.run(
            command,
            env={"PATH": _PATH, **environment},
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{program} is not installed", hint=f"Install the package {_PACKAGES[program]}."
        ) from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{program} did not end within {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise EnvironmentFault(
            f"{program} failed: {reason[-1] if reason else f'exit status {done.returncode}'}",
            hint="Check that the files fit, and the free space in the temporary folder.",
        )
