"""Whether stages can run on this machine's GPUs: what there is, and a proof that it computes right.

A driver that does not fit crashes, hangs, or gives numbers that are wrong. So a process of its own
computes the same on the GPU and on the CPU and compares; what differs by more than rounding is a
fault, and the node computes on its CPU. That it worked is kept until the machine starts again,
since a driver changes with that; a fault is not kept, since it may be that all memory was taken.

Used by `means.py` in an engine, and by the agent, which asks `python -m agent.engine.gpu CACHE`.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.engine import devices, selftest, trial
from agent.engine.devices import Device
from agent.errors import EngineError

log = logging.getLogger(__name__)

# Some backends compile their kernels when they are first used, which takes long.
PROOF_TIMEOUT_S = 120.0
# The whole of it: the list, and the proof.
SURVEY_TIMEOUT_S = PROOF_TIMEOUT_S + 60.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Survey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All devices of this machine, and why its GPUs are not used; empty: they are, if any."""

    devices: tuple[Device, ...] = ()
    fault: str = ""

    @property
    def usable(self) -> tuple[Device, ...]:
        """The GPUs on which stages run."""
        return () if self.fault else devices.used(self.devices)


def survey(cache: Path | None, listing: Sequence[str] = (), probe: Sequence[str] = ()) -> Survey:
    """Return the devices, the GPUs proven; nothing is started where the build has no GPU backend.

    `listing` and `probe` are the commands for that, by default those of this package. Blocks for
    SURVEY_TIMEOUT_S at most.
    """
    if not listing and not devices.gpu_backends(devices.library_folder()):
        return Survey()
    try:
        found = devices.ask(listing)
    except EngineError as error:
        return Survey(fault=error.line())
    gpus = devices.used(found)
    if not gpus:
        return Survey(found)
    proof = None if cache is None else cache / f"gpu-{_key(gpus)}"
    if proof is not None and proof.exists():
        return Survey(found)
    command = list(probe) or [*trial.PROBE, "gpu"]
    done = trial.run(command, PROOF_TIMEOUT_S, devices.compiling(cache))
    if done.fault:
        names = " and ".join(device.title for device in gpus)
        return Survey(found, f"the self-test on {names} {done.fault}.")
    if proof is not None:
        selftest.keep(proof, b"")
    return Survey(found)


def _key(gpus: Sequence[Device]) -> str:
    try:
        boot = _BOOT.read_bytes()
    except OSError:
        boot = b""
    facts = [(gpu.name, gpu.description, gpu.total_bytes) for gpu in gpus]
    return hashlib.sha256(selftest.build_key() + boot + repr(facts).encode()).hexdigest()[:16]


def main() -> None:
    """Write a survey as JSON."""
    trial.bound(SURVEY_TIMEOUT_S)
    sys.stdout.buffer.write(msgspec.json.encode(survey(Path(sys.argv[1]))))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
