"""An engine process that is one of llama.cpp's RPC servers, for the head of one ring alone.

Run by `process.py`. llama.cpp's server asks nobody who they are, and hostile input can take it
over. So it listens in a network namespace of its own, without files and rights (`confine.py`), and
the same process accepts on the overlay address what comes from the head's, with a hello of this
ring and epoch, and passes bytes on. A heartbeat by a thread of its own tells each side that the
other lives, whatever llama.cpp does meanwhile.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from agent.engine import confine
from agent.engine.channel import STDIN, Channel
from agent.engine.join import Listener
from agent.engine.means import Means
from agent.engine.rpc_wire import (
    BEAT,
    CLOSED,
    HELLO_BYTES,
    check_addresses,
    kind_of,
    no_delay,
    pump,
    why,
)
from agent.engine.spec import EngineSpec, Event
from agent.errors import CoveyError, EngineError

log = logging.getLogger(__name__)

# In this process's own network, where every port is free.
_INSIDE = ("127.0.0.1", 50052)
_START_TIMEOUT_S = 30.0
_HELLO_TIMEOUT_S = 10.0
_PAUSE_S = 0.01
_STEP_S = 0.2


def run_rpc_server(spec: EngineSpec, found: Means, channel: Channel) -> None:
    """Serve until told to stop; raises CoveyError when it fails, or its head is gone."""
    began = time.monotonic()
    try:
        check_addresses(spec.listen, spec.predecessor)
        listener = Listener(spec.listen, spec.port)  # before the network is another one
        confine.own_network()
        gate = _Gate(spec, found.threads, listener)
        missing = gate.start_llama()
    except CoveyError as error:
        channel.emit_error("failed", error)
        raise
    load_s = time.monotonic() - began
    if missing:
        channel.emit(Event("unconfined", message="; ".join(missing)))
    channel.emit(
        Event(
            "listening", port=listener.port, load_s=load_s, use_extra_bufts=False,
            runs_on=found.words,
        )
    )  # fmt: skip
    try:
        gate.run(channel)
    except CoveyError as error:
        channel.emit_error("broken" if gate.is_ready else "failed", error)
        raise
    finally:
        listener.close()


class _Gate:
    """Lets the head in, and nobody else."""

    def __init__(self, spec: EngineSpec, threads: int, listener: Listener) -> None:
        self._spec = spec
        self._threads = threads
        self._listener = listener
        self._head = ipaddress.ip_address(spec.predecessor)
        self._failure: EngineError | None = None
        self._beating = threading.Event()

    @property
    def is_ready(self) -> bool:
        """Whether the head has come."""
        return self._beating.is_set()

    def start_llama(self) -> Sequence[str]:
        """Load llama.cpp, give up what it does not need, and have it listen inside.

        Returns what could not be given up, in words.
        """
        from agent.engine.rpc_library import Server

        server = Server()
        missing = confine.confine()
        for each in missing:
            log.warning("this RPC server could not give up %s", each)

        def serve() -> None:
            server.run(f"{_INSIDE[0]}:{_INSIDE[1]}", self._threads)
            self._fail("llama.cpp's RPC server ended.")

        _thread(serve)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (inside := self._inside()) is None:
            if self._failure is not None:
                raise self._failure
            if time.monotonic() > deadline:
                raise EngineError("llama.cpp's RPC server did not begin to listen.")
            time.sleep(_PAUSE_S)
        inside.close()
        return missing

    def run(self, channel: Channel) -> None:
        """Accept until told to stop; raises EngineError when llama.cpp ends, or the head does."""
        late = time.monotonic() + self._spec.join_timeout_s
        ready = False
        while not channel.poll():
            if self._failure is not None:
                raise self._failure
            if self.is_ready and not ready:
                ready = True
                channel.emit(Event("ready"))
            if not ready and time.monotonic() > late:
                raise EngineError(f"its head, at {self._head}, did not connect in time.")
            heard = self._listener.fileno()
            if heard in select.select([heard, STDIN], [], [], _STEP_S)[0]:
                self._accept()

    def _accept(self) -> None:
        connection, source = self._listener.accept_any()
        if source != self._head:
            log.warning("refused a connection from %s: only %s may connect", source, self._head)
            connection.close()
            return
        _thread(lambda: self._serve(connection))

    def _serve(self, connection: socket.socket) -> None:
        """Read the hello of a connection, and be what it asks for until it ends."""
        with connection:
            try:
                connection.settimeout(_HELLO_TIMEOUT_S)
                no_delay(connection)
                hello = connection.recv(HELLO_BYTES, socket.MSG_WAITALL)
            except OSError as error:
                log.warning("the head said no hello: %s", error)
                return
            spec = self._spec
            kind = kind_of(hello, bytes.fromhex(spec.ring), spec.epoch, spec.stage)
            if kind is None:
                log.warning("refused a connection of the head for another ring or epoch")
            elif kind == BEAT:
                self._beat(connection)
            else:
                self._pass_on(connection)

    def _beat(self, connection: socket.socket) -> None:
        """Send each byte back; the head that falls silent, or goes, ends this process."""
        connection.settimeout(self._spec.silence_s)
        self._beating.set()
        try:
            while data := connection.recv(64):
                connection.sendall(data)
            reason = CLOSED
        except TimeoutError:
            reason = f"it is silent for {self._spec.silence_s:.0f} s"
        except OSError as error:
            reason = why(error)
        self._fail(f"its head, at {self._head}, is gone: {reason}.")

    def _pass_on(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        inside = self._inside()
        if inside is None:
            self._fail("llama.cpp's RPC server does not listen any more.")
            return
        with inside:
            _thread(lambda: _one_way(connection, inside))
            _one_way(inside, connection)

    def _inside(self) -> socket.socket | None:
        """Return a connection to llama.cpp's server, None where nobody listens."""
        # Not `create_connection`: it looks names up, for which it would read files.
        inside = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            inside.connect(_INSIDE)
            no_delay(inside)
        except OSError:
            inside.close()
            return None
        return inside

    def _fail(self, message: str) -> None:
        self._failure = self._failure or EngineError(message)


def _thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _one_way(source: socket.socket, sink: socket.socket) -> None:
    """Pass bytes on until there are no more, then end both connections: neither is of use alone."""
    pump(source, sink, lambda: None)
    for connection in (source, sink):
        with contextlib.suppress(OSError):  # the other end was faster
            connection.shutdown(socket.SHUT_RDWR)
