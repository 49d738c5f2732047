"""What of the agent's environment a process gets that reads what others made. A core.

An environment is where people put tokens and passwords: the hub's, a proxy's, a database's. Nobody
can list all of those; what an engine needs can be listed. For `engine/supervisor.py` and the child
that talks to home routers. Whoever misses a driver's switch adds its beginning here.
"""

from __future__ import annotations

from collections.abc import Mapping

# Python's and the C library's: where programs, code, libraries and the user's own folder lie.
_NAMES = """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR LD_LIBRARY_PATH LD_PRELOAD GLIBC_TUNABLES
    PYTHONPATH PYTHONHOME PYTHONHASHSEED PYTHONDONTWRITEBYTECODE PYTHONWARNINGS PYTHONFAULTHANDLER
    PYTHONPYCACHEPREFIX PYTHONUTF8 PYTHONIOENCODING
    XDG_CACHE_HOME XDG_DATA_DIRS XDG_CONFIG_DIRS
    COVEY_ENGINE_LOG LLAMA_CPP_LIB LLAMA_CPP_LIB_PATH
"""
_WANTED = frozenset(_NAMES.split())
# Threads and arithmetic; then the drivers of GPUs: NVIDIA's, AMD's, Vulkan's with Mesa, Intel's.
_BEGINNINGS = (
    "LC_", "MALLOC_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "BLIS_", "GGML_",
    "CUDA_", "NVIDIA_", "NV_", "__NV", "__GL",
    "ROCR_", "ROCM_", "HIP_", "HSA_", "AMD_", "GPU_", "MIOPEN_", "TENSILE_",
    "VK_", "MESA_", "RADV_", "ANV_", "LIBGL_",
    "ONEAPI_", "SYCL_", "UR_", "ZE_", "ZES_", "OCL_", "OPENCL_",
)  # fmt: skip
# A word of these in a name makes it a secret, whoever's prefix it has.
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY")


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that such a process gets."""
    return {
        name: value
        for name, value in environment.items()
        if (name in _WANTED or name.startswith(_BEGINNINGS))
        and not any(word in name for word in _SECRET)
    }
