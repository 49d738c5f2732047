"""The proof of GPUs: what is used, what is said when it fails, what is kept.

No GPU is here, so scripts stand for the processes that list and that try it; what the latter does
runs for real, with the CPU on both sides.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from agent.engine import devices, gpu, means, probe
from agent.engine.devices import Device
from agent.engine.llama import Rows, Weights
from agent.engine.spec import EngineSpec

GPU = Device("CUDA0", "NVIDIA H200", "gpu", 100, 200)
CPU = Device("CPU", "A CPU", "cpu", 1, 2)
DIES = [sys.executable, "-c", "import os; os.abort()"]
WORKS = [sys.executable, "-c", ""]


def listing(*found: Device) -> list[str]:
    return [sys.executable, "-c", f"print({msgspec.json.encode(found).decode()!r})"]


def test_a_build_without_gpus_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpu_backends", lambda _: ())
    assert gpu.survey(tmp_path, probe=DIES) == gpu.Survey()
    assert list(tmp_path.iterdir()) == []


def test_a_proof_is_kept_and_a_fault_is_not(tmp_path: Path) -> None:
    failed = gpu.survey(tmp_path, listing(GPU, CPU), DIES)
    assert failed.devices == (GPU, CPU)
    assert failed.usable == ()
    assert failed.fault == (
        "the self-test on NVIDIA H200 (CUDA0) was killed by SIGABRT."
    )  # fmt: skip
    assert gpu.survey(tmp_path, listing(GPU, CPU), WORKS).usable == (GPU,)
    # It is not tried again; another GPU is.
    assert gpu.survey(tmp_path, listing(GPU, CPU), DIES).usable == (GPU,)
    other = msgspec.structs.replace(GPU, total_bytes=300)
    assert gpu.survey(tmp_path, listing(other, CPU), DIES).fault


def test_no_gpu_is_no_fault_and_a_list_that_fails_is(tmp_path: Path) -> None:
    assert gpu.survey(tmp_path, listing(CPU), DIES) == gpu.Survey((CPU,))
    fault = gpu.survey(tmp_path, DIES, WORKS).fault
    assert fault.startswith("listing llama.cpp's devices was killed by SIGABRT. Is the GPU's")


def test_what_computes_the_same_passes() -> None:
    assert probe.differs() == ""  # without a GPU llama.cpp computes on the CPU


Spoil = Callable[[int, Rows], Rows]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda step, rows: rows * (1.5 if step == 0 else 1), "the rows of a batch differ .* 50 %"),
        (lambda step, rows: rows[:, ::-1] if step == 1 else rows, "the rows of a token differ"),
        (lambda step, rows: rows[::-1] if step == 2 else rows, "logits differ"),
        (lambda step, rows: np.full_like(rows, np.nan) if step else rows, "token are not finite"),
    ],
)
def test_a_gpu_that_computes_something_else_is_found_out(
    monkeypatch: pytest.MonkeyPatch, spoil: Spoil, said: str
) -> None:
    through, seen = probe._through, 0

    def second_spoilt(weights: Weights) -> Iterator[Rows]:
        nonlocal seen
        seen += 1
        for step, rows in enumerate(through(weights)):
            yield spoil(step, rows) if seen == 2 else rows

    monkeypatch.setattr(probe, "_through", second_spoilt)
    assert re.search(said, probe.differs())


def spec(tmp_path: Path, **changes: object) -> EngineSpec:
    fields = {"role": "whole", "files": ("m",), "threads": 2, "gpu_layers": -1,
              "cache": str(tmp_path)}  # fmt: skip
    return msgspec.convert(fields | changes, EngineSpec)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the engine's process has in its environment."""
    found: dict[str, str] = {}
    monkeypatch.setattr(means, "os", SimpleNamespace(environ=found))
    return found


def test_an_engine_uses_the_gpus_that_were_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setattr(gpu, "survey", lambda _: gpu.Survey((GPU, CPU)))
    found = means.find(spec(tmp_path))
    assert (found.gpu_layers, found.words) == (-1, "NVIDIA H200 (CUDA0)")
    # What its driver compiles is kept where a confined engine may write.
    assert environment == devices.compiling(tmp_path)
    environment.clear()
    # Where nobody wants a GPU its driver is kept away.
    found = means.find(spec(tmp_path, gpu_layers=0))
    assert (found.gpu_layers, found.words) == (0, "2 CPU threads")
    assert environment == devices.HIDDEN


def test_an_engine_decides_before_it_has_llama_cpp_and_with_it_the_drivers() -> None:
    asks = "import sys, agent.engine.process; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asks], check=False).returncode == 0


def test_an_engine_computes_on_the_cpu_when_the_gpu_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    fault = "the self-test on NVIDIA H200 (CUDA0) was killed by SIGABRT."
    monkeypatch.setattr(gpu, "survey", lambda _: gpu.Survey((GPU, CPU), fault))
    with caplog.at_level(logging.WARNING):
        found = means.find(spec(tmp_path, threads=1))
    assert (found.gpu_layers, found.words) == (0, "1 CPU thread")
    assert f"the model is computed on the CPU: {fault}" in caplog.text
    assert environment == devices.HIDDEN
