"""Fetches Debian's packages with apt and unpacks them, without root and without their scripts.

A shell. apt checks every package against the mirror's signed lists. Its own configuration counts,
unless a mirror is named: then that mirror is asked, and nothing but Debian's own keys is trusted.
Packages of another architecture than this machine's are asked for with lists of their own, so that
nothing of how this machine is set up changes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import EnvironmentFault
from image.make import foreign, grub, wheels
from image.make.packages import KERNELS, WANTED, Package, chosen
from image.make.programs import run
from image.make.source import ARCHES, Layout, Runnable

SUITE = "bookworm"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR_HINT = (
    "Check the address and the network: it has to answer to apt, and to have dists/ in it."
)


class Apt:
    """apt with a cache and an empty list of installed packages; both in `cache`."""

    def __init__(self, cache: Path, mirror: str = "", arch: str = "x86_64") -> None:
        """Make the folders; `mirror` is a URL or a folder, "" what this machine is set up with."""
        self._debs = cache / "debs"
        self._debs.mkdir(parents=True, exist_ok=True)
        self._mirror = mirror
        self._arch = ARCHES[arch]
        self._foreign = arch != platform.machine()
        # Nothing is installed here: so apt resolves all that the wanted packages need.
        self._options = ["-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1"]
        self._stale = bool(mirror) or self._foreign
        if self._stale:
            self._options += self._own_lists(cache / f"apt-{self._arch}")

    def plan(self, flavour: str) -> tuple[Package, ...]:
        """Return the packages and their versions as the mirror has them; `flavour`: see KERNELS."""
        return self.resolve((KERNELS[flavour][self._arch], *WANTED))

    def resolve(self, names: Iterable[str]) -> tuple[Package, ...]:
        """Return packages and all that they need, as the mirror has them."""
        if self._stale:
            self._update()
            self._stale = False
        hint = "Run `apt-get update` as root, or name a mirror with --mirror."
        simulate = ["install", "-s", "-y", "-qq", "--no-install-recommends", *names]
        return chosen(run(["apt-get", *self._options, *simulate], hint=hint))

    def fetch(self, packages: tuple[Package, ...]) -> list[Path]:
        """Return the packages' files; those that are not in the cache are fetched first."""
        wanted = [package for package in packages if not (self._debs / package.file).exists()]
        if wanted:
            run(
                ["apt-get", *self._options, "-qq", "download",
                 *(package.request for package in wanted)],
                cwd=self._debs,
                hint="The mirror did not answer, or has newer packages: run `apt-get update`.",
            )  # fmt: skip
        files = [self._debs / package.file for package in packages]
        for file in files:
            if not file.exists():
                raise EnvironmentFault(f"apt-get did not fetch {file.name}")
        return files

    def _update(self) -> None:
        strict = ["-o", "APT::Update::Error-Mode=any"] if self._mirror else []
        what = f"The mirror {self._mirror}" if self._mirror else "What this machine's apt asks"
        run(
            ["apt-get", *self._options, "-qq", *strict, "update"],
            hint=f"{what} could not be used. {_MIRROR_HINT}",
        )

    def _own_lists(self, folder: Path) -> list[str]:
        for name in ("lists/partial", "archives/partial", "empty"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        settings: dict[str, object] = {
            "Dir::State::Lists": folder / "lists", "Dir::Cache": folder,
            "Acquire::Retries": 1, "Acquire::http::Timeout": 20,
        }  # fmt: skip
        if self._foreign:
            settings |= {"APT::Architecture": self._arch, "APT::Architectures": self._arch}
        if self._mirror:
            local = Path(self._mirror).is_dir()
            url = f"file:{Path(self._mirror).absolute()}" if local else self._mirror.rstrip("/")
            sources = folder / "sources.list"
            sources.write_text(f"deb [signed-by={_KEYRING}] {url} {SUITE} main\n")
            settings |= {
                "Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": folder / "empty",
            }  # fmt: skip
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def unpack(files: list[Path], root: Path) -> None:
    """Unpack the packages' files into a folder; what a later one has in common counts."""
    for file in files:
        run(["dpkg-deb", "-x", file, root], hint=f"Remove {file}, then build again.")


def layout(arch: str) -> Layout:
    """Return where Debian has what."""
    libraries = (f"lib/{arch}-linux-gnu", f"usr/lib/{arch}-linux-gnu")
    loader = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}[arch]
    return Layout(
        arch, wheels.PYTHON_WORDS, f"{libraries[0]}/{loader}", libraries, "dash", "bin/busybox"
    )


@dataclass(frozen=True)
class DebianPackages:
    """Packages that apt has fetched; `cache` and `llama_cache` keep Python's.

    With `plain` llama.cpp uses no vector instructions but SSE 4.2.
    """

    files: list[Path]
    arch: str
    cache: Path
    llama_cache: Path
    plain: bool = False

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.files)

    @property
    def layout(self) -> Layout:
        """Where they have what."""
        return layout(self.arch)

    def unpack(self, root: Path) -> None:
        """Unpack them into a folder."""
        unpack(self.files, root)
        # Debian's own key signs its copy, and Debian's kernel trusts that.
        for name in ("regulatory.db", "regulatory.db.p7s"):
            (root / "lib/firmware" / name).symlink_to(f"{name}-debian")

    def wheels(self) -> list[Path]:
        """Return PyPI's wheels and those that are compiled here."""
        found = wheels.fetch(foreign.REQUIREMENTS / "runtime.txt", self.cache)
        llama = wheels.llama(foreign.REPOSITORY, self.llama_cache, self.arch, plain=self.plain)
        return [*found, llama]

    def runnable(self, root: Path) -> Runnable:
        """Return that root."""
        return Runnable(root, self.layout)

    def grub(self, folder: Path) -> Path:
        """Return this machine's."""
        return grub.IMAGES


class Debian:
    """Debian 12 as a source, for this machine's architecture."""

    def __init__(
        self, mirror: str, arch: str, cache: Path, llama_cache: Path, *, plain: bool = False
    ) -> None:
        """`mirror` is a URL or a folder; "" is what this machine's apt is set up with.

        `plain`: as `DebianPackages` has it.
        """
        self._apt = Apt(cache, mirror, arch)
        self._arch = arch
        self._cache = cache
        self._llama_cache = llama_cache
        self._plain = plain

    def fetch(self, flavour: str) -> DebianPackages:
        """Return the packages for a flavour; raises EnvironmentFault."""
        files = self._apt.fetch(self._apt.plan(flavour))
        return DebianPackages(files, self._arch, self._cache, self._llama_cache, plain=self._plain)
