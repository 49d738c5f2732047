"""Looks at what llama.cpp computes with: GPUs, their driver, its build, the CPU. A shell.

No driver is loaded here, for a wrong one crashes: the bus, the driver's own file and the names in
llama.cpp's libraries tell enough (`agent.engine.devices` asks ggml, in a process of its own).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import re
from pathlib import Path

from agent.doctor.facts import Build, Gpu
from agent.engine import devices, selftest
from agent.engine.llama_build import read_cpu_flags

_MAKERS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
# PCI classes: VGA controller, 3D controller, other display controller.
_DISPLAYS = ("0x0300", "0x0302", "0x0380")
_DRIVER = re.compile(r"NVRM version:.*?\s(\d{3,}(?:\.\d+)+)\s")
_CUDA = re.compile(rb"lib(?:cudart|cublas)\.so\.(\d+)\0")
# asm/prctl.h: which parts of a CPU's state the kernel lets programs use; the bit of AMX's tiles.
_ARCH_PRCTL, _ARCH_GET_XCOMP_SUPP, _TILES = 158, 0x1021, 18


def gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Return the GPUs on the PCI bus of makers that llama.cpp has a backend for."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        maker = _MAKERS.get(_line(device / "vendor"))
        if maker and _line(device / "class").startswith(_DISPLAYS):
            found.append(Gpu(maker, device.name))
    return tuple(found)


def nvidia_driver(root: Path = Path("/")) -> str:
    """Return the version of NVIDIA's driver that is loaded, "" for none."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = _DRIVER.search(text)
    return found[1] if found else "of unknown version"


def build() -> Build:
    """Return what the installed llama.cpp is built with."""
    folder = devices.library_folder()
    if folder is None:
        return Build(installed=False)
    libraries = [_cuda(path, path.stat().st_mtime_ns) for path in folder.glob("libggml-cuda*")]
    return Build(devices.gpu_backends(folder), next((v for v in libraries if v), None))


def masked(root: Path = Path("/")) -> tuple[str, ...]:
    """Return what the CPU announces and the kernel does not let programs use."""
    try:
        flags = read_cpu_flags(root / "proc/cpuinfo")
    except OSError:
        return ()
    if "amx_tile" not in flags or platform.machine() != "x86_64" or _has_tiles():
        return ()
    return ("AMX",)


def repacking(cache: Path) -> bool | None:
    """Say whether llama.cpp's self-test passed with its fastest kernels; None before the first."""
    proof = selftest.kept(cache)
    return None if proof is None else proof.use_extra_bufts


def _has_tiles() -> bool:
    usable = ctypes.c_uint64(0)
    call = ctypes.CDLL(None).syscall
    if call(_ARCH_PRCTL, _ARCH_GET_XCOMP_SUPP, ctypes.byref(usable)) != 0:
        return False  # a kernel before 5.16 lets nobody use them
    return bool(usable.value >> _TILES & 1)


@functools.cache
def _cuda(library: Path, changed_ns: int) -> int | None:
    """Return CUDA's major version by the names of the libraries that this one needs."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _CUDA.search(data)
        return int(found[1]) if found else None


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
