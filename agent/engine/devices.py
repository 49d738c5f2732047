"""The devices that llama.cpp can compute on here, as ggml lists them, asked for in a child process.

The list means that the drivers of the GPUs are loaded, and a wrong driver crashes or hangs. So
neither the agent nor an engine asks ggml itself: `ask` starts `probe.py`. A
build without any GPU's library is known by its files, and nothing is started then.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent.engine import trial
from agent.errors import EngineError
from agent.unreadable import UNREADABLE

Kind = Literal["cpu", "gpu", "igpu", "accel", "other"]

# Starting CUDA takes up to some seconds, on machines with many GPUs more.
TIMEOUT_S = 30.0
_KINDS: tuple[Kind, ...] = ("cpu", "gpu", "igpu", "accel")
# Libraries of a build that bring no GPU of this machine.
_NO_GPU = frozenset({"base", "cpu", "rpc", "blas", "zendnn"})
# What keeps the drivers from being loaded, where the backend can be told.
HIDDEN = {"GGML_DISABLE_VULKAN": "1", "CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
# Where drivers look for a folder to keep compiled kernels in: NVIDIA's, Mesa's, AMD's.
_KEEP_KERNELS = (
    "CUDA_CACHE_PATH", "__GL_SHADER_DISK_CACHE_PATH", "MESA_SHADER_CACHE_DIR",
    "AMD_COMGR_CACHE_DIR",
)  # fmt: skip


def kernels(cache: Path) -> Path:
    """Return where drivers shall keep what they compile, as everything else of engines in `cache`.

    Their own place is the home of whoever runs them, and other programs run what lies there.
    """
    return cache / "kernels"


def compiling(cache: Path | None) -> dict[str, str]:
    """Return the environment by which drivers keep it there; none without a cache."""
    return {} if cache is None else dict.fromkeys(_KEEP_KERNELS, str(kernels(cache)))


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device: ggml's name (`CUDA0`), its maker's (`NVIDIA H200`), its kind and memory (bytes).

    `igpu` is a GPU that uses the host's memory. `total_bytes` 0: the backend does not tell memory.
    """

    name: str
    description: str
    kind: Kind
    free_bytes: int = 0
    total_bytes: int = 0

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.description} ({self.name})"

    @property
    def memory(self) -> str:
        """Its memory in words."""
        if not self.total_bytes:
            return "does not tell its memory"
        return f"{self.free_bytes / 2**30:.1f} of {self.total_bytes / 2**30:.1f} GiB free"


def used(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Return those that a model is loaded on: all GPUs, or else the integrated ones.

    So llama.cpp chooses. It takes layers to each by the memory that is free there.
    """
    found = tuple(devices)
    gpus = tuple(device for device in found if device.kind == "gpu")
    return gpus or tuple(device for device in found if device.kind == "igpu")


def library_folder() -> Path | None:
    """Return where the libraries of llama-cpp-python lie; None where it is not installed."""
    found = importlib.util.find_spec("llama_cpp")
    return None if found is None or found.origin is None else Path(found.origin).parent / "lib"


def gpu_backends(folder: Path | None) -> tuple[str, ...]:
    """Return the names of GPU backends among a build's libraries: `cuda`, `hip`, `vulkan`, …"""
    if folder is None:
        return ()
    names = {path.name.split(".")[0].removeprefix("libggml-") for path in folder.glob("libggml-*")}
    return tuple(sorted(n for n in names if n not in _NO_GPU and not n.startswith("cpu-")))


def ask(command: Sequence[str] = ()) -> tuple[Device, ...]:
    """Return the devices, from a child process; EngineError where it died or was silent.

    `command` lists them, by default `probe.py`.
    """
    done = trial.run(list(command) or [*trial.PROBE, "devices"], TIMEOUT_S, {})
    hint = "Is the GPU's driver the one that llama-cpp-python was built for?"
    if done.fault:
        raise EngineError(f"listing llama.cpp's devices {done.fault}.", hint=hint)
    try:
        return msgspec.json.decode(done.output, type=tuple[Device, ...])
    except UNREADABLE as error:
        raise EngineError(f"llama.cpp's list of devices cannot be read: {error}.", hint=hint) from (
            None
        )


def listed(library: Any) -> tuple[Device, ...]:
    """Return the devices that a loaded library of ggml has."""
    for name, result in (
        ("count", ctypes.c_size_t), ("get", ctypes.c_void_p), ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p), ("type", ctypes.c_int), ("memory", None),
    ):  # fmt: skip
        function = getattr(library, f"ggml_backend_dev_{name}")
        function.restype = result
        function.argtypes = [] if name == "count" else [ctypes.c_void_p]
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    amount = ctypes.POINTER(ctypes.c_size_t)
    library.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, amount, amount]
    found = []
    for index in range(library.ggml_backend_dev_count()):
        device = library.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        library.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        number = library.ggml_backend_dev_type(device)
        name, description = (
            (function(device) or b"").decode("utf-8", "replace").strip()
            for function in (library.ggml_backend_dev_name, library.ggml_backend_dev_description)
        )
        found.append(
            Device(
                name, description, _KINDS[number] if 0 <= number < len(_KINDS) else "other",
                min(free.value, total.value), total.value,
            )
        )  # fmt: skip
    return tuple(found)
