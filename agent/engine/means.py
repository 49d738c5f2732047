"""With what an engine computes on this machine: its GPUs or its CPU, threads, kinds of buffers.

The node that runs an engine says what it wants (`EngineSpec.gpu_layers`, `threads`); what the
self-tests found decides. For the engine processes, before they load llama.cpp.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from agent.engine import devices, gpu, selftest
from agent.engine.devices import Device
from agent.engine.spec import EngineSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """`gpu_layers` is 0 where nothing is computed on `gpus`; `threads` compute on the CPU."""

    threads: int
    use_extra_bufts: bool
    gpu_layers: int = 0
    gpus: tuple[Device, ...] = ()

    @property
    def words(self) -> str:
        """What the engine runs on, for people."""
        if self.gpu_layers:
            return " and ".join(device.title for device in self.gpus)
        return f"{self.threads} CPU thread{'' if self.threads == 1 else 's'}"


def find(spec: EngineSpec) -> Means:
    """Prove llama.cpp here, or read what was proven, and return what this engine uses.

    Must be called before llama.cpp is loaded: it is kept from the GPUs that are not used. Raises
    EngineError when it does not even work on the CPU.
    """
    cache = Path(spec.cache) if spec.cache else None
    proof = selftest.prove(cache, measure=not spec.threads)
    means = Means(spec.threads or proof.threads, proof.use_extra_bufts)
    found = gpu.survey(cache) if spec.gpu_layers else gpu.Survey()
    if found.fault:
        log.warning("%s is computed on the CPU: %s", spec.title, found.fault)
    if not found.usable:
        os.environ.update(devices.HIDDEN)
        return means
    os.environ.update(devices.compiling(cache))
    return Means(means.threads, means.use_extra_bufts, spec.gpu_layers, found.usable)
