"""Build the llama-cpp-python wheel for this CPU, once, and keep it in a cache outside the tree.

A build takes minutes and depends only on the version, the Python ABI, the CPU's instruction sets
and what the environment's CMAKE_ARGS add (a GPU: `-DGGML_CUDA=ON`), so these name the cache entry.
Used by `make` (and by whoever builds for like hosts); only the standard library, since it runs
before anything is installed.

GGML_NATIVE is off because it would make the compiler use everything that the CPU announces: many
virtual machines announce AMX, mask it, and crash on the first batched matmul. The instruction
sets below are those that llama.cpp gains from and that /proc/cpuinfo really lists.

With `--any-cpu` the wheel is for machines of all ages instead: it has the CPU's part in 14 builds,
of which llama.cpp takes the best one that can run when it starts (`backends.py`). With `--plain` it
is the wheel for this CPU with another CPU's part in it, which asks for SSE 4.2 and no more: that is
slow, runs in an emulator, and is compiled in a minute.

With `--arch` it is for machines of another architecture, by a compiler for these (for aarch64
Debian's packages gcc-aarch64-linux-gnu and g++-aarch64-linux-gnu); with `--plain` then for any of
these.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
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


# Libraries for images are left out of what is for other machines: nothing here shows a model a
# picture, and they are a quarter of what is compiled.
_NO_PICTURES = "-DLLAVA_BUILD=OFF"
# What makes the CPU's part libraries of their own, for all CPUs, where the package has its others.
ANY_CPU_OPTIONS = (
    "-DGGML_NATIVE=OFF", "-DGGML_RPC=ON", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib", "-DCMAKE_INSTALL_RPATH=$ORIGIN", _NO_PICTURES,
)  # fmt: skip
# What the plain CPU's part is compiled with; its interface is that of every other one.
_PLAIN_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_CURL=OFF", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)  # fmt: skip
_CPU_PART = "libggml-cpu.so"
# Of an archive of sources: where the CPU's builds are named, and those of ARM's with SME, which GCC
# compiles from version 14 on; Debian 12 has 12. Such CPUs take what is next to it.
_VARIANTS = "vendor/llama.cpp/ggml/src/CMakeLists.txt"
_SME_VARIANT = re.compile(r"^ *ggml_add_cpu_backend_variant\(armv9\.2_\d .*\bSME\)\n", re.MULTILINE)
# What makes CMake compile a library of llama.cpp's own programs, which Python does not load: two
# fifths of all that is compiled. No option says otherwise.
_BUILD = "CMakeLists.txt"
_COMMON = "set(LLAMA_BUILD_COMMON {} CACHE "
_FROM_SOURCE = ("--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python")


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


def cross_options(arch: str) -> list[str]:
    """Return the CMake options to compile for an architecture; none for this machine's own."""
    if arch == platform.machine():
        return []
    compiler = f"{arch}-linux-gnu-g"
    return [
        "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={arch}",
        f"-DCMAKE_C_COMPILER={compiler}cc", f"-DCMAKE_CXX_COMPILER={compiler}++",
    ]  # fmt: skip


def cache_entry(cache: Path, requirement: str, options: list[str], arch: str = "") -> Path:
    """Return the folder that holds the wheel for this requirement, Python ABI and CPU.

    `arch` is this machine's if it is "".
    """
    abi = f"{sys.implementation.cache_tag}-{arch or platform.machine()}"
    key = hashlib.sha256("\n".join([requirement, abi, *options]).encode()).hexdigest()[:16]
    return cache / "wheels" / f"llama-{abi}-{key}"


def build(
    requirements: Path, cache: Path, build_requirements: Path, *, any_cpu: bool = False,
    arch: str = "",
) -> Path:  # fmt: skip
    """Return the wheel for `requirements` (one pinned line); build it if it is not cached.

    It is for this CPU, or for any of its architecture. Of another architecture `arch` it is for all
    CPUs, and with `any_cpu` takes the best part that one can run.
    """
    machine = platform.machine()
    arch = arch or machine
    if any_cpu:
        options = list(ANY_CPU_OPTIONS)
    elif arch == machine:
        options = cmake_options(arch, read_cpu_flags())
    else:
        options = [*cmake_options(arch, frozenset()), _NO_PICTURES]
    options += os.environ.get("CMAKE_ARGS", "").split()
    entry = cache_entry(cache, requirements.read_text(), options, arch)
    ready = sorted(entry.glob("*.whl"))
    if ready:
        return ready[0]
    what = "any CPU (about 10" if any_cpu else "this CPU (about 5"
    what = what if arch == machine else what.replace("CPU", f"{arch} CPU")
    print(f"Building llama-cpp-python for {what} minutes on 2 cores): {entry}")
    with _tools(build_requirements) as (scratch, environment):
        environment["CMAKE_ARGS"] = " ".join([*options, *cross_options(arch)])
        if arch != machine:
            # What the wheel's name says it is for.
            environment["_PYTHON_HOST_PLATFORM"] = f"linux-{arch}"
        wheels = scratch / "wheels"
        what_of: list[str | Path]
        if arch == "aarch64" and (any_cpu or arch != machine):
            source = _source(scratch, environment, requirements)
            without_sme(source / _VARIANTS)
            without_common(source / _BUILD)
            what_of = ["--no-index", *_FROM_SOURCE[:2], source]
        else:
            what_of = ["--require-hashes", *_FROM_SOURCE, "-r", requirements]
        # pip's own cache knows nothing of CMAKE_ARGS and would return a build for another CPU.
        _pip(environment, "wheel", "--no-cache-dir", "-w", wheels, *what_of)
        built = next(wheels.glob("*.whl"))
        return _keep(entry, built.name, built.read_bytes())


