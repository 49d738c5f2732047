"""llama.cpp's library, and the backends of it that are libraries of their own.

A build for one CPU has all in one. A build for any CPU (`llama_build.py --any-cpu`) has the CPU's
part many times over, for old and new instruction sets; llama.cpp takes the best that runs here.
By itself it looks beside the running program and in the working folder, of which neither is ours.

For engine processes alone: drivers of GPUs are loaded with the backends.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

_MAPS = Path("/proc/self/maps")


@functools.cache
def library() -> Any:
    """Return libllama, with its backends loaded."""
    import llama_cpp

    found: Any = llama_cpp.llama_cpp._lib
    found.ggml_backend_reg_count.restype = ctypes.c_size_t
    if not found.ggml_backend_reg_count():
        load = found.ggml_backend_load_all_from_path
        load.restype, load.argtypes = None, [ctypes.c_char_p]
        load(os.fsencode(_folder()))
    return found


def function(*names: str) -> Any:
    """Return the first function of these that llama.cpp or a loaded backend has.

    Raises AttributeError where none is.
    """
    libraries = (library(), *_backends())
    for name in names:
        for one in libraries:
            if hasattr(one, name):
                return getattr(one, name)
    raise AttributeError(f"llama.cpp has no {' or '.join(names)}")


@functools.cache
def _backends() -> tuple[Any, ...]:
    library()
    return tuple(ctypes.CDLL(path) for path in loaded(_MAPS.read_text(), _folder()))


def loaded(maps: str, folder: Path) -> list[str]:
    """Return the libraries of backends in `folder` that /proc/self/maps lists, by name."""
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/libggml-" in line}
    return sorted(path for path in paths if Path(path).parent == folder)


def _folder() -> Path:
    import llama_cpp

    return (Path(llama_cpp.__file__).parent / "lib").resolve()
