"""Compiles what PyPI has no wheel of for Debian on another CPU, with Debian's cross compiler.

A shell. Nothing of the other CPU is run: setuptools and CMake are told what it is, and its headers
and libraries come out of Debian's packages for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from image.make import foreign
from image.make.foreign import Target
from image.make.packages import chosen
from image.make.programs import PATH, run

if TYPE_CHECKING:
    from image.make.debian import Apt

# What is compiled against; the compiler brings its own C library.
_NEEDED = ("libpython3.11-dev", "libgmp-dev")
_EPOCH_S = "315532800"


def wheels(target: Target, apt: Apt, cache: Path) -> list[Path]:
    """Return the wheels for a target; what is not in the cache is built.

    Raises EnvironmentFault where the compiler is missing, or fails.
    """
    sources = foreign.sources(target, cache)
    words = [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources]
    digest = hashlib.sha256(f"{target} {words}".encode()).hexdigest()[:16]
    kept = cache / f"crossbuilt-{target.arch}-{digest}"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            folder = Path(scratch)
            sysroot = folder / "sysroot"
            sysroot.mkdir()
            # All of its dependencies come along, and are only read.
            for file in apt.fetch(chosen(apt.simulated(_NEEDED))):
                run(["dpkg-deb", "-x", file, sysroot])
            built = folder / "built"
            for source in sources:
                _build(source, target, sysroot, folder, built, foreign.builder(cache))
            built.rename(kept)
    return sorted(kept.glob("*.whl"))


def _build(
    source: Path, target: Target, sysroot: Path, folder: Path, out: Path, python: Path
) -> None:
    triple = f"{target.arch}-linux-gnu"
    # The other Python's own account of how its extensions are compiled.
    facts = folder / "facts"
    facts.mkdir(exist_ok=True)
    name = f"_sysconfigdata__{triple}"
    shutil.copyfile(sysroot / f"usr/lib/python{target.python}/{name}.py", facts / f"{name}.py")
    include = sysroot / "usr/include"
    headers = (include / f"python{target.python}", include / triple, include)
    options = {
        "CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": target.arch,
        "CMAKE_C_COMPILER": f"{triple}-gcc", "CMAKE_CXX_COMPILER": f"{triple}-g++",
        "GGML_NATIVE": "OFF", "GGML_RPC": "ON",
    }  # fmt: skip
    run(
        [python, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-cache-dir",
         "--no-deps", "--no-index", "--no-build-isolation", "-w", out, source],
        env={
            "_PYTHON_HOST_PLATFORM": f"linux-{target.arch}", "_PYTHON_SYSCONFIGDATA_NAME": name,
            "PYTHONPATH": str(facts), "SOURCE_DATE_EPOCH": _EPOCH_S,
            "PATH": f"{python.parent}:{PATH}",
            "CC": f"{triple}-gcc", "CXX": f"{triple}-g++", "LDSHARED": f"{triple}-gcc -shared",
            "CFLAGS": " ".join(f"-idirafter {header}" for header in headers),
            "LDFLAGS": f"-L{sysroot}/usr/lib/{triple}",
            "CMAKE_ARGS": " ".join(f"-D{key}={value}" for key, value in options.items()),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        },
        hint=f"{source.name} is compiled with Debian's package g++-{triple}.",
    )  # fmt: skip