def build_plain(requirements: Path, cache: Path, build_requirements: Path) -> Path:
    """Return the wheel for this CPU with a plain CPU's part; what is not cached is built."""
    usual = build(requirements, cache, build_requirements)
    options = [*cmake_options(platform.machine(), frozenset({"sse4_2"})), *_PLAIN_OPTIONS]
    entry = cache_entry(cache, f"{requirements.read_text()}{usual.parent.name}", options)
    ready = sorted(entry.glob("*.whl"))
    if ready:
        return ready[0]
    print(f"Building a plain CPU's part of llama.cpp (about a minute on 2 cores): {entry}")
    with _tools(build_requirements) as (scratch, environment):
        source = _source(scratch, environment, requirements) / "vendor/llama.cpp"
        made = scratch / "made"
        cmake = scratch / "venv/bin/cmake"
        for words in (["-G", "Ninja", "-S", str(source), "-B", str(made), *options],
                      ["--build", str(made), "--target", "ggml-cpu"]):  # fmt: skip
            subprocess.run([cmake, *words], check=True, env=environment, stdout=sys.stderr)
        part = (made / "bin" / _CPU_PART).read_bytes()
        wheel = scratch / usual.name
        with_part(usual, part, wheel)
        return _keep(entry, usual.name, wheel.read_bytes())


def with_part(usual: Path, part: bytes, out: Path) -> None:
    """Write a wheel that is as `usual`, but for the CPU's part of llama.cpp."""
    with zipfile.ZipFile(usual) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            # A wheel knows no links: the library is in it under each of its names.
            is_part = Path(member.filename).name.startswith(_CPU_PART)
            new.writestr(member, part if is_part else old.read(member))


def without_sme(variants: Path) -> None:
    """Take ARM's builds with SME out of the file that names the CPU's builds."""
    variants.write_text(_SME_VARIANT.sub("", variants.read_text()))


def without_common(build_file: Path) -> None:
    """Take the library of llama.cpp's programs out of the file that says what is built."""
    text = build_file.read_text()
    build_file.write_text(text.replace(_COMMON.format("ON"), _COMMON.format("OFF")))


def _source(scratch: Path, environment: dict[str, str], requirements: Path) -> Path:
    """Return the folder of the sources, fetched and unpacked."""
    _pip(environment, "download", "--require-hashes", "-d", scratch, *_FROM_SOURCE,
         "-r", requirements)  # fmt: skip
    archive = next(scratch.glob("*.tar.gz"))
    subprocess.run(["tar", "-xzf", archive, "-C", scratch], check=True)
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


@contextmanager
def _tools(build_requirements: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Give a folder that goes again, and the environment in which what builds is on the path."""
    with tempfile.TemporaryDirectory(prefix="covey-llama-") as scratch:
        venv = Path(scratch) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        environment = {
            **os.environ,
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
        _pip(environment, "install", "--require-hashes", "-r", build_requirements)
        yield Path(scratch), environment


def _pip(environment: dict[str, str], *words: str | Path) -> None:
    pip = Path(environment["PATH"].split(os.pathsep)[0]) / "pip"
    subprocess.run([pip, "--disable-pip-version-check", "-q", *words], check=True, env=environment)


def _keep(entry: Path, name: str, content: bytes) -> Path:
    """Write a wheel into the cache, so that a killed build leaves no half of one."""
    entry.mkdir(parents=True, exist_ok=True)
    partial = entry / f".{name}.{os.getpid()}"
    partial.write_bytes(content)
    return partial.rename(entry / name)


def main() -> int:
    """Build or find the wheel and print its path on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requirements", type=Path, required=True)
    parser.add_argument("--build-requirements", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--any-cpu", action="store_true", help="not just for this machine's")
    which.add_argument("--plain", action="store_true", help="no more than SSE 4.2 is asked for")
    parser.add_argument("--arch", default=platform.machine(), help="the CPU's architecture")
    said = parser.parse_args()
    where = (said.requirements, said.cache, said.build_requirements)
    try:
        # What is compiled for all of ARM's CPUs is plain as it is.
        if said.plain and said.arch != "aarch64":
            print(build_plain(*where))
        else:
            print(build(*where, any_cpu=said.any_cpu, arch=said.arch))
    except subprocess.CalledProcessError as error:
        print(f"llama-cpp-python could not be built: {' '.join(error.cmd[:3])} … ended with "
              f"{error.returncode}; its own message is above.", file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
