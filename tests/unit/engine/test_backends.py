"""Which of llama.cpp's libraries are loaded, and where a function is found."""

from pathlib import Path

import pytest

from agent.engine import backends

MAPS = """\
7f0000000000-7f0000001000 r-xp 00000000 fe:00 11    /opt/with blank/lib/libggml-cpu-haswell.so
7f0000002000-7f0000003000 r--p 00001000 fe:00 11    /opt/with blank/lib/libggml-cpu-haswell.so
7f0000004000-7f0000005000 r-xp 00000000 fe:00 12    /opt/with blank/lib/libggml-rpc.so
7f0000006000-7f0000007000 r-xp 00000000 fe:00 13    /opt/with blank/lib/libllama.so
7f0000008000-7f0000009000 r-xp 00000000 fe:00 14    /tmp/libggml-cpu-evil.so
7f000000a000-7f000000b000 rw-p 00000000 00:00 0
"""


def test_loaded_backends_are_those_of_the_package_once_each() -> None:
    folder = Path("/opt/with blank/lib")
    assert backends.loaded(MAPS, folder) == [
        f"{folder}/libggml-cpu-haswell.so",
        f"{folder}/libggml-rpc.so",
    ]


def test_with_the_library_a_cpu_to_compute_on_is_loaded() -> None:
    assert backends.library().ggml_backend_reg_count() >= 1


def test_a_function_is_the_first_that_there_is() -> None:
    name = backends.function("no_such_function", "ggml_nbytes")
    assert name is backends.function("ggml_nbytes")
    with pytest.raises(AttributeError, match="no_such_function or no_other"):
        backends.function("no_such_function", "no_other")


def test_what_stands_in_the_cpus_part_alone_is_found_in_each_kind_of_build() -> None:
    assert backends.function("ggml_cpu_fp32_to_fp16")
    assert backends.function("ggml_backend_rpc_start_server")
