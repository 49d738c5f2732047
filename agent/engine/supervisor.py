"""Run an engine process from the agent's event loop, and say in one line why it ended.

For the daemon, which decides what to start where and whether to start it again. llama.cpp may
crash, the agent may not: this module never imports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

import agent
from agent import errors
from agent.childenv import kept
from agent.engine.cpus import active_s
from agent.engine.silence import Known
from agent.engine.spec import Command, EngineSpec, Event
from agent.engine.tail import Tail
from agent.errors import CoveyError, EngineError
from agent.unreadable import UNREADABLE

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 8.0
_KILL_TIMEOUT_S = 5.0
_LINE_BYTES = 1 << 20
# A head whose process is stopped, or hangs in a driver, holds all that is asked of it, and nobody
# else says so: of a stage its neighbours do (`watch.py`). It is asked whether it lives; one that
# does not answer twice, and neither ran nor waited for a CPU meanwhile, stands still. One that is
# kept from the CPU by other work may take seconds, one that never comes to an answer is none.
_LOOK_S, _STILL_S, _STILL, _SILENT = 2.0, 3.0, 2, 20
_RESTS = 0.01
# llama.cpp's threads spin at every barrier. Where engines share CPUs with anything else, a thread
# that spins while its peer waits for a CPU made a token of a tiny model take 41 ms instead of 2.
# numpy's own BLAS threads are never used; each costs memory and start-up time.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}


def environment() -> dict[str, str]:
    """Return the environment in which a process of this package runs."""
    root = str(Path(agent.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**_ENVIRONMENT, **kept(os.environ), "PYTHONPATH": os.pathsep.join(paths)}


async def spawn() -> asyncio.subprocess.Process:
    """Start a process that has loaded its own code and waits to be told what engine it is."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent.engine.process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
        env=environment(),
    )


