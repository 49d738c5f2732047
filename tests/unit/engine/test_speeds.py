"""The speed of devices: one real measurement, and what is made of what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine import selftest, speeds, trial
from agent.engine.devices import Device
from agent.engine.gpu import Survey
from agent.engine.pace import BATCHES
from agent.engine.speeds import CPU, Speed, Speeds, described
from agent.errors import EngineError

GPU = Device("CUDA0", "NVIDIA H200", "gpu", 100, 140)
SECOND = Device("CUDA1", "NVIDIA H200", "gpu", 300, 140)


def test_this_machine_is_measured_and_that_is_kept(tmp_path: Path) -> None:
    """As the agent has it done: a child of its own, for the CPU with one thread."""
    assert speeds.kept(tmp_path) is None
    done = subprocess.run(
        [sys.executable, "-m", "agent.engine.speeds", str(tmp_path), "1"], check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = speeds.kept(tmp_path)
    assert found == msgspec.json.decode(done.stdout, type=Speeds)
    assert found is not None
    (cpu,) = found.found
    assert cpu.device == CPU
    # A Raspberry Pi 3 reads 2 GB/s and computes some GFLOP/s; nothing reads 10 TB/s.
    assert 0.5e9 < cpu.decode_bytes_s < 1e13
    assert 0.5e9 < cpu.prefill_flop_s < 1e16
    assert found.busy == cpu.busy
    assert len(cpu.batches) == len(BATCHES)
    assert all(1.0 <= each < 1000.0 for each in cpu.batches)
    # One row's attention is a thread's multiplications and additions: it takes time that shows.
    assert 1e7 < cpu.attended_s < 1e13
    assert time.time() - 120 < found.at <= time.time()
    (file,) = tmp_path.glob("speed-*.json")
    file.write_text("{garbled")
    assert speeds.kept(tmp_path) is None


def test_what_cannot_be_measured_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "prove", lambda *_, **__: selftest.Proof(True, FOUND))
    dies = (sys.executable, "-c", "import os; os.abort()")
    monkeypatch.setattr(trial, "PROBE", dies)
    with pytest.raises(EngineError, match="measuring CPU was killed by SIGABRT"):
        speeds.measure(tmp_path, 1)
    monkeypatch.setattr(trial, "PROBE", (sys.executable, "-c", "print('no')"))
    with pytest.raises(EngineError, match="wrote what cannot be read"):
        speeds.measure(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


FOUND = selftest.Found(())
ECHO = """
import json, os, sys
task = json.loads(sys.argv[-1])
if task["device"] == "CUDA1":
    os.abort()
rate = 1e12 if task.get("gpu") is not None else 1e10
hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == "-1"
assert hidden == (task["device"] == "CPU")
print(json.dumps({"device": task["device"], "decode_bytes_s": rate, "prefill_flop_s": 9 * rate}))
"""


def test_each_usable_gpu_is_measured_alone_and_one_that_dies_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selftest, "prove", lambda *_, **__: selftest.Proof(True, FOUND))
    monkeypatch.setattr(speeds, "survey", lambda _: Survey((GPU, SECOND)))
    monkeypatch.setattr(trial, "PROBE", (sys.executable, "-c", ECHO))
    found = speeds.measure(tmp_path, 2)
    assert [speed.device for speed in found.found] == [CPU, "CUDA0"]
    assert "measuring CUDA1 was killed by SIGABRT" in caplog.text
    assert speeds.kept(tmp_path, (GPU, SECOND)) == found
    assert speeds.kept(tmp_path) is None, "of other devices"
    assert found.of((GPU,)) == found.found[1]
    assert found.of((GPU, SECOND)) is None
    assert found.of(()) == found.found[0]
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["at"] == found.at


RATES = st.floats(1e6, 1e13)


@given(RATES, RATES, st.integers(0, 2**40), st.integers(0, 2**40))
def test_several_gpus_are_as_fast_as_their_shares_one_after_the_other(
    one: float, other: float, free: int, more: int
) -> None:
    found = Speeds((Speed("CUDA0", one, 2 * one), Speed("CUDA1", other, 2 * other, True)), 0.0)
    gpus = tuple(
        msgspec.structs.replace(gpu, free_bytes=size) for gpu, size in ((GPU, free), (SECOND, more))
    )
    both = found.of(gpus)
    assert both is not None
    assert both.busy
    assert min(one, other) * 0.999 <= both.decode_bytes_s <= max(one, other) * 1.001
    assert both.prefill_flop_s == pytest.approx(2 * both.decode_bytes_s)
    assert both.device == "CUDA0 and CUDA1"
    if free == more:
        assert both.decode_bytes_s == pytest.approx(2 / (1 / one + 1 / other))


def test_batches_of_several_gpus_weigh_as_their_time_does() -> None:
    slow = Speed("CUDA0", 1e9, 1e12, batches=(1.0, 2.0, 3.0, 4.0), attended_s=1e9)
    fast = Speed("CUDA1", 9e9, 9e12, batches=(2.0, 2.0, 2.0, 14.0), attended_s=4e9)
    gpus = tuple(msgspec.structs.replace(gpu, free_bytes=100) for gpu in (GPU, SECOND))
    both = Speeds((slow, fast), 0.0).of(gpus)
    assert both is not None
    assert both.batches == pytest.approx((1.1, 2.0, 2.9, 5.0))
    assert both.attended_s == pytest.approx(1.6e9)
    less = msgspec.structs.replace(fast, batches=(), attended_s=0.0)
    unknown = Speeds((slow, less), 0.0).of(gpus)
    assert unknown is not None
    assert unknown.batches == ()
    assert unknown.attended_s == 0.0


def test_a_speed_is_told_in_a_few_words() -> None:
    assert described(Speed(CPU, 21.04e9, 310.2e9)) == "decodes 21 GB/s, prefill 310 GFLOP/s"
    assert described(Speed(CPU, 1.234e9, 9.876e9)) == "decodes 1.23 GB/s, prefill 9.88 GFLOP/s"


def test_the_largest_cache_decides_how_large_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds.os, "sched_getaffinity", lambda _: {0, 3})
    for cpu, index, text in ((0, 0, "32K\n"), (3, 3, "96M\n"), (1, 3, "512M\n"), (0, 3, "odd")):
        folder = tmp_path / f"cpu{cpu}/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(text)
    assert speeds.cache_bytes(tmp_path) == 96 << 20
    assert speeds.cache_bytes(tmp_path / "none") == 0
