"""An engine process's lines to and from the agent, on its standard input and output.

For `process.py` and what it runs; the agent's end is `supervisor.py`, the types are in `spec.py`.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from agent import errors
from agent.engine.spec import Command, EngineSpec, Event
from agent.errors import ConfigError, CoveyError
from agent.unreadable import UNREADABLE

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

STDIN = 0
_STDOUT = 1
_STDERR = 2
_READ_BYTES = 65_536


class Channel:
    """The lines to and from the agent; events may be emitted from any thread."""

    def __init__(self) -> None:
        # Whatever else prints must not garble the events: standard output becomes standard error.
        self._output = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
        os.set_blocking(STDIN, False)
        self._partial = b""
        self._lines: deque[bytes] = deque()
        self._lock = threading.Lock()
        self.commands: deque[Command] = deque()
        self.stopped = False
        self.regroups = 0
        # What it tells of itself when it is asked: counts and seconds.
        self.stats: Callable[[], dict[str, float]] = dict
        self._heard_elsewhere = False
        self._news = threading.Event()

    def emit(self, event: Event, regroups: int | None = None) -> None:
        """Write an event; an agent that is gone is no error, its absence ends the process.

        `regroups`: how many had been taken when it came about; None: all until now.
        """
        count = self.regroups if regroups is None else regroups
        line = msgspec.json.encode(msgspec.structs.replace(event, regroups=count)) + b"\n"
        with self._lock:
            try:
                os.write(self._output, line)
            except OSError as error:
                log.info("the agent does not listen: %s", error)

    def emit_error(
        self, event: str, error: CoveyError, lost: int = -1, regroups: int | None = None
    ) -> None:
        """Write `failed` or `broken`; `lost` is the stage that is to blame."""
        fields = {"event": event, "lost": lost, **errors.to_wire(error)}
        # Before the event, after which the agent may end the process.
        log.error("%s: %s", event, error.line())
        self.emit(msgspec.convert(fields, Event), regroups)

    def read_spec(self) -> EngineSpec:
        """Wait for the first line; raises ConfigError when it is no spec."""
        while not self._lines and not self.stopped:
            select.select([STDIN], [], [])
            self._receive()
        try:
            spec = msgspec.json.decode(self._lines.popleft(), type=EngineSpec)
        except (IndexError, *UNREADABLE) as error:
            raise ConfigError(f"this is no engine spec: {error}") from None
        spec.check()
        self.poll()
        return spec

    def poll(self) -> bool:
        """Read what has come, without waiting; returns whether the engine must stop."""
        return self.stopped if self._heard_elsewhere else self._hear()

    def _hear(self) -> bool:
        self._receive()
        while self._lines:
            line = self._lines.popleft()
            try:
                command = msgspec.json.decode(line, type=Command)
            except UNREADABLE as error:
                log.error("not a command: %s", error)
                continue
            if command.ping:
                self.emit(Event("alive"))
                continue
            if command.tell:
                self.emit(Event("stats", stats=self.stats()))
                continue
            self.stopped |= command.stop
            self.commands.append(command)
        return self.stopped

    def wait(self, seconds: float) -> bool:
        """Wait for input for a while at most; returns whether the engine must stop."""
        if self._heard_elsewhere:
            self._news.wait(seconds)
            self._news.clear()
        elif not self.stopped:
            select.select([STDIN], [], [], seconds)
        return self.poll()

    @contextmanager
    def heard(self) -> Iterator[asyncio.Event]:
        """Have the running event loop read what comes; the event is set whenever something has.

        Other threads that `poll` and `wait` meanwhile only look.
        """
        import asyncio  # a stage does without its 7 MB

        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def hear() -> None:
            if self._hear():
                loop.remove_reader(STDIN)
            told.set()
            self._news.set()

        told.set()  # something may have come with the spec
        self._heard_elsewhere = True
        loop.add_reader(STDIN, hear)
        try:
            yield told
        finally:
            loop.remove_reader(STDIN)
            self._heard_elsewhere = False

    async def until_stopped(self) -> None:
        """Take in commands until the engine, which has no ring, must stop, from an event loop."""
        with self.heard() as told:
            while not self.stopped:
                await told.wait()
                told.clear()
                if self.regroup() is not None:
                    error = ConfigError("an engine without a ring cannot go over to another")
                    self.emit_error("failed", error)

    def regroup(self) -> EngineSpec | None:
        """Take what the engine shall be from now on, if it was told; all before that is void."""
        found = None
        while self.wants_regroup:
            spec = self.commands.popleft().regroup
            if spec is not None:
                found = spec
                self.regroups += 1
        return found

    @property
    def wants_regroup(self) -> bool:
        """Whether the engine shall be something else."""
        return any(command.regroup is not None for command in list(self.commands))

    def successor(self) -> tuple[str, int] | None:
        """Return where `connect` said that the successor is, None before it did."""
        for command in list(self.commands):
            if command.connect is not None:
                return command.connect
        return None

    def _receive(self) -> None:
        while not self.stopped:
            try:
                data = os.read(STDIN, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.stopped = True
                return
            *lines, self._partial = (self._partial + data).split(b"\n")
            self._lines.extend(line for line in lines if line.strip())