class Engine:
    """A running engine process; made by `start`, ended by `stop`.

    `lost` is the stage (its place in the ring) by which a ring broke, -1 where that is not known.
    """

    def __init__(self, spec: EngineSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.first_spec = spec  # by which its process was confined, whatever it went over to
        self.pid = process.pid
        self.port = 0
        self.http_port = 0
        self.lost = -1
        self.rows = ""
        self.runs_on = ""
        self.unconfined = ""  # what it could not give up, in words
        self.stats: dict[str, float] = {}
        # Hears what the engine learns of its links, by overlay address.
        self.heard: Callable[[dict[str, Known]], None] = lambda links: None
        # Hears when the process has ended, and why; None: it was stopped.
        self.over: Callable[[CoveyError | None], None] = lambda reason: None
        self._process = process
        self._tail = Tail()
        self._listening = asyncio.Event()
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._lives = asyncio.Event()
        self._told = asyncio.Event()
        self._reason: CoveyError | None = None
        self._failed = asyncio.Event()
        self._stopping = False
        self._regroups = 0
        self._refusable = False
        self._reader = asyncio.create_task(self._read(), name=f"engine {process.pid}")

    @classmethod
    async def start(
        cls, spec: EngineSpec, *, load_timeout_s: float = LOAD_TIMEOUT_S,
        made: Callable[[Self], None] = lambda engine: None,
        spare: asyncio.subprocess.Process | None = None,
    ) -> Self:  # fmt: skip
        """Start a process and wait until it listens (a stage, a head) or is ready (whole).

        `made` hears of it before that, for it may fail. `spare` is a process of `spawn` to take if
        it lives. Raises the engine's own error when it fails, EngineError when it dies or takes too
        long.
        """
        spec.check()
        lives = spare is not None and spare.returncode is None
        process = spare if spare is not None and lives else await spawn()
        engine = cls(spec, process)
        made(engine)
        try:
            await engine._write(msgspec.json.encode(spec))
            awaited = engine._ready if spec.role == "whole" else engine._listening
            await engine._wait_for(awaited, load_timeout_s, "load")
        except BaseException:
            await engine.stop(grace_s=0.0)
            raise
        return engine

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the engine of {self.spec.title}"

    @property
    def ended(self) -> bool:
        """Whether it has ended or reported that its ring is broken."""
        return self._ended.is_set()

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self._ready.is_set() and not self.ended

    @property
    def alive(self) -> bool:
        """Whether the process runs, whatever became of its ring."""
        return self._process.returncode is None and not self._reader.done()

    @property
    def log_tail(self) -> list[str]:
        """The last lines of its log."""
        return list(self._tail)

    @property
    def log_lines(self) -> int:
        """How many lines it has logged."""
        return self._tail.total

    @property
    def state(self) -> str:
        """What has become of it, in a few words for people."""
        if self._reason is not None:
            return errors.one_line(f"{'broke' if self.alive else 'ended'}: {self._reason.message}")
        return "runs" if self.alive else "was stopped"

    async def connect(self, address: str, port: int) -> None:
        """Tell it where its successor listens; then wait with `wait_ready`."""
        await self._write(msgspec.json.encode(Command(connect=(address, port))))

    async def regroup(self, spec: EngineSpec, *, load_timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Have the same process, a head or a whole model, go on with other files, in another ring.

        Its answers wait meanwhile, and go on. Returns once it listens (a head, on another `port`)
        or is ready (whole); then it is as after `start`. It need not be broken before. Raises what
        `start` raises; `ended` then tells whether it has no ring any more, and waits for another
        `regroup`, or is as it was, since what it was told could not be (another model, no file).
        """
        if spec.http_port == self.http_port:
            spec = msgspec.structs.replace(spec, http_port=self.spec.http_port)
        self.spec.check_regroup(spec)
        if not self.alive:
            raise self._reason or EngineError(f"{self.name} has ended.")
        before = self.spec, self._reason, self.lost
        self._refusable, was_ready = not self.ended, self._ready.is_set()
        for event in (self._listening, self._ready, self._failed, self._ended):
            event.clear()
        self.spec, self._reason, self.lost = spec, None, -1
        self._regroups += 1
        await self._write(msgspec.json.encode(Command(regroup=spec)))
        awaited = self._ready if spec.role == "whole" else self._listening
        try:
            await self._wait_for(awaited, load_timeout_s, "load")
        except CoveyError:
            if self._refusable and self._failed.is_set() and not self.ended:
                self.spec, self._reason, self.lost = before
                self._failed.clear()
                if was_ready:
                    self._listening.set()
                    self._ready.set()
            raise
        finally:
            self._refusable = False

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until it serves; raises the engine's own error when it fails."""
        await self._wait_for(self._ready, timeout_s or self.spec.join_timeout_s + 10.0, "be ready")

    async def wait_ended(self) -> CoveyError | None:
        """Wait until it ends or its ring breaks; returns why, None when it was stopped."""
        await self._ended.wait()
        return self._reason

    async def tell(self, timeout_s: float) -> None:
        """Have it tell its `stats` anew; those before stay when it does not within the time.

        A stage tells between two frames, and nothing while it loads.
        """
        if not self.alive:
            return
        self._told.clear()
        with contextlib.suppress(TimeoutError, EngineError):
            async with asyncio.timeout(timeout_s):
                await self._write(msgspec.json.encode(Command(tell=True)))
                await self._told.wait()

    async def stop(self, *, grace_s: float = STOP_TIMEOUT_S) -> None:
        """End the process: ask it, then kill it; bounded, and harmless when it has ended."""
        self._stopping = True
        if grace_s > 0 and self._process.returncode is None:
            with contextlib.suppress(EngineError):
                await self._write(msgspec.json.encode(Command(stop=True)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await asyncio.shield(self._reader)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await asyncio.shield(self._reader)
        except TimeoutError:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _write(self, line: bytes) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing():
            raise EngineError(f"{self.name} has ended.")
        try:
            stdin.write(line + b"\n")
            await stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            # Why it ended comes from its events or its exit code, which are on their way.
            log.debug("%s does not read any more", self.name)

    async def _wait_for(self, event: asyncio.Event, timeout_s: float, what: str) -> None:
        waits = [asyncio.create_task(event.wait()), asyncio.create_task(self._failed.wait())]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if event.is_set() and not self._failed.is_set():
            return
        if not done:
            raise EngineError(
                f"{self.name} took more than {timeout_s:.0f} s to {what}.",
                hint="A larger timeout may help on a slow disk.",
            )
        raise self._reason or EngineError(f"{self.name} was stopped.")

    async def _read(self) -> None:
        """Own both outputs until the process has ended."""
        looking: asyncio.Task[None] | None = None
        if self.spec.role in ("head", "whole"):
            looking = asyncio.create_task(self._look_after(), name=f"watch {self.pid}")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_events())
                tasks.create_task(self._read_log())
            code = await self._process.wait()
        except BaseException:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            self._end()
            raise
        finally:
            if looking is not None:
                looking.cancel()
        if self._reason is None and not self._stopping:
            self._reason = self._death(code)
        log.info("ended name=%s pid=%d code=%d reason=%s", self.name, self.pid, code, self._reason)
        self.over(self._reason)
        self._end()

    async def _look_after(self) -> None:
        """Kill a process that stands still, once it has served."""
        await self._ready.wait()
        while not self._stopping:
            await asyncio.sleep(_LOOK_S)
            still = silent = 0
            before = active_s(self.pid)
            # One that is told to stop hears nothing more, and may take a while to end.
            while not await self._answers() and not self._stopping:
                now = active_s(self.pid)
                rests = 0.0 <= now - before < _RESTS * _STILL_S
                before, silent, still = now, silent + 1, still + 1 if rests else 0
                if still >= _STILL or silent >= _SILENT:
                    self._reason = EngineError(f"{self.name} stood still and was ended.")
                    with contextlib.suppress(ProcessLookupError):
                        self._process.kill()
                    return

    async def _answers(self) -> bool:
        """Ask whether it lives; return whether anything came in time."""
        self._lives.clear()
        with contextlib.suppress(TimeoutError, EngineError):
            async with asyncio.timeout(_STILL_S):
                await self._write(msgspec.json.encode(Command(ping=True)))
                await self._lives.wait()
        return self._lives.is_set()

    def _end(self) -> None:
        self._failed.set()
        self._ended.set()

    def _death(self, code: int) -> EngineError:
        if code == -signal.SIGABRT and self.spec.servers:
            names = ", ".join(server.name for server in self.spec.servers)
            return EngineError(
                f"llama.cpp gave up {self.name}: an RPC server failed (they are on {names}).",
                hint="The agents' logs there say which, and why.",
            )
        if code < 0:
            return EngineError(f"{self.name} was killed (signal {-code}).")
        last = f": {self._tail[-1]}" if self._tail else ""
        return EngineError(f"{self.name} ended with code {code}{last}.")

    async def _read_events(self) -> None:
        output = self._process.stdout
        if output is None:
            return
        while line := await output.readline():
            try:
                self._on_event(msgspec.json.decode(line, type=Event))
            except UNREADABLE as error:
                log.error("%s wrote what is no event: %s", self.name, error)

    def _on_event(self, event: Event) -> None:
        self._lives.set()
        if event.event == "heard":  # every few seconds; whatever its ring is
            self.heard(event.links)
        if event.event == "stats":  # whatever its ring is
            self.stats = dict(event.stats)
            self._told.set()
        if event.event in ("heard", "alive", "stats"):
            return
        log.info(
            "event name=%s pid=%d event=%s message=%s",
            self.name,
            self.pid,
            event.event,
            event.message,
        )
        if event.regroups < self._regroups:
            return  # of what it was before
        match event.event:
            case "listening":
                self.port, self.http_port = event.port, event.http_port
                self.runs_on = event.runs_on
                self._listening.set()
            case "ready":
                self.http_port, self.rows = event.http_port, event.rows
                self.runs_on = event.runs_on or self.runs_on
                self._ready.set()
            case "unconfined":
                self.unconfined = event.message
            case "failed" | "broken":
                if self._stopping:
                    return  # neighbours that stop first look like lost ones
                fields = {"kind": event.kind, "message": event.message, "hint": event.hint}
                self._reason, self.lost = errors.from_wire(fields), event.lost
                self._failed.set()
                # Refused before anything was given up, it goes on as it was.
                if event.event == "broken" or not self._refusable:
                    self._ended.set()

    async def _read_log(self) -> None:
        output = self._process.stderr
        if output is None:
            return
        partial = b""
        while data := await output.read(_LINE_BYTES):
            *lines, partial = (partial + data).split(b"\n")
            for line in lines:
                text = line.decode("utf-8", "replace").rstrip()
                self._tail.append(text)
                log.debug("%s: %s", self.name, text)
            partial = partial[-_LINE_BYTES:]
        if partial:
            self._tail.append(partial.decode("utf-8", "replace"))
