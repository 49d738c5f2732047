"""How fast this machine's devices decode and read prompts, as placement wants to know it.

    python -m agent.engine.speeds CACHE THREADS     measures all devices and keeps what it found

A device is measured by llama.cpp in a process of its own (`speed_probe.py`), since drivers crash;
what was found is kept for each llama.cpp build, CPU, CPUs that may be used, and GPUs. When to do it
is decided in `agent/placement/measured.py` and done by `agent/deploy/measuring.py`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from operator import truediv
from pathlib import Path
from typing import Annotated

import msgspec

from agent.engine import devices, selftest, trial
from agent.engine.devices import Device
from agent.engine.gpu import survey
from agent.engine.pace import BATCHES
from agent.errors import EngineError
from agent.unreadable import UNREADABLE

log = logging.getLogger(__name__)

# Writing and loading the model, and some seconds of work; drivers compile kernels at first use.
PROBE_TIMEOUT_S = 60.0
CPU = "CPU"
# Last-level caches up to about this do not hold a round of layers; a larger one gets more rounds.
_ROUND_BYTES, _ROUNDS_MAX = 110 << 20, 6
_CACHES = Path("/sys/devices/system/cpu")

_Rate = Annotated[float, msgspec.Meta(gt=0)]
_Times = Annotated[
    tuple[Annotated[float, msgspec.Meta(gt=0)], ...], msgspec.Meta(max_length=len(BATCHES))
]


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a probe shall measure: the CPU with `threads`, or the usable GPU of index `gpu`.

    `rounds`: how often the model's layers are repeated.
    """

    device: str
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    use_extra_bufts: bool = True
    gpu: int | None = None
    rounds: Annotated[int, msgspec.Meta(ge=1, le=_ROUNDS_MAX)] = 1


class Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's speed: weights read a second while one stream decodes, arithmetic of prompts.

    `decode_bytes_s`: bytes a second; `prefill_flop_s`: a multiplication and an addition are two.
    `busy`: others were at work meanwhile, so it may be faster. `batches`: what batches of `BATCHES`
    rows take, in times of one row; empty: not measured. `attended_s`: multiplications of attention
    a second while one stream decodes; 0: not measured, or faster than its cache is read.
    """

    device: str
    decode_bytes_s: _Rate
    prefill_flop_s: _Rate
    busy: bool = False
    batches: _Times = ()
    attended_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Speeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured at `at` (unix seconds): the CPU, then the usable GPUs."""

    found: tuple[Speed, ...]
    at: float

    @property
    def busy(self) -> bool:
        """Whether the machine was busy meanwhile."""
        return any(speed.busy for speed in self.found)

    def of(self, gpus: Sequence[Device]) -> Speed | None:
        """Return the speed of what stages run on: these GPUs together, or the CPU for none.

        None where one of them was not measured. llama.cpp gives each GPU layers by its free memory,
        and computes one's after the other's.
        """
        by_name = {speed.device: speed for speed in self.found}
        if not gpus:
            return by_name.get(CPU)
        parts = [by_name.get(gpu.name) for gpu in gpus]
        known = [part for part in parts if part is not None]
        if len(known) < len(gpus):
            return None
        shares = [max(1, gpu.free_bytes) for gpu in gpus]
        whole = sum(shares)
        pairs = list(zip(shares, known, strict=True))
        took_s = [share / speed.decode_bytes_s for share, speed in pairs]
        batches: tuple[float, ...] = ()
        if all(speed.batches for speed in known):
            batches = tuple(
                sum(each * speed.batches[at] for each, speed in zip(took_s, known, strict=True))
                / sum(took_s)
                for at in range(len(BATCHES))
            )
        attended = [each.attended_s for each in known]
        return Speed(
            " and ".join(speed.device for speed in known),
            whole / sum(took_s),
            whole / sum(share / speed.prefill_flop_s for share, speed in pairs),
            any(speed.busy for speed in known), batches,
            whole / sum(map(truediv, shares, attended)) if all(attended) else 0.0,
        )  # fmt: skip


def kept(cache: Path, gpus: Sequence[Device] = ()) -> Speeds | None:
    """Return what was measured here before, None where nothing was; it starts nothing."""
    try:
        return msgspec.json.decode(_path(cache, gpus).read_bytes(), type=Speeds)
    except (OSError, *UNREADABLE):
        return None


def measure(cache: Path, threads: int = 0) -> Speeds:
    """Measure all devices of this machine, one after the other, and keep it. Blocks for seconds.

    `threads` for the CPU; 0: the best number. A GPU that cannot be measured is left out; raises
    EngineError where the CPU cannot be, or llama.cpp dies on it.
    """
    proof = selftest.prove(cache, measure=not threads)
    gpus = survey(cache).usable
    rounds = min(_ROUNDS_MAX, 1 + 2 * cache_bytes() // _ROUND_BYTES)
    own = Task(CPU, threads or proof.threads, proof.use_extra_bufts, rounds=rounds)
    found = [_measured(own, devices.HIDDEN)]
    for index, gpu in enumerate(gpus):
        try:
            task = Task(gpu.name, own.threads, gpu=index)
            found.append(_measured(task, devices.compiling(cache)))
        except EngineError as error:
            log.warning("%s", error.line())
    speeds = Speeds(tuple(found), time.time())
    keep(cache, gpus, speeds)
    return speeds


def keep(cache: Path, gpus: Sequence[Device], speeds: Speeds) -> None:
    """Keep what was measured here, for `kept`."""
    selftest.keep(_path(cache, gpus), msgspec.json.encode(speeds))


def described(speed: Speed) -> str:
    """Return a speed for people: `decodes 21 GB/s, prefill 310 GFLOP/s`."""
    decodes, prefill = speed.decode_bytes_s / 1e9, speed.prefill_flop_s / 1e9
    return f"decodes {decodes:.3g} GB/s, prefill {prefill:.3g} GFLOP/s"


def cache_bytes(folder: Path = _CACHES) -> int:
    """Return the size of the largest cache of a CPU that this process may use; 0 if untold."""
    sizes = [0]
    for cpu in os.sched_getaffinity(0):
        for path in folder.glob(f"cpu{cpu}/cache/index*/size"):
            text = path.read_text().strip()
            number, unit = text[:-1], text[-1:]
            if number.isdecimal() and unit in "KM":
                sizes.append(int(number) << (10 if unit == "K" else 20))
    return max(sizes)


def _measured(task: Task, environment: dict[str, str]) -> Speed:
    command = [*trial.PROBE, "speed", msgspec.json.encode(task).decode()]
    done = trial.run(command, PROBE_TIMEOUT_S, environment)
    if done.fault:
        raise EngineError(f"measuring {task.device} {done.fault}.")
    try:
        return msgspec.json.decode(done.output, type=Speed)
    except UNREADABLE as error:
        raise EngineError(f"measuring {task.device} wrote what cannot be read: {error}.") from None


def _path(cache: Path, gpus: Sequence[Device]) -> Path:
    facts = repr([(gpu.name, gpu.description, gpu.total_bytes) for gpu in gpus]).encode()
    key = hashlib.sha256(selftest.machine_key().encode() + facts).hexdigest()[:16]
    return cache / f"speed-{key}.json"


def main() -> None:
    """Measure, and keep and write what was found as JSON; ends with a line where it cannot be."""
    cache, threads = Path(sys.argv[1]), int(sys.argv[2])
    try:
        found = measure(cache, threads)
    except EngineError as error:
        sys.exit(error.line())
    sys.stdout.buffer.write(msgspec.json.encode(found))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
