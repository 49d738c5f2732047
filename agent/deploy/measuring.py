"""Measures this node's devices and links while nothing else is done, and never otherwise.

    devices   when none were, when a week has passed, or ten minutes after a busy machine; only
              while no engine runs and the machine is quiet, and given up when an engine starts
    links     to the nodes of the rings that run here, when due and no packets flow to them

What is due is said in `agent/placement/measured.py`; `agent/engine/speeds.py` measures devices in a
child, `links.py` links. `engine.measure = "off"` leaves all of it. Run by `deployments.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from agent.deploy.hardware import Hardware
from agent.deploy.links import Around, Links
from agent.engine import cpus
from agent.engine.supervisor import environment
from agent.identity.keys import NodeId
from agent.placement import measured

_log = logging.getLogger(__name__)

# An agent that has just come up has other things to do, and so have those that came up with it.
_FIRST_S = (60.0, 120.0)
_LOOK_S = 20.0
# Devices that could not be measured are tried again this much later.
_FAILED_S = 3_600.0
# CPU and GPUs one after the other, with the self-test before.
_DEVICES_LIMIT_S = 300.0
_POLL_S = 0.25
# What flows by itself stays below: keepalives, presence, gossip.
_AT_REST_BYTES_S = 4_000.0
_LINK_LIMIT_S = 15.0


class Measuring:
    """The one that measures. `working`: engines run or start here; `partners`: of their rings."""

    def __init__(
        self, hardware: Hardware, links: Links, around: Around, *,
        working: Callable[[], bool], partners: Callable[[], Iterable[NodeId]],
        command: Sequence[str] = (), load: Callable[[], float] = lambda: os.getloadavg()[0],
    ) -> None:  # fmt: skip
        """`command` measures devices, by default this package's."""
        self._hardware = hardware
        self._links = links
        self._around = around
        self._working = working
        self._partners = partners
        self._command = list(command) or [sys.executable, "-m", "agent.engine.speeds"]
        self._load = load
        self._failed_at = float("-inf")

    async def run(self) -> None:
        """Look for what is due now and then; runs until it is cancelled."""
        await asyncio.sleep(random.SystemRandom().uniform(*_FIRST_S))
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Measure what is due, if this is the time for it."""
        if self._devices_due() and not self._working() and self._quiet():
            await self._devices()
        at_rest = [node for node in self._partners() if self._at_rest(node)]
        for node in self._links.due(at_rest)[:1]:
            await self._links.measure([node], _LINK_LIMIT_S)

    def _devices_due(self) -> bool:
        known = self._hardware.speeds()
        if known is None and time.monotonic() - self._failed_at < _FAILED_S:
            return False
        at, busy = (None, False) if known is None else (known.at, known.busy)
        return self._hardware.surveyed and measured.device_due(at, time.time(), busy=busy)

    def _quiet(self) -> bool:
        return measured.quiet(self._load(), cpus.find().allowed)

    def _at_rest(self, node: NodeId) -> bool:
        traffic = self._around.traffic(node)
        return traffic is not None and traffic < _AT_REST_BYTES_S

    async def _devices(self) -> None:
        """Measure the devices in a child, and end it as soon as an engine starts."""
        process = await asyncio.create_subprocess_exec(
            *self._command, str(self._hardware.cache), str(self._hardware.threads),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE, env=environment(), start_new_session=True,
        )  # fmt: skip
        ends = asyncio.create_task(process.communicate(), name="devices measured")
        try:
            async with asyncio.timeout(_DEVICES_LIMIT_S):
                while not ends.done():
                    if self._working():
                        _log.info("measuring the devices is given up: an engine starts")
                        return
                    await asyncio.wait([ends], timeout=_POLL_S)
        except TimeoutError:
            _log.warning("measuring the devices did not end within %.0f s", _DEVICES_LIMIT_S)
            self._failed_at = time.monotonic()
            return
        finally:
            await _end(process, ends)
        if process.returncode:
            said = ends.result()[1].decode("utf-8", "replace").strip().rpartition("\n")[2]
            _log.warning("the devices could not be measured: %s", said or "no message")
            self._failed_at = time.monotonic()
        elif (speeds := self._hardware.speeds()) is not None:
            for speed in speeds.found:
                _log.info("measured device=%s decode_bytes_s=%.3g prefill_flop_s=%.3g busy=%s",
                          speed.device, speed.decode_bytes_s, speed.prefill_flop_s,
                          speed.busy)  # fmt: skip


async def _end(
    process: asyncio.subprocess.Process, ends: asyncio.Task[tuple[bytes, bytes]]
) -> None:
    """End a child and whatever it started, which is in its process group."""
    if not ends.done():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    await asyncio.wait([ends])
