"""What this node computes with and can hold: the memory of its GPUs, or else the host's.

Weights lie where they are computed with, so a node whose stages run on GPUs has their memory free,
and any other its own. GPUs are asked for in a child process (`agent.engine.gpu`), for their drivers
may crash; with a build without a GPU backend, or `engine.gpu = "off"`, nothing is asked at all.
Used by `engines.py` and all that plans.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from agent.config import Config
from agent.deploy import machine
from agent.deploy.messages import Facts, LinkFacts
from agent.engine import cpus, devices, selftest, speeds, threads
from agent.engine.gpu import SURVEY_TIMEOUT_S, Survey
from agent.engine.speeds import Speed, Speeds
from agent.engine.supervisor import environment
from agent.errors import EngineError
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

# How long what the GPUs told of their memory is true; and how long a fault is not tried again.
_FRESH_S = 5.0
_FAULT_KEPT_S = 600.0
# A head waits 3 s for an answer (build.py); older figures are better than none.
_PATIENCE_S = 2.0
# Parts of llama.cpp that it names among the instruction sets, and sets that come with AVX2.
_NO_INSTRUCTIONS = frozenset({"LLAMAFILE", "OPENMP", "REPACK", "ACCELERATE"})
_WITH_AVX2 = frozenset({"SSE3", "SSSE3", "AVX", "F16C", "FMA", "BMI2"})


class Hardware:
    """This machine's devices as far as they are known, asked for anew when somebody plans.

    `command` looks for them, by default this package's; `backends` are those of the build.
    """

    def __init__(
        self, settings: Config, command: Sequence[str] = (), backends: Sequence[str] | None = None
    ) -> None:
        self._engine = settings.engine
        self.cache = settings.engine_cache
        # What is known of this node's links; set by whoever measures them.
        self.links: Callable[[], tuple[LinkFacts, ...]] = tuple
        self._command = list(command) or [sys.executable, "-m", "agent.engine.gpu"]
        if backends is None:
            backends = devices.gpu_backends(devices.library_folder())
        self._backends = tuple(backends)
        self._asks = settings.engine.gpu == "auto" and bool(self._backends)
        self._survey: Survey | None = None if self._asks else Survey()
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        # What the latest engine could not give up; empty: nothing, or there was none yet.
        self.unconfined = ""

    async def facts(self, patience_s: float = _PATIENCE_S) -> Facts:
        """Return what this node can hold now; EngineError while its GPUs are not known yet."""
        if self._asks and time.monotonic() - self._asked_at > self._kept_s():
            await self._ask(patience_s)
        if self._survey is None:
            raise EngineError(
                "this node still tries what its GPUs can do", hint="Try again in a minute."
            )
        known, speed = self.speeds(), self.speed()
        return Facts(
            free_bytes=self.free_bytes(), cores=cpus.find().allowed,
            decode_bytes_s=speed.decode_bytes_s if speed else 0.0,
            prefill_flop_s=speed.prefill_flop_s if speed else 0.0,
            measured_at=known.at if known and speed else 0.0,
            busy=speed is not None and speed.busy, links=self.links(),
            batches=speed.batches if speed else (), attended_s=speed.attended_s if speed else 0.0,
            cpu_share=cpus.share(cpus.quota()),
        )  # fmt: skip

    @property
    def surveyed(self) -> bool:
        """Whether it is known which GPUs there are."""
        return self._survey is not None

    @property
    def threads(self) -> int:
        """How many threads engines have by the settings; 0: as many as are best."""
        return self._engine.threads

    def speeds(self) -> Speeds | None:
        """Return what was measured of this machine's devices; None where nothing was."""
        gpus = self._survey.usable if self._survey else ()
        return speeds.kept(self.cache, gpus)

    def speed(self) -> Speed | None:
        """Return how fast stages run here, on the GPUs that are used or on the CPU."""
        known, gpus = self.speeds(), self._survey.usable if self._survey else ()
        return known.of(gpus) if known is not None else None

    def free_bytes(self) -> int:
        """Return the memory (bytes) for stages, as far as it is known now."""
        host = machine.free_bytes()
        gpus = self._survey.usable if self._survey else ()
        if not gpus or not all(gpu.total_bytes for gpu in gpus):
            return host
        free = sum(gpu.free_bytes for gpu in gpus)
        return free if gpus[0].kind == "gpu" else min(free, host)

    def free_without(self, pids: Iterable[int]) -> int:
        """Return `free_bytes` as if these processes had ended; what they have on GPUs stays."""
        free = self.free_bytes()
        on_gpus = self._survey is not None and bool(self._survey.usable)
        return free if on_gpus else free + sum(machine.own_bytes(pid) for pid in pids)

    async def gpu_layers(self) -> int:
        """Return how many layers engines shall put on the GPUs: -1 (all), or 0."""
        if self._survey is None:
            await self._ask(SURVEY_TIMEOUT_S)
        return -1 if self._survey and self._survey.usable else 0

    def begin(self) -> None:
        """Look for GPUs now, so that they are known when somebody plans."""
        if self._survey is None and self._asking is None:
            self._asking = asyncio.create_task(self._look(), name="devices")

    async def stop(self) -> None:
        """End the child that looks, if there is one."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def describe(self) -> dict[str, Any]:
        """Describe devices and what engines use of them, for `agent status`."""
        survey, proof = self._survey or Survey(), selftest.kept(self.cache)
        return {
            "gpu": self._engine.gpu,
            "backends": list(self._backends),
            "devices": [msgspec.to_builtins(device) for device in survey.devices],
            "used": [device.name for device in survey.usable],
            "fault": survey.fault,
            "instructions": list(proof.found.features) if proof else [],
            "cpu_share": cpus.share(cpus.quota()),
            "threads": self._engine.threads or (proof.threads if proof else 0),
            "tokens_per_s": {str(n): speed for n, speed in (proof.speeds if proof else {}).items()},
            "speed": msgspec.to_builtins(known) if (known := self.speeds()) else None,
            "unconfined": self.unconfined,
            "lines": [*self._gpu_lines(), self.cpu(), *self._speed_lines(), *self._open_lines()],
        }

    def cpu(self) -> str:
        """Describe what is known of the CPU, and how many threads it gets and why, for people."""
        proof = selftest.kept(self.cache)
        features = frozenset(proof.found.features if proof else ())
        hidden = _NO_INSTRUCTIONS | (_WITH_AVX2 if "AVX2" in features else frozenset())
        names = [name for name in (proof.found.features if proof else ()) if name not in hidden]
        cpu = f"CPU ({', '.join(names)})" if names else "CPU"
        if self._engine.threads:
            return f"{cpu}, {threads.counted(self._engine.threads)} (engine.threads)"
        if proof is None:
            return f"{cpu}, tried and measured when the first engine starts"
        count = threads.counted(proof.threads)
        if not proof.speeds:
            return f"{cpu}, {count}"
        busy = " while others were at work" if proof.found.busy else ""
        return f"{cpu}, {count} (measured{busy}: {threads.described(proof.speeds)})"

    def _gpu_lines(self) -> list[str]:
        if not self._backends:
            return []
        built = f"llama.cpp's backend {' and '.join(self._backends)}"
        if not self._asks:
            return [f"no GPU: engine.gpu is off ({built} is there)"]
        if self._survey is None:
            return [f"{built} is being tried"]
        if self._survey.fault:
            return [f"no GPU: {self._survey.fault}"]
        if not self._survey.usable:
            return [f"no GPU: {built} finds none"]
        return [f"{device.name} {device.description}, {device.memory}"
                for device in self._survey.usable]  # fmt: skip

    def _speed_lines(self) -> list[str]:
        known, speed = self.speeds(), self.speed()
        if known is None or speed is None:
            return []
        ago_h = max(0.0, time.time() - known.at) / 3600
        when = f"{ago_h * 60:.0f} min" if ago_h < 2 else f"{ago_h:.0f} h"
        busy = " while others were at work" if speed.busy else ""
        return [f"{speeds.described(speed)}, measured {when} ago{busy}"]

    def _open_lines(self) -> list[str]:
        words = self.unconfined
        return [f"engines are not fully confined: {words}"] if words else []

    def _kept_s(self) -> float:
        return _FAULT_KEPT_S if self._survey and self._survey.fault else _FRESH_S

    async def _ask(self, patience_s: float) -> None:
        """Have the devices looked at, unless somebody does already, and wait for it a while."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._look(), name="devices")
        await asyncio.wait([self._asking], timeout=patience_s)

    async def _look(self) -> None:
        found = await self._asked()
        known, self._survey = self._survey, found
        self._asked_at = time.monotonic()
        if found.fault and (known is None or known.fault != found.fault):
            _log.warning("stages run on the CPU: %s", found.fault)
        elif known is None or known.usable != found.usable:
            for device in found.usable:
                _log.info("stages run on %s, %s", device.title, device.memory)

    async def _asked(self) -> Survey:
        process = await asyncio.create_subprocess_exec(
            *self._command, str(self.cache),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        try:
            async with asyncio.timeout(SURVEY_TIMEOUT_S):
                output, said = await process.communicate()
            return msgspec.json.decode(output, type=Survey)
        except TimeoutError:
            return Survey(fault=f"looking for GPUs did not end within {SURVEY_TIMEOUT_S:.0f} s.")
        except UNREADABLE:
            last = said.decode("utf-8", "replace").strip().rpartition("\n")[2] or "no message"
            return Survey(fault=f"looking for GPUs ended with code {process.returncode} ({last}).")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
