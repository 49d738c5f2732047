"""What ggml lists: really on this machine; with GPUs by a C library that stands for it.

No GPU is here when tests run, so `_LIBRARY` is compiled, and read by the same code by which ggml's
own list is read. What a real GPU backend lists was looked at by hand (design-notes.md).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from agent.engine import devices
from agent.engine.devices import Device
from agent.errors import EngineError

_LIBRARY = """
#include <stddef.h>
static struct { const char *name, *text; int type; size_t free, total; } all[] = {
    {"CUDA0", "NVIDIA H200 ", 1, 149000000000, 150000000000},
    {"Vulkan0", "Intel Graphics", 2, 9, 8},
    {"Metal", NULL, 1, 0, 0},
    {"BLAS", "OpenBLAS", 3, 0, 0},
    {"Meta", "", 4, 1, 1},
    {"CPU", "A \\xff CPU", 0, 5, 7},
};
size_t ggml_backend_dev_count(void) { return sizeof all / sizeof *all; }
void *ggml_backend_dev_get(size_t i) { return &all[i]; }
#define OF(d) (*(__typeof__(&all[0])) (d))
const char *ggml_backend_dev_name(void *d) { return OF(d).name; }
const char *ggml_backend_dev_description(void *d) { return OF(d).text; }
int ggml_backend_dev_type(void *d) { return OF(d).type; }
void ggml_backend_dev_memory(void *d, size_t *f, size_t *t) { *f = OF(d).free; *t = OF(d).total; }
"""


def test_this_machine_has_a_cpu() -> None:
    cpu = devices.ask()[-1]
    assert (cpu.name, cpu.kind) == ("CPU", "cpu")
    assert cpu.description
    assert 0 < cpu.free_bytes <= cpu.total_bytes


def test_a_list_with_gpus_is_read(tmp_path: Path) -> None:
    source, library = tmp_path / "list.c", tmp_path / "list.so"
    source.write_text(_LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    found = devices.listed(ctypes.CDLL(str(library)))
    assert found == (
        Device("CUDA0", "NVIDIA H200", "gpu", 149_000_000_000, 150_000_000_000),
        Device("Vulkan0", "Intel Graphics", "igpu", 8, 8),  # more free than there is
        Device("Metal", "", "gpu"),
        Device("BLAS", "OpenBLAS", "accel"),
        Device("Meta", "", "other", 1, 1),
        Device("CPU", "A \ufffd CPU", "cpu", 5, 7),
    )
    assert [device.name for device in devices.used(found)] == ["CUDA0", "Metal"]
    assert devices.used(found[1:2] + found[3:]) == found[1:2]
    assert devices.used(found[3:]) == ()
    assert found[0].memory == "138.8 of 139.7 GiB free"
    assert found[2].memory == "does not tell its memory"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("raise SystemExit('no driver')", r"ended with code 1 \(no driver\)"),
        ("print('[1]')", "cannot be read"),
    ],
)
def test_a_driver_that_dies_is_one_clear_line(script: str, said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        devices.ask([sys.executable, "-c", script])
    assert "driver" in caught.value.hint


def test_a_driver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "TIMEOUT_S", 0.1)
    with pytest.raises(EngineError, match="did not end within"):
        devices.ask([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_build_is_known_by_its_libraries(tmp_path: Path) -> None:
    assert devices.gpu_backends(None) == ()
    names = ["libggml.so", "libggml-base.so.0", "libggml-cpu.so", "libggml-cpu-haswell.so",
             "libggml-rpc.so", "libllama.so"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    assert devices.gpu_backends(tmp_path) == ()
    for name in ("libggml-vulkan.so", "libggml-vulkan.so.0.25.3", "libggml-cuda.so"):
        (tmp_path / name).touch()
    assert devices.gpu_backends(tmp_path) == ("cuda", "vulkan")
