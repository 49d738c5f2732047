"""Debian's packages for another CPU than this machine's, as a source. A shell.

None of that CPU's programs runs here. What an image needs of a program that runs comes of the same
packages for this machine: Python, which compiles, and busybox, which says what commands it has.
What has no wheel is compiled by a compiler for that CPU against headers and libraries of its own
packages; these are unpacked, and never installed. Used by image/make alone.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import EnvironmentFault
from image.make import foreign, grub, wheels
from image.make.debian import Apt, DebianPackages, layout, unpack
from image.make.packages import COMPONENTS
from image.make.programs import PATH, run
from image.make.source import Runnable

# Of this machine's architecture.
_RUN = (f"python{wheels.PYTHON_WORDS}", "busybox-static")
# What is compiled takes headers of Python and of GMP, GMP itself, and what Python says of its CPU.
_HEADERS = (
    *(f"libpython{wheels.PYTHON_WORDS}-{part}" for part in ("dev", "minimal", "stdlib")),
    "libgmp-dev", "libgmp10",
)  # fmt: skip
# Debian 12's C library is 2.36.
_GLIBC = "manylinux_2_36"


@dataclass(frozen=True, kw_only=True)
class CrossedPackages(DebianPackages):
    """Packages for another CPU; `apt` has more of them, and `here` has this machine's."""

    apt: Apt
    here: Apt

    def wheels(self) -> list[Path]:
        """Return PyPI's wheels, and those that are compiled for that CPU."""
        wheels.require_python()
        target = foreign.Target(wheels.PYTHON_WORDS, self.arch, f"{_GLIBC}_{self.arch}")
        found = foreign.ready(target, self.cache)
        sources = foreign.sources(target, self.cache, foreign.SOURCE_ONLY)
        found += compiled(sources, _named(self.apt, _HEADERS), target, self.cache)
        llama = wheels.llama(foreign.REPOSITORY, self.llama_cache, self.arch, plain=self.plain)
        return [*found, llama]

    def runnable(self, root: Path) -> Runnable:
        """Return a root beside that one, of packages for this machine."""
        beside = root.with_name(f"{root.name}-here")
        unpack(self.here.fetch(self.here.resolve(_RUN)), beside)
        return Runnable(beside, layout(platform.machine()))

    def grub(self, folder: Path) -> Path:
        """Unpack GRUB's packages for that CPU into a folder; return where they have its images."""
        unpack(_named(self.apt, grub.PACKAGES[self.arch].values()), folder)
        return folder / grub.IMAGES.relative_to("/")


class Crossed:
    """Debian 12 as a source, for another architecture than this machine's."""

    def __init__(
        self, mirror: str, arch: str, cache: Path, llama_cache: Path, *, plain: bool = False
    ) -> None:
        """Take what `Debian` takes."""
        self._mirror = mirror
        self._arch = arch
        self._cache = cache
        self._llama_cache = llama_cache
        self._plain = plain

    def fetch(self, flavour: str) -> CrossedPackages:
        """Return the packages for a flavour; raises EnvironmentFault."""
        apt = Apt(self._cache, self._mirror, self._arch, COMPONENTS.get(flavour, ()))
        return CrossedPackages(
            apt.fetch(apt.plan(flavour)), self._arch, flavour, self._cache, self._llama_cache,
            plain=self._plain, apt=apt, here=Apt(self._cache, self._mirror, platform.machine()),
        )  # fmt: skip


def compiled(
    sources: list[Path], headers: list[Path], target: foreign.Target, cache: Path
) -> list[Path]:
    """Return a wheel of each archive of sources, compiled for a target; once with these packages.

    `headers` are the target's packages with what _HEADERS names. Raises EnvironmentFault.
    """

    def build(folder: Path, _: Path) -> None:
        python = foreign.builder(cache)
        with tempfile.TemporaryDirectory(prefix="covey-cross-") as scratch:
            stage = Path(scratch) / "stage"
            facts = Path(scratch) / "facts"
            unpack(headers, stage)
            environment = _environment(stage, facts, target)
            environment["PATH"] = f"{python.parent}:{PATH}"
            run(
                [python, *foreign.PIP, "wheel", "--no-deps", "--no-index", "--no-cache-dir",
                 "--no-build-isolation", "-w", folder, *sources],
                env=environment,
                hint=f"They are compiled for {target.arch} from {sources[0].parent}.",
            )  # fmt: skip

    names = [file.name for file in (*sources, *headers)]
    return foreign.kept(names, cache, f"compiled-{target.python}-{target.arch}", build)


def _environment(stage: Path, facts: Path, target: foreign.Target) -> dict[str, str]:
    """Return what has setuptools compile for a target whose packages are unpacked in `stage`.

    Python looks for what it says of its CPU (compiler, options, names of extensions) in a module;
    that of the target's is put into `facts` and takes this one's place.
    """
    triple = f"{target.arch}-linux-gnu"
    library = stage / f"usr/lib/python{target.python}"
    found = sorted(library.glob(f"_sysconfigdata__*{triple}.py"))
    if not found:
        raise EnvironmentFault(
            f"the packages do not say what Python is like on {target.arch}",
            hint="There is no _sysconfigdata in them.",
        )
    facts.mkdir()
    (facts / found[0].name).write_bytes(found[0].read_bytes())
    headers = (f"usr/include/python{target.python}", "usr/include", f"usr/include/{triple}")
    return {
        "_PYTHON_HOST_PLATFORM": f"linux-{target.arch}",
        "_PYTHON_SYSCONFIGDATA_NAME": found[0].stem,
        "PYTHONPATH": str(facts),
        "CC": f"{triple}-gcc",
        "AR": f"{triple}-ar",
        # Where it was compiled is in what is for debuggers.
        "CFLAGS": " ".join(["-g0", *(f"-I{stage / name}" for name in headers)]),
        "LDFLAGS": f"-L{stage / 'usr/lib' / triple}",
        "SOURCE_DATE_EPOCH": "315532800",
    }


def _named(apt: Apt, names: Iterable[str]) -> list[Path]:
    """Return the files of packages, without what they need."""
    wanted = frozenset(names)
    return apt.fetch(tuple(p for p in apt.resolve(sorted(wanted)) if p.name in wanted))
