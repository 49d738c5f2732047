"""The wheel's build: which instruction sets go in, and what names a cache entry."""

import zipfile
from pathlib import Path

import pytest

from agent.engine import llama_build

NEW_XEON = frozenset(
    (
        "sse4_2 avx avx2 bmi2 fma f16c avx512f avx512cd avx512vl avx512dq avx512bw avx512vbmi "
        "avx512_vnni avx512_bf16 avx_vnni amx_tile amx_int8 amx_bf16"
    ).split()
)


def test_amx_is_never_compiled_in_even_where_the_cpu_announces_it() -> None:
    options = llama_build.cmake_options("x86_64", NEW_XEON)
    assert "-DGGML_NATIVE=OFF" in options
    assert not [option for option in options if "AMX" in option]
    assert "-DGGML_AVX512_VNNI=ON" in options


def test_what_the_cpu_lacks_is_off() -> None:
    options = llama_build.cmake_options("x86_64", frozenset({"sse4_2", "avx"}))
    assert "-DGGML_AVX=ON" in options
    assert "-DGGML_AVX2=OFF" in options
    assert "-DGGML_AVX512=OFF" in options


def test_half_of_avx512_is_not_avx512() -> None:
    options = llama_build.cmake_options("x86_64", NEW_XEON - {"avx512vl"})
    assert "-DGGML_AVX512=OFF" in options


def test_arm_gets_no_x86_options() -> None:
    assert llama_build.cmake_options("aarch64", frozenset()) == [
        "-DGGML_NATIVE=OFF",
        "-DGGML_RPC=ON",
    ]


def test_flags_are_those_of_the_first_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: avx fma\n\nprocessor\t: 1\nflags\t\t: sse\n")
    assert llama_build.read_cpu_flags(cpuinfo) == {"avx", "fma"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: asimd\n")
    assert llama_build.read_cpu_flags(cpuinfo) == frozenset()


def test_a_cached_wheel_is_taken_and_another_cpu_or_version_is_another_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = tmp_path / "llama.txt"
    pinned.write_text("llama-cpp-python==0.0.1 --hash=sha256:00\n")
    options = llama_build.cmake_options("x86_64", NEW_XEON)
    entry = llama_build.cache_entry(tmp_path, pinned.read_text(), options)
    other_cpu = llama_build.cache_entry(tmp_path, pinned.read_text(), options[:-1])
    other_version = llama_build.cache_entry(tmp_path, "llama-cpp-python==0.0.2", options)
    assert len({entry, other_cpu, other_version}) == 3
    monkeypatch.setattr(llama_build, "read_cpu_flags", lambda: NEW_XEON)
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(llama_build.platform, "machine", lambda: "x86_64")
    entry = llama_build.cache_entry(tmp_path, pinned.read_text(), options)
    entry.mkdir(parents=True)
    (entry / ".half.whl.123").touch()
    wheel = entry / "llama_cpp_python-0.0.1-py3-none-linux_x86_64.whl"
    wheel.touch()
    # A build would start with a virtual environment, for which there are no requirements here.
    assert llama_build.build(pinned, tmp_path, tmp_path / "none") == wheel
    # With a GPU it is another wheel.
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON  -DCMAKE_CUDA_ARCHITECTURES=90")
    wished = [*options, "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90"]
    entry = llama_build.cache_entry(tmp_path, pinned.read_text(), wished)
    entry.mkdir(parents=True)
    (entry / wheel.name).touch()
    assert llama_build.build(pinned, tmp_path, tmp_path / "none") == entry / wheel.name


def test_what_is_for_any_cpu_is_another_entry_and_has_no_option_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = tmp_path / "llama.txt"
    pinned.write_text("llama-cpp-python==0.0.1 --hash=sha256:00\n")
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    options = list(llama_build.ANY_CPU_OPTIONS)
    assert not [option for option in options if "AVX" in option or "NATIVE=ON" in option]
    entry = llama_build.cache_entry(tmp_path, pinned.read_text(), options)
    entry.mkdir(parents=True)
    wheel = entry / "llama_cpp_python-0.0.1-py3-none-linux_x86_64.whl"
    wheel.touch()
    assert llama_build.build(pinned, tmp_path, tmp_path / "none", any_cpu=True) == wheel


def test_a_plain_wheel_is_the_usual_one_but_for_the_cpus_part(tmp_path: Path) -> None:
    usual, out = tmp_path / "usual.whl", tmp_path / "out.whl"
    lib = "llama_cpp/lib"
    with zipfile.ZipFile(usual, "w") as archive:
        for name in ("libggml-cpu.so", "libggml-cpu.so.0", "libggml-base.so", "libllama.so"):
            archive.writestr(f"{lib}/{name}", name)
    llama_build.with_part(usual, b"plain", out)
    with zipfile.ZipFile(out) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {
        f"{lib}/libggml-cpu.so": b"plain", f"{lib}/libggml-cpu.so.0": b"plain",
        f"{lib}/libggml-base.so": b"libggml-base.so", f"{lib}/libllama.so": b"libllama.so",
    }  # fmt: skip


def test_another_architecture_is_another_entry_and_has_a_compiler_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = tmp_path / "llama.txt"
    pinned.write_text("llama-cpp-python==0.0.1 --hash=sha256:00\n")
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(llama_build.platform, "machine", lambda: "x86_64")
    assert llama_build.cross_options("x86_64") == []
    assert "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++" in llama_build.cross_options("aarch64")
    # What this machine's CPU can says nothing of another's.
    monkeypatch.setattr(llama_build, "read_cpu_flags", lambda: NEW_XEON)
    options = [*llama_build.cmake_options("aarch64", frozenset()), "-DLLAVA_BUILD=OFF"]
    entry = llama_build.cache_entry(tmp_path, pinned.read_text(), options, "aarch64")
    assert entry != llama_build.cache_entry(tmp_path, pinned.read_text(), options)
    entry.mkdir(parents=True)
    wheel = entry / "llama_cpp_python-0.0.1-py3-none-linux_aarch64.whl"
    wheel.touch()
    assert llama_build.build(pinned, tmp_path, tmp_path / "none", arch="aarch64") == wheel


def test_the_library_of_llama_cpps_own_programs_is_left_out_of_arms(tmp_path: Path) -> None:
    file = tmp_path / "CMakeLists.txt"
    text = '    set(LLAMA_BUILD_COMMON {} CACHE BOOL "Build llama.cpp common library" FORCE)\n'
    file.write_text(text.format("ON"))
    llama_build.without_common(file)
    assert file.read_text() == text.format("OFF")


def test_builds_that_take_a_newer_compiler_are_left_out_of_arms(tmp_path: Path) -> None:
    text = """\
        if (CMAKE_SYSTEM_NAME MATCHES "Linux")
            ggml_add_cpu_backend_variant(armv8.6_2    DOTPROD SVE MATMUL_INT8 SVE2)
            ggml_add_cpu_backend_variant(armv9.2_1    DOTPROD SVE MATMUL_INT8 SME)
            ggml_add_cpu_backend_variant(armv9.2_2    DOTPROD SVE MATMUL_INT8 SVE2 SME)
        elseif (CMAKE_SYSTEM_NAME MATCHES "Android")
"""
    file = tmp_path / "CMakeLists.txt"
    file.write_text(text)
    llama_build.without_sme(file)
    lines = text.splitlines(keepends=True)
    assert file.read_text() == "".join((*lines[:2], lines[4]))
