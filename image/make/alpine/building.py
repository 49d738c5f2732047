"""Builds wheels among Alpine's own packages: in a root made of them, without a network. A shell.

bubblewrap enters that root in namespaces of its own, as any user. What is built can write to a
folder for it alone, so the root stays as it was unpacked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.engine.llama_build import ANY_CPU_OPTIONS
from image.make import commands, foreign, wheels
from image.make.alpine import repository
from image.make.alpine.index import Entry
from image.make.programs import run
from image.make.source import Layout

_WORK = Path("/tmp/work")  # noqa: S108 - in the root's own memory
# What runs in there: PEP 517 without pip, which Alpine's Python lacks.
_SCRIPT = f"""
import importlib, os, sys, tarfile, tomllib
os.chdir("{_WORK}")
tarfile.open("source").extractall("source.d")
os.chdir(os.path.join("source.d", os.listdir("source.d")[0]))
wanted = {{}}
if os.path.exists("pyproject.toml"):
    with open("pyproject.toml", "rb") as file:
        wanted = tomllib.load(file).get("build-system", {{}})
sys.path[:0] = [os.path.abspath(path) for path in wanted.get("backend-path", [])]
name, _, inner = wanted.get("build-backend", "setuptools.build_meta:__legacy__").partition(":")
backend = importlib.import_module(name)
for part in filter(None, inner.split(".")):
    backend = getattr(backend, part)
backend.build_wheel("{_WORK}/out")
"""


@dataclass(frozen=True)
class Stage:
    """What building takes: packages of a mirror, and a cache for the root and for what is built."""

    mirror: repository.Mirror
    packages: list[Entry]
    cache: Path
    layout: Layout

    def wheels(self, sources: list[Path], target: foreign.Target) -> list[Path]:
        """Return a wheel of each archive of sources; built once with the same packages."""
        return [self._wheel(source, target) for source in sources]

    def _wheel(self, source: Path, target: foreign.Target) -> Path:
        content = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
        kept = self.cache / "built" / f"{content}-{repository.digest(self.packages)}"
        if not list(kept.glob("*.whl")):
            kept.mkdir(parents=True, exist_ok=True)
            return wheel(self._root(), source, foreign.build_tools(target, self.cache), kept)
        return next(kept.glob("*.whl"))

    def _root(self) -> Path:
        """Return the root that it is built in; unpacked once."""
        root = self.cache / f"stage-{repository.digest(self.packages)}"
        if not root.exists():
            self.mirror.fetch(self.packages)
            with tempfile.TemporaryDirectory(dir=self.cache, prefix="unpacking-") as scratch:
                fresh = Path(scratch) / "root"
                fresh.mkdir()
                self.mirror.unpack(self.packages, fresh)
                (fresh / self.layout.busybox).rename(fresh / "bin/busybox")
                commands.link(fresh, fresh / "bin/busybox")
                fresh.rename(root)
        return root


def wheel(root: Path, source: Path, tools: list[Path], out: Path) -> Path:
    """Return the wheel of an archive of sources, built in `root` with `tools`, put into `out`.

    Raises EnvironmentFault with the last words of what failed.
    """
    with tempfile.TemporaryDirectory(prefix="covey-stage-") as scratch:
        work = Path(scratch)
        (work / "out").mkdir()
        (work / "tools").mkdir()
        shutil.copyfile(source, work / "source")
        for tool in tools:
            wheels.unpack(tool, work / "tools")
        values = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "LC_ALL": "C.UTF-8",  # noqa: S108
            "PYTHONPATH": f"{_WORK}/tools", "SOURCE_DATE_EPOCH": "315532800",
            "CMAKE_ARGS": " ".join(ANY_CPU_OPTIONS),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        }  # fmt: skip
        settings = [word for key, value in values.items() for word in ("--setenv", key, value)]
        run(
            ["bwrap", "--unshare-all", "--die-with-parent", "--clearenv", *settings,
             "--ro-bind", root, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",  # noqa: S108
             "--bind", work, _WORK, "/usr/bin/python3", "-c", _SCRIPT],
            hint=f"It is built from {source.name} among the packages in {root}.",
        )  # fmt: skip
        built = next((work / "out").glob("*.whl"))
        partial = out / f".{built.name}.{os.getpid()}"
        shutil.copyfile(built, partial)
        return partial.rename(out / built.name)
