"""Python's packages for the image: pinned and hashed wheels, unpacked as they are. A shell.

What has no wheel is built here once, so the builder's Python has to be as the image's. A wheel
is a zip file; taking it apart gives the same files each time, which an installer does not.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path, PurePosixPath

from agent.errors import EnvironmentFault
from image.make.programs import run

# The image's, in Debian 12.
PYTHON = (3, 11)
PYTHON_WORDS = ".".join(map(str, PYTHON))
# llama.cpp for any CPU took 15 minutes of CPU time; a small machine that does more needs hours.
_LLAMA_S = 4 * 3600.0
# Many virtual machines announce AMX and do not let it run; what llama.cpp has for such CPUs dies
# there. Those CPUs take the part that is next to it, which lacks nothing but AMX.
_NOT_IN_IMAGE = "llama_cpp/lib/libggml-cpu-sapphirerapids."


def fetch(requirements: Path, cache: Path) -> list[Path]:
    """Return the wheels of a file with pinned hashes; what is not in the cache is fetched or built.

    Raises EnvironmentFault where pip cannot, or runs on another version of Python.
    """
    require_python()
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    folder = cache / f"wheels-{digest}"
    whole = folder / ".whole"
    if not whole.exists():
        run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps",
             "--require-hashes", "-w", folder, "-r", requirements],
            env={"SOURCE_DATE_EPOCH": "315532800"},
            hint="Check that the package index answers.",
        )  # fmt: skip
        whole.touch()
    return sorted(folder.glob("*.whl"))


def require_python() -> None:
    """Raise EnvironmentFault where this is another Python than the image's."""
    if sys.version_info[:2] != PYTHON:
        running = ".".join(map(str, sys.version_info[:2]))
        raise EnvironmentFault(
            f"the image has Python {PYTHON[0]}.{PYTHON[1]}, and this is {running}",
            hint="Build with that version: make PYTHON=python3.11 setup.",
        )


def llama(root: Path, cache: Path, arch: str, *, plain: bool) -> Path:
    """Return llama-cpp-python's wheel for any CPU; or a plain one: see llama_build.py."""
    requirements = root / "requirements"
    said = run(
        [sys.executable, root / "agent/engine/llama_build.py",
         "--requirements", requirements / "llama.txt",
         "--build-requirements", requirements / "build.txt", "--cache", cache, "--arch", arch,
         "--plain" if plain else "--any-cpu"],
        hint="`make setup` shows what is wrong.", timeout_s=_LLAMA_S,
    )  # fmt: skip
    return Path(said.splitlines()[-1])


def unpack(wheel: Path, packages: Path) -> None:
    """Unpack a wheel into a folder of packages; its programs and headers are left out.

    So is what llama.cpp has for CPUs with AMX.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            target = _target(member.filename)
            if target is None or member.is_dir():
                continue
            path = packages / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(member))


def _target(name: str) -> PurePosixPath | None:
    """Return where a wheel's file belongs among the packages (PEP 427); None for nowhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise EnvironmentFault(f"a wheel has a file outside itself: {name!r}")
    if name.startswith(_NOT_IN_IMAGE):
        return None
    if not path.parts[0].endswith(".data"):
        return path
    kind = path.parts[1] if len(path.parts) > 2 else ""
    return PurePosixPath(*path.parts[2:]) if kind in ("purelib", "platlib") else None
