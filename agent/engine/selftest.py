"""Prove that llama.cpp computes on this CPU, in a process of its own, before an engine does.

On CPUs that announce AMX but mask it (many virtual machines) a natively built llama.cpp dies by a
signal on its first batched matrix product. The probe decodes a tiny synthetic model that has a
layer of each common weight type; when it dies, it is tried again without llama.cpp's extra buffer
types (repacked and AMX weights), which the engine then goes without. The same process measures how
many threads are best, where somebody wants to know. The result is kept for each llama.cpp build,
CPU, and the CPUs that this process may use. Used by `means.py` and the agent's `hardware.py`; what
runs in the process is `probe.py`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.engine import cpus, devices, threads, trial
from agent.engine.llama_build import read_cpu_flags
from agent.errors import EngineError
from agent.unreadable import UNREADABLE

log = logging.getLogger(__name__)

# A probe takes well under a second; a loaded machine may need much more.
PROBE_TIMEOUT_S = 60.0
WITHOUT = "--without-extra-bufts"
MEASURE = "--threads="
# What was measured on a busy machine is true for a while only.
_BUSY_KEPT_S = 600.0


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a probe writes: the instruction sets that this build uses, and speeds if asked for.

    `speeds` are pairs of threads and tokens a second; `busy`: others were at work meanwhile.
    """

    features: tuple[str, ...]
    speeds: tuple[tuple[int, float], ...] = ()
    busy: bool = False


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How llama.cpp computes on this machine without dying, and what a probe found at `at`."""

    use_extra_bufts: bool
    found: Found
    at: float = 0.0  # unix time

    @property
    def speeds(self) -> dict[int, float]:
        """Tokens a second by number of threads; empty where nothing was measured."""
        return dict(self.found.speeds)

    @property
    def threads(self) -> int:
        """The best number of threads; where nothing was measured, as many as can run."""
        return threads.choose(self.speeds) if self.speeds else cpus.find().allowed


def prove(cache: Path | None, probe: Sequence[str] = (), *, measure: bool = False) -> Proof:
    """Return how to load models here, from the cache or by probing.

    `probe` is the command that probes, by default `probe.py`; `measure`: and how many threads are
    best, if there is a choice. Raises EngineError when llama.cpp dies either way.
    """
    counts = _counts() if measure else ()
    known = kept(cache)
    if known is not None and not (counts and _lacks_speeds(known)):
        return known
    command = list(probe) or [*trial.PROBE, "cpu"]
    if counts:
        command.append(MEASURE + ",".join(map(str, counts)))
    first = _run(command)
    if isinstance(first, Found):
        return _keep(cache, Proof(True, first, time.time()))
    log.warning("the self-test %s; trying without extra buffer types", first)
    second = _run([*command, WITHOUT])
    if isinstance(second, Found):
        return _keep(cache, Proof(False, second, time.time()))
    raise EngineError(
        f"llama.cpp does not work on this CPU: its self-test {first}, and without extra "
        f"buffer types it {second}.",
        hint="Build llama-cpp-python again on this machine.",
    )


def kept(cache: Path | None) -> Proof | None:
    """Return what was found here before, None where nothing was; it starts nothing."""
    if cache is None:
        return None
    path = _path(cache)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Proof)
    except (OSError, *UNREADABLE):
        log.debug("no self-test result in %s", path)
        return None


def _counts() -> tuple[int, ...]:
    found = cpus.find()
    return threads.candidates(found.allowed, found.cores) if found.allowed > 1 else ()


def _lacks_speeds(proof: Proof) -> bool:
    age_s = time.time() - proof.at
    return not proof.speeds or (proof.found.busy and not 0 <= age_s < _BUSY_KEPT_S)


def _path(cache: Path) -> Path:
    return cache / f"selftest-{machine_key()}.json"


def build_key() -> bytes:
    """Return what tells one build of llama.cpp from another: its version and its libraries."""
    library = importlib.metadata.version("llama-cpp-python").encode()
    folder = devices.library_folder()
    for path in sorted(folder.glob("libggml*") if folder else ()):
        status = path.stat()
        library += f" {path.name} {status.st_size} {status.st_mtime_ns}\n".encode()
    return library


def machine_key() -> str:
    """Return what tells this build on this CPU, with the CPUs that may be used, from others."""
    try:
        flags = sorted(read_cpu_flags())
    except OSError:
        flags = []
    facts = f"{platform.machine()} {' '.join(flags)} {cpus.find()}".encode() + build_key()
    return hashlib.sha256(facts).hexdigest()[:16]


def _keep(cache: Path | None, proof: Proof) -> Proof:
    if proof.speeds:
        log.info(
            "llama.cpp gets %s of %s%s", threads.counted(proof.threads),
            threads.described(proof.speeds),
            ", on a machine that was busy" if proof.found.busy else "",
        )  # fmt: skip
    if cache is not None:
        keep(_path(cache), msgspec.json.encode(proof))
    return proof


def keep(path: Path, content: bytes) -> None:
    """Write a result's file whole or not at all; one that cannot be written is told in the log."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.rename(path)
    except OSError as error:
        log.warning("cannot keep the self-test result in %s: %s", path, error.strerror)


def _run(command: Sequence[str]) -> Found | str:
    """Run a probe: what it found, or what went wrong, as a verb."""
    done = trial.run(command, PROBE_TIMEOUT_S, devices.HIDDEN)
    if done.fault:
        return done.fault
    try:
        return msgspec.json.decode(done.output, type=Found)
    except UNREADABLE as error:
        return f"wrote what cannot be read ({error})"
