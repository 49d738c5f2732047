"""An engine process's lines to and from the agent, on its standard input and output.

For `process.py` and what it runs; the agent's end is `supervisor.py`, the types are in `spec.py`.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque

import msgspec

from agent import errors
from agent.engine.spec import Command, EngineSpec, Event
from agent.errors import ConfigError, CoveyError

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

    def emit(self, event: Event) -> None:
        """Write an event; an agent that is gone is no error, its absence ends the process."""
        line = msgspec.json.encode(event) + b"\n"
        with self._lock:
            try:
                os.write(self._output, line)
            except OSError as error:
                log.info("the agent does not listen: %s", error)

    def emit_error(self, event: str, error: CoveyError) -> None:
        """Write `failed` or `broken`."""
        self.emit(msgspec.convert({"event": event, **errors.to_wire(error)}, Event))

    def read_spec(self) -> EngineSpec:
        """Wait for the first line; raises ConfigError when it is no spec."""
        while not self._lines and not self.stopped:
            select.select([STDIN], [], [])
            self._receive()
        try:
            spec = msgspec.json.decode(self._lines.popleft(), type=EngineSpec)
        except (IndexError, msgspec.DecodeError) as error:
            raise ConfigError(f"this is no engine spec: {error}") from None
        spec.check()
        self.poll()
        return spec

    def poll(self) -> bool:
        """Read what has come, without waiting; returns whether the engine must stop."""
        self._receive()
        while self._lines:
            line = self._lines.popleft()
            try:
                command = msgspec.json.decode(line, type=Command)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("not a command: %s", error)
                continue
            self.stopped |= command.stop
            self.commands.append(command)
        return self.stopped

    def wait(self, seconds: float) -> bool:
        """Wait for input for a while at most; returns whether the engine must stop."""
        if not self.stopped:
            select.select([STDIN], [], [], seconds)
        return self.poll()

    async def until_stopped(self) -> None:
        """Take in commands until the engine must stop, from an event loop."""
        import asyncio  # a stage does without its 7 MB

        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(STDIN, lambda: stop.set() if self.poll() else None)
        try:
            if not self.stopped:
                await stop.wait()
        finally:
            loop.remove_reader(STDIN)

    def successor(self) -> tuple[str, int] | None:
        """Return where `connect` said that the successor is, None before it did."""
        for command in self.commands:
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
