"""Python's packages for another Python than the one that builds: other version, C library or CPU.

A shell. What is pinned is the same for all: requirements/runtime.txt has the hashes of each file of
each version. PyPI's wheels are taken as they are; for the others their sources are.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from image.make.programs import PATH, run

REPOSITORY = Path(__file__).parents[2]
REQUIREMENTS = REPOSITORY / "requirements"
# Where the image has Python's packages, whatever its source.
PACKAGES = Path("usr/lib/python3/dist-packages")
# Those that PyPI has no wheel of for every Python, CPU and C library that an image may have.
SOURCE_ONLY = frozenset(("fastecdsa", "miniupnpc", "python-baseconv", "varint"))
_LLAMA = "llama-cpp-python"
PIP = ("-m", "pip", "--disable-pip-version-check", "-q")
_HINT = "Check that the package index answers; what it has no wheel of belongs to SOURCE_ONLY."


@dataclass(frozen=True)
class Target:
    """A Python: its version like 3.12, its CPU, and the newest platform that wheels may be for."""

    python: str
    arch: str
    platform: str

    @property
    def platforms(self) -> list[str]:
        """All platforms that wheels may be for, as PEP 600 and PEP 656 order them."""
        match = re.fullmatch(r"(musllinux_1|manylinux_2)_(\d+)_(\w+)", self.platform)
        if match is None:
            return [self.platform]
        kind, newest, arch = match[1], int(match[2]), match[3]
        least = 17 if kind == "manylinux_2" else 0
        found = [f"{kind}_{minor}_{arch}" for minor in range(newest, least - 1, -1)]
        return [*found, f"manylinux2014_{arch}"] if least else found


def pins(text: str, target: Target) -> Iterator[tuple[str, str]]:
    """Yield the name and the line, with hashes, of each requirement that a target has."""
    environment = {
        "python_version": target.python, "python_full_version": f"{target.python}.0",
        "platform_machine": target.arch, "sys_platform": "linux", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    for line in text.replace("\\\n", " ").splitlines():
        words, sign, hashes = line.partition("--hash")
        if not words.strip() or words.startswith("#"):
            continue
        wanted = Requirement(words.strip())
        if wanted.marker is None or wanted.marker.evaluate(environment):
            # pip would read the marker as one for the Python that it runs on.
            yield wanted.name, f"{wanted.name}{wanted.specifier} {sign}{' '.join(hashes.split())}"


def ready(target: Target, cache: Path) -> list[Path]:
    """Return the wheels that PyPI has; what is not in the cache is fetched."""
    found = pins((REQUIREMENTS / "runtime.txt").read_text(), target)
    lines = [line for name, line in found if name not in SOURCE_ONLY]
    return _fetched(lines, target, cache)


def build_tools(target: Target, cache: Path) -> list[Path]:
    """Return the wheels that building takes on a target."""
    found = pins((REQUIREMENTS / "build.txt").read_text(), target)
    return _fetched([line for _, line in found], target, cache)


def sources(
    target: Target, cache: Path, names: frozenset[str] = SOURCE_ONLY | {_LLAMA}
) -> list[Path]:
    """Return archives of sources; without `names`, of all that PyPI has no wheel of."""
    pinned = "".join((REQUIREMENTS / name).read_text() for name in ("runtime.txt", "llama.txt"))
    lines = [line for name, line in pins(pinned, target) if name in names]

    def fetch(folder: Path, file: Path) -> None:
        # pip asks each for its facts, which takes what builds it.
        python = builder(cache)
        run(
            [python, *PIP, "download", "--no-deps", "--require-hashes", "--no-binary", ":all:",
             "--no-build-isolation", "-d", folder, "-r", file],
            env={"PATH": f"{python.parent}:{PATH}"}, hint=_HINT,
        )  # fmt: skip

    return kept(lines, cache, "sources", fetch)


def builder(cache: Path) -> Path:
    """Return the Python of an environment with what builds packages, pinned; made once."""
    requirements = REQUIREMENTS / "build.txt"
    folder = cache / f"builder-{_digest([sys.version, requirements.read_text()])}"
    python = folder / "bin/python"
    if not (folder / ".whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", folder], hint="Install python3-venv.")
        run([python, *PIP, "install", "--require-hashes", "-r", requirements], hint=_HINT)
        (folder / ".whole").touch()
    return python


def _fetched(lines: list[str], target: Target, cache: Path) -> list[Path]:
    platforms = [word for name in target.platforms for word in ("--platform", name)]

    def fetch(folder: Path, file: Path) -> None:
        run(
            [sys.executable, *PIP, "download", "--no-deps", "--require-hashes", "--only-binary",
             ":all:", "--implementation", "cp", "--python-version", target.python, *platforms,
             "-d", folder, "-r", file],
            hint=_HINT,
        )  # fmt: skip

    return kept(lines, cache, f"wheels-{target.python}-{target.platform}", fetch)


def kept(
    lines: list[str], cache: Path, name: str, fetch: Callable[[Path, Path], None]
) -> list[Path]:
    """Return the files that `fetch` put into a folder, once for these lines; all or none is there.

    It is given that folder, and a file with the lines.
    """
    folder = cache / f"{name}-{_digest(lines)}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
            files = Path(scratch) / "files"
            files.mkdir()
            pinned = Path(scratch) / "pinned.txt"
            pinned.write_text("\n".join(lines) + "\n")
            fetch(files, pinned)
            files.rename(folder)
    return sorted(folder.iterdir())


def _digest(words: list[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
