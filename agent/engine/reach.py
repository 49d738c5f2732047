"""Which files an engine may open, and what for, by what is known of its machine. A core.

`enclose.py` finds the facts, and `landlock.py` has the kernel refuse everything else. The agent's
keys and state are not here, nor anybody's home. What of a machine holds no secret is given whole:
llama.cpp, its libraries and the drivers of GPUs open there what they like, and it differs from
version to version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

# Landlock's rights over files. None but these are given to anything.
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE, _MAKE, _REFER = 1 << 4 | 1 << 5, 1 << 7 | 1 << 8, 1 << 13
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
_OF_FILES = 1 << 0 | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ: Final = READ_FILE | READ_DIR
_DEVICE: Final = READ | WRITE_FILE | IOCTL_DEV
_OWN: Final = READ | WRITE_FILE | _REMOVE | _MAKE | _REFER | TRUNCATE
# How many of them each version knows; those after the fifth added none.
_KNOWN: Final = {1: 13, 2: 14, 3: 15, 4: 15}

_LIBRARIES = (
    "/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/opt/rocm", "/opt/cuda",
    "/opt/intel",
)  # fmt: skip
# Of /etc what the loader, the C library, Python's ssl and mimetypes, and GPU loaders read.
_ETC = (
    "ld.so.cache", "ld.so.preload", "ld-musl-x86_64.path", "ld-musl-aarch64.path", "localtime",
    "nsswitch.conf", "hosts", "host.conf", "gai.conf", "resolv.conf", "mime.types",
    "ssl/openssl.cnf", "pki/tls/openssl.cnf", "vulkan", "OpenCL", "glvnd", "drirc",
)  # fmt: skip
_PROC = ("self", "cpuinfo", "meminfo", "stat", "version", "devices", "driver", "modules",
         "sys/kernel", "sys/vm")  # fmt: skip
_SYS = ("devices", "class", "bus", "dev", "module", "fs/cgroup", "kernel/mm")
_ANYBODYS = ("/dev/zero", "/dev/random", "/dev/urandom")
# In /dev, by which drivers reach GPUs: NVIDIA's (also on boards), AMD's, Mesa's, WSL's, Arm's.
GPU_NODES: Final = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "kfd", "dri", "dxg", "mali*")


@dataclass(frozen=True)
class Allowed:
    """A file or a folder with all below it, and Landlock's rights over it."""

    path: str
    rights: int

    def of(self, version: int, *, is_folder: bool) -> int:
        """Return the rights that a version of Landlock takes for it."""
        return self.rights & known(version) & (~0 if is_folder else _OF_FILES)


@dataclass(frozen=True)
class Facts:
    """What an engine's needs follow from; all are absolute paths.

    `models`: its files and the folders where later ones will lie. `code`: folders of Python's, and
    of whatever else has libraries. `nodes`: the GPUs' that there are; none for one without GPU.
    `kernels`: a folder for what drivers compile, or empty. `kept`: what holds secrets.
    """

    models: tuple[str, ...]
    code: tuple[str, ...]
    kept: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    kernels: str = ""


def known(version: int) -> int:
    """Return all rights over files that a version of Landlock knows."""
    return (1 << _KNOWN.get(version, 16)) - 1


def allowed(facts: Facts) -> tuple[Allowed, ...]:
    """Return what an engine may open. What is not there is left to whoever asks the kernel."""
    found = [Allowed(path, READ) for path in facts.models]
    found += [Allowed(path, READ) for path in _without(facts.code, facts.kept)]
    found += [Allowed(path, READ) for path in _system()]
    found.append(Allowed("/dev/null", READ_FILE | WRITE_FILE))
    found += [Allowed(path, _DEVICE) for path in facts.nodes]
    if facts.kernels:
        found.append(Allowed(facts.kernels, _OWN))
    return tuple(found)


def _system() -> Iterator[str]:
    yield from _LIBRARIES
    yield from (f"/etc/{name}" for name in _ETC)
    yield from (f"/proc/{name}" for name in _PROC)
    yield from (f"/sys/{name}" for name in _SYS)
    yield from _ANYBODYS


def _without(folders: Iterable[str], kept: Iterable[str]) -> Iterator[str]:
    """Give the folders in which nothing of what is kept lies; a path of Python's can be any."""
    secret = [PurePosixPath(path) for path in kept]
    for folder in folders:
        if not any(each.is_relative_to(folder) for each in secret):
            yield folder
