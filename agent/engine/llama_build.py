"""Build the llama-cpp-python wheel for this CPU, once, and keep it in a cache outside the tree.

A build takes minutes and depends only on the version, the Python ABI, the CPU's instruction sets
and what the environment's CMAKE_ARGS add (a GPU: `-DGGML_CUDA=ON`), so these name the cache entry.
Used by `make` (and by whoever builds for like hosts); only the standard library, since it runs
before anything is installed.

GGML_NATIVE is off because it would make the compiler use everything that the CPU announces: many
virtual machines announce AMX, mask it, and crash on the first batched matmul. The instruction
sets below are those that llama.cpp gains from and that /proc/cpuinfo really lists.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

# CMake option → the /proc/cpuinfo flags that it needs, all of them.
_X86_OPTIONS: dict[str, tuple[str, ...]] = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_AVX2": ("avx2",),
    "GGML_BMI2": ("bmi2",),
    "GGML_FMA": ("fma",),
    "GGML_F16C": ("f16c",),
    "GGML_AVX_VNNI": ("avx_vnni",),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "GGML_AVX512_VBMI": ("avx512f", "avx512vbmi"),
    "GGML_AVX512_VNNI": ("avx512f", "avx512_vnni"),
    "GGML_AVX512_BF16": ("avx512f", "avx512_bf16"),
}


def cmake_options(machine: str, cpu_flags: frozenset[str]) -> list[str]:
    """Return the CMake options for a CPU; `machine` is platform.machine(), flags are Linux's."""
    options = ["-DGGML_NATIVE=OFF", "-DGGML_RPC=ON"]
    if machine in ("x86_64", "AMD64"):
        for option, needs in _X86_OPTIONS.items():
            options.append(f"-D{option}={'ON' if cpu_flags.issuperset(needs) else 'OFF'}")
    return options


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the first CPU's instruction-set flags; empty where Linux lists none (aarch64)."""
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def cache_entry(cache: Path, requirement: str, options: list[str]) -> Path:
    """Return the folder that holds the wheel for this requirement, Python ABI and CPU."""
    abi = f"{sys.implementation.cache_tag}-{platform.machine()}"
    key = hashlib.sha256("\n".join([requirement, abi, *options]).encode()).hexdigest()[:16]
    return cache / "wheels" / f"llama-{abi}-{key}"


def build(requirements: Path, cache: Path, build_requirements: Path) -> Path:
    """Return the wheel for `requirements` (one pinned line); build it if it is not cached."""
    options = cmake_options(platform.machine(), read_cpu_flags())
    options += os.environ.get("CMAKE_ARGS", "").split()
    entry = cache_entry(cache, requirements.read_text(), options)
    ready = sorted(entry.glob("*.whl"))
    if ready:
        return ready[0]
    print(f"Building llama-cpp-python for this CPU (about 5 minutes on 2 cores): {entry}")
    entry.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="covey-llama-") as scratch:
        venv = Path(scratch) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "pip"), "--disable-pip-version-check", "-q"]
        subprocess.run(
            [*pip, "install", "--require-hashes", "-r", str(build_requirements)], check=True
        )
        wheels = Path(scratch) / "wheels"
        environment = {
            **os.environ,
            "CMAKE_ARGS": " ".join(options),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
        # pip's own cache knows nothing of CMAKE_ARGS and would return a build for another CPU.
        subprocess.run(
            [*pip, "wheel", "--no-cache-dir", "--no-deps", "--no-build-isolation",
             "--require-hashes", "--no-binary", "llama-cpp-python", "-w", str(wheels),
             "-r", str(requirements)],
            check=True, env=environment,
        )  # fmt: skip
        built = next(wheels.glob("*.whl"))
        # A rename inside the cache's file system, so that a killed build leaves no half wheel.
        partial = entry / f".{built.name}.{os.getpid()}"
        partial.write_bytes(built.read_bytes())
        return partial.rename(entry / built.name)


def main() -> int:
    """Build or find the wheel and print its path on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requirements", type=Path, required=True)
    parser.add_argument("--build-requirements", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        print(build(arguments.requirements, arguments.cache, arguments.build_requirements))
    except subprocess.CalledProcessError as error:
        print(f"llama-cpp-python could not be built: {' '.join(error.cmd[:3])} … ended with "
              f"{error.returncode}; its own message is above.", file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
