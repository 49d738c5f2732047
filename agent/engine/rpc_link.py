"""The head's way to llama.cpp's RPC servers, and the watch over them.

For `process.py`. llama.cpp's client knows only IPv4, waits for an answer without an end, and ends
the process when a connection does. So it is given a door on the loopback for each server, which
lets in nobody but this process, and passes bytes on over the overlay. A server that is lost is told
at once by `lost`, while llama.cpp is left waiting at its door; the process then ends without it.

| what happens | is noticed by |
|---|---|
| the server's process dies | its connections close |
| it is frozen, or its link is cut | its heartbeat is silent for longer than its link explains |
| it lives, but llama.cpp does not answer | no byte comes or goes for ten times `silence_s` |
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.engine.rpc_wire import (
    BEAT,
    CLOSED,
    DATA,
    check_addresses,
    encode_hello,
    no_delay,
    pump,
    why,
)
from agent.engine.silence import Silence
from agent.engine.spec import EngineSpec, RpcServer
from agent.engine.voice import rtt_s
from agent.errors import EngineError

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_CONNECT_TIMEOUT_S = 5.0
# A batch of a large model takes one node minutes; nothing comes or goes meanwhile.
_QUIET_SILENCES = 10
_BEATS_A_SILENCE = 8
# A false alarm costs more than a ring's: all weights are sent again.
_LEASTS = 3.0
_OWN_FILES = Path("/proc/self/fd")


class RpcLinks:
    """All servers of a model. `lost` is called once, from any thread, with the reason.

    Raises UsageError for what is no overlay address, EngineError for a server that is not there.
    """

    def __init__(self, spec: EngineSpec, lost: Callable[[EngineError], None]) -> None:
        self._lost = lost
        self._told = threading.Lock()
        self._silence_s = spec.silence_s
        self._least_s = min(_LEASTS * spec.least_silence_s, spec.silence_s)
        self._beat_s = self._least_s / _BEATS_A_SILENCE
        self._since: float | None = None
        self._doors: list[_Door] = []
        beats: list[_Beat] = []
        for stage, server in enumerate(spec.servers, 1):
            check_addresses(server.address, spec.listen)
            way = _Way(spec, stage, server)
            beats.append(_Beat(way, self._least_s, spec.silence_s, self._beat_s))
            self._doors.append(_Door(way, self._tell))
        _start(lambda: self._watch(beats))

    @property
    def places(self) -> Sequence[str]:
        """Where llama.cpp finds the servers: `ADDRESS:PORT`, in order."""
        return [door.place for door in self._doors]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Say that llama.cpp works meanwhile, so that bytes must come and go now and then."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _tell(self, error: EngineError) -> None:
        if self._told.acquire(blocking=False):
            log.error("%s", error.line())
            self._lost(error)

    def _watch(self, beats: Sequence[_Beat]) -> None:
        last = time.monotonic()
        while True:
            now = time.monotonic()
            late_s, last = now - last - self._beat_s, now
            for beat in beats:
                if (reason := beat.check(late_s)) is not None:
                    self._tell(beat.way.error(reason))
                    return
            if (since := self._since) is not None:
                latest = max(self._doors, key=lambda door: door.moved_at)
                quiet_s = time.monotonic() - max(since, latest.moved_at)
                if quiet_s > _QUIET_SILENCES * self._silence_s:
                    reason = f"its llama.cpp has not answered for {quiet_s:.0f} s"
                    self._tell(latest.way.error(reason))
                    return
            time.sleep(self._beat_s)


class _Way:
    """How to reach one server, and what messages call it."""

    def __init__(self, spec: EngineSpec, stage: int, server: RpcServer) -> None:
        self._spec = spec
        self._stage = stage
        self._server = server

    def connect(self, kind: int) -> socket.socket:
        """Return a connection that has said hello; raises OSError."""
        spec, server = self._spec, self._server
        connection = socket.create_connection(
            (server.address, server.port), _CONNECT_TIMEOUT_S, source_address=(spec.listen, 0)
        )
        no_delay(connection)
        hello = encode_hello(bytes.fromhex(spec.ring), spec.epoch, self._stage, kind)
        connection.sendall(hello)
        return connection

    def error(self, reason: str) -> EngineError:
        """Return the error that tells how the server was lost."""
        server = self._server
        return EngineError(
            f"the RPC server on {server.name} ({server.address}) is gone: {reason}.",
            hint="`agent status` on that node shows what it runs.",
        )


class _Beat:
    """A heartbeat: the server sends back what it is sent, whatever llama.cpp does."""

    def __init__(self, way: _Way, least_s: float, most_s: float, beat_s: float) -> None:
        self.way = way
        try:
            self._connection = way.connect(BEAT)
        except OSError as error:
            raise way.error(why(error)) from None
        self._connection.setblocking(False)
        self._silence = Silence(least_s, most_s, beat_s, time.monotonic())

    def check(self, late_s: float) -> str | None:
        """Ask whether it lives; returns why it does not.

        By `late_s` this process came too late to ask, which is not held against it.
        """
        now = time.monotonic()
        self._silence.excuse(max(0.0, late_s), now)
        try:
            with contextlib.suppress(BlockingIOError):
                if not self._connection.recv(256):
                    return CLOSED
                self._silence.heard(now)
            with contextlib.suppress(BlockingIOError):
                self._connection.send(b"\x01")
        except OSError as error:
            return why(error)
        if self._silence.too_long(now, rtt_s(self._connection)):
            return f"it is silent for {self._silence.silent_s(now):.0f} s"
        return None


class _Door:
    """Where llama.cpp in this process connects to instead of the server."""

    def __init__(self, way: _Way, lost: Callable[[EngineError], None]) -> None:
        self.way = way
        self.moved_at = 0.0
        self._lost = lost
        self._socket = socket.create_server((_LOOPBACK, 0))
        self.place = f"{_LOOPBACK}:{self._socket.getsockname()[1]}"
        # llama.cpp is never told that a connection has ended: it would end this process.
        self._kept: list[socket.socket] = []
        _start(self._serve)

    def _serve(self) -> None:
        while True:
            inside, client = self._socket.accept()
            if not _is_own(client, self._socket.getsockname()):
                log.warning("refused %s: this door is for llama.cpp in this process", client)
                inside.close()
                continue
            self._kept.append(inside)
            _start(lambda inside=inside: self._pass_on(inside))  # type: ignore[misc] # its default

    def _pass_on(self, inside: socket.socket) -> None:
        no_delay(inside)
        try:
            outside = self.way.connect(DATA)
        except OSError as error:
            self._lost(self.way.error(why(error)))
            return
        outside.settimeout(None)
        left = threading.Event()
        _start(lambda: self._send(inside, outside, left))
        reason = pump(outside, inside, self._moved)
        if not left.is_set() and not _has_ended(inside):
            self._lost(self.way.error(reason))
            return
        outside.close()
        inside.close()
        self._kept.remove(inside)

    def _send(self, inside: socket.socket, outside: socket.socket, left: threading.Event) -> None:
        reason = pump(inside, outside, self._moved)
        if inside.fileno() >= 0 and _has_ended(inside):
            left.set()  # llama.cpp closed it, and will come again when it needs one
            with contextlib.suppress(OSError):
                outside.shutdown(socket.SHUT_RDWR)
        else:
            self._lost(self.way.error(reason))

    def _moved(self) -> None:
        self.moved_at = time.monotonic()


def _has_ended(connection: socket.socket) -> bool:
    """Say whether the other end of a connection has closed it."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_own(client: tuple[str, int], door: tuple[str, int]) -> bool:
    """Say whether a connection from `client` to `door` was made by this process."""
    for file in _OWN_FILES.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if not file.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as copy:
                if copy.getsockname() == client and copy.getpeername() == door:
                    return True
    return False


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()
