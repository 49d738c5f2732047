"""Fetches Debian's packages with apt and unpacks them, without root and without their scripts.

A shell. apt checks every package against the mirror's signed lists. Its own configuration counts,
unless a mirror is named: then that mirror is asked, and nothing but Debian's own keys is trusted.
The same is done with the mirrors of Debian that it has where a part of them is wanted, too, that it
is not set up to ask for.
Packages of another architecture than this machine's are asked for with lists of their own, so that
nothing of how this machine is set up changes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import EnvironmentFault
from image.make import foreign, grub, wheels
from image.make.packages import BOARDS, COMPONENTS, Package, chosen, wanted
from image.make.programs import run
from image.make.source import ARCHES, Layout, Runnable

SUITE = "bookworm"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR_HINT = (
    "Check the address and the network: it has to answer to apt, and to have dists/ in it."
)


class Apt:
    """apt with a cache and an empty list of installed packages; both in `cache`."""

    def __init__(
        self, cache: Path, mirror: str = "", arch: str = "x86_64", components: tuple[str, ...] = ()
    ) -> None:
        """Make the folders; `mirror` is a URL or a folder, "" what this machine is set up with.

        `components` are parts of Debian beside main.
        """
        self._debs = cache / "debs"
        self._debs.mkdir(parents=True, exist_ok=True)
        self._mirror = mirror
        self._arch = ARCHES[arch]
        self._foreign = arch != platform.machine()
        # Nothing is installed here: so apt resolves all that the wanted packages need.
        self._options = ["-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1"]
        self._components = ("main", *components)
        self._lists = cache / "-".join(("apt", self._arch, *components))
        self._own_sources = bool(mirror or components)
        self._stale = self._own_sources or self._foreign
        if self._stale:
            self._options += self._own_lists()

    def plan(self, flavour: str) -> tuple[Package, ...]:
        """Return the packages and their versions as the mirror has them."""
        return self.resolve(wanted(flavour, self._arch))

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
        lacking = [package for package in packages if not (self._debs / package.file).exists()]
        if lacking:
            run(
                ["apt-get", *self._options, "-qq", "download",
                 *(package.request for package in lacking)],
                cwd=self._debs,
                hint="The mirror did not answer, or has newer packages: run `apt-get update`.",
            )  # fmt: skip
        files = [self._debs / package.file for package in packages]
        for file in files:
            if not file.exists():
                raise EnvironmentFault(f"apt-get did not fetch {file.name}")
        return files

    def _update(self) -> None:
        if self._own_sources:
            self._sources.write_text("".join(self._lines()))
        strict = ["-o", "APT::Update::Error-Mode=any"] if self._mirror else []
        what = f"The mirror {self._mirror}" if self._mirror else "What this machine's apt asks"
        run(
            ["apt-get", *self._options, "-qq", *strict, "update"],
            hint=f"{what} could not be used. {_MIRROR_HINT}",
        )

    @property
    def _sources(self) -> Path:
        return self._lists / "sources.list"

    def _lines(self) -> list[str]:
        """Return the lines of sources.list."""
        if self._mirror:
            local = Path(self._mirror).is_dir()
            url = f"file:{Path(self._mirror).absolute()}" if local else self._mirror.rstrip("/")
            asked = [f"{url} {SUITE}"]
        else:
            asked = self._asked()
        components = " ".join(self._components)
        return [f"deb [signed-by={_KEYRING}] {source} {components}\n" for source in asked]

    def _asked(self) -> list[str]:
        """Return the addresses and suites of Debian that this machine's apt asks."""
        form = "$(ORIGIN) $(RELEASE) $(REPO_URI)"
        said = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
        words = [line.split() for line in said.splitlines()]
        found = [
            f"{line[2]} {line[1]}" for line in words
            if len(line) == 3 and line[0] == "Debian" and line[1].startswith(SUITE)
        ]  # fmt: skip
        if not found:
            raise EnvironmentFault(
                "this machine's apt knows no mirror of Debian 12",
                hint="Run `apt-get update` as root, or name a mirror with --mirror.",
            )
        return list(dict.fromkeys(found))

    def _own_lists(self) -> list[str]:
        folder = self._lists
        for name in ("lists/partial", "archives/partial", "empty"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        settings: dict[str, object] = {
            "Dir::State::Lists": folder / "lists", "Dir::Cache": folder,
            "Acquire::Retries": 1, "Acquire::http::Timeout": 20,
        }  # fmt: skip
        if self._foreign:
            settings |= {"APT::Architecture": self._arch, "APT::Architectures": self._arch}
        if self._own_sources:
            settings |= {
                "Dir::Etc::SourceList": self._sources, "Dir::Etc::SourceParts": folder / "empty",
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
    flavour: str
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
        return replace(layout(self.arch), board=BOARDS.get(self.flavour))

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
        self._mirror = mirror
        self._arch = arch
        self._cache = cache
        self._llama_cache = llama_cache
        self._plain = plain

    def fetch(self, flavour: str) -> DebianPackages:
        """Return the packages for a flavour; raises EnvironmentFault."""
        apt = Apt(self._cache, self._mirror, self._arch, COMPONENTS.get(flavour, ()))
        files = apt.fetch(apt.plan(flavour))
        return DebianPackages(
            files, self._arch, flavour, self._cache, self._llama_cache, plain=self._plain
        )
