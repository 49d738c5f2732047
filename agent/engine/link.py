"""The connections of a ring: TCP between neighbours, on overlay addresses only.

For the stage and the head, each of which has one inlet (from its predecessor) and one outlet (to
its successor). Blocking calls with a bound on every wait; no threads, no asyncio. A stage that has
nothing to send pings its successor, so silence beyond a bound always means a fault.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent.engine.frames import (
    Decoder,
    Fault,
    Frame,
    Hello,
    Limits,
    Message,
    Ping,
    RowType,
    encode_fault,
    encode_frame,
    encode_hello,
    encode_ping,
    stage_name,
)
from agent.errors import EngineError, EnvironmentFault, PeerError, UsageError

log = logging.getLogger(__name__)

# One predecessor connects; the rest of the queue is for those that are refused.
_BACKLOG = 4
# A neighbour says hello as soon as it has connected; one that does not is not a neighbour.
HELLO_TIMEOUT_S = 10.0
_CONNECT_ATTEMPT_S = 5.0
_CONNECT_PAUSE_S = 0.1
# Pings come this many times within the time after which silence is a fault.
_PINGS_PER_SILENCE = 6
_OPEN_FILES_HINT = "Look at that node's agent log."


class Lost(EngineError):
    """A neighbour's connection ended, fell silent or carried a fault; `stage` is who is broken."""

    def __init__(self, stage: int, reason: str) -> None:
        super().__init__(f"the ring is broken: {reason}.", hint=_OPEN_FILES_HINT)
        self.stage = stage
        self.reason = reason


@dataclass(frozen=True)
class Membership:
    """What both ends of a connection must agree on, and this end's place in the ring.

    `stages` counts all processes of the ring with the head, `stage` is this one (the head is 0).
    """

    ring: bytes
    epoch: int
    stage: int
    stages: int
    limits: Limits
    row_type: RowType
    model: bytes
    silence_s: float

    @property
    def predecessor(self) -> int:
        """The stage whose frames come here."""
        return (self.stage - 1) % self.stages

    @property
    def successor(self) -> int:
        """The stage to which frames go."""
        return (self.stage + 1) % self.stages

    @property
    def ping_s(self) -> float:
        """How long to be quiet before a ping."""
        return self.silence_s / _PINGS_PER_SILENCE

    def hello(self, layer: int) -> Hello:
        """Return this end's hello, for the boundary before `layer`."""
        return Hello(
            self.ring, self.epoch, self.stage, layer, self.limits.n_embd, self.row_type, self.model
        )


class Inlet:
    """Where frames come in: the accepted connection from the predecessor."""

    def __init__(self, connection: socket.socket, member: Membership, address: str) -> None:
        self._socket = connection
        self._member = member
        self.stage = member.predecessor
        self.name = stage_name(self.stage, address)
        self._decoder = Decoder(member.limits, self.name)
        self._waiting: deque[Message] = deque()
        self._heard = time.monotonic()
        connection.setblocking(False)

    def fileno(self) -> int:
        """The socket, for select."""
        return self._socket.fileno()

    @property
    def has_waiting(self) -> bool:
        """Whether a message has already been received."""
        return bool(self._waiting)

    def pump(self) -> None:
        """Receive what is there, without waiting; raises Lost when the connection ended.

        Stops after a frame, so that it is worked on before the next one is read.
        """
        while True:
            try:
                count = self._socket.recv_into(self._decoder.space())
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise Lost(self.stage, f"{self.name} was lost ({error.strerror})") from None
            if count == 0:
                raise Lost(self.stage, f"{self.name} was lost (it closed the connection)")
            self._heard = time.monotonic()
            message = self._decoder.advance(count)
            if message is not None and self._note(message):
                return

    def _note(self, message: Message) -> bool:
        match message:
            case Fault(_, stage, reason):
                raise Lost(stage, reason)
            case Ping():
                return False
            case Frame(epoch) if epoch < self._member.epoch:
                log.info("dropped a frame of epoch %d, this is %d", epoch, self._member.epoch)
                return False
            case Frame(epoch) if epoch > self._member.epoch:
                raise PeerError(
                    f"{self.name} sent a frame of epoch {epoch}, this is {self._member.epoch}."
                )
            case _:
                self._waiting.append(message)
                return True

    def frame(self) -> Frame | None:
        """Return a received frame, None when there is none yet."""
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        if not isinstance(message, Frame):
            raise PeerError(f"{self.name} sent a second hello.")
        return message

    def check_alive(self) -> None:
        """Raise Lost when the predecessor has been silent for too long."""
        silent = time.monotonic() - self._heard
        if silent > self._member.silence_s:
            raise Lost(self.stage, f"{self.name} has been silent for {silent:.0f} s")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Outlet:
    """Where frames go out: the connection to the successor."""

    def __init__(self, connection: socket.socket, member: Membership, address: str) -> None:
        self._socket = connection
        self._member = member
        self.stage = member.successor
        self.name = stage_name(self.stage, address)
        self._sent = time.monotonic()
        connection.setblocking(False)

    def send(self, frame: Frame, drain: Inlet | None = None) -> None:
        """Send a frame; while the successor is slow, receive into `drain` (so no ring can lock)."""
        self._send(encode_frame(frame, self._member.row_type), drain)

    def ping(self) -> None:
        """Send a ping if nothing has been sent for a while."""
        if time.monotonic() - self._sent >= self._member.ping_s:
            self._send([encode_ping(Ping(self._member.epoch))], None)

    def fault(self, stage: int, reason: str) -> None:
        """Tell the successor that the ring is broken, if it still listens."""
        with contextlib.suppress(OSError, Lost):
            self._socket.send(encode_fault(Fault(self._member.epoch, stage, reason)))

    def _send(self, pieces: Sequence[bytes | memoryview], drain: Inlet | None) -> None:
        rest = [memoryview(piece) for piece in pieces if len(piece)]
        deadline = time.monotonic() + self._member.silence_s
        while rest:
            try:
                count = self._socket.sendmsg(rest)
            except (BlockingIOError, InterruptedError):
                self._wait(drain, deadline)
                continue
            except OSError as error:
                raise Lost(self.stage, f"{self.name} was lost ({error.strerror})") from None
            deadline = time.monotonic() + self._member.silence_s
            while rest and count >= len(rest[0]):
                count -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][count:]
        self._sent = time.monotonic()

    def _wait(self, drain: Inlet | None, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Lost(
                self.stage, f"{self.name} has taken nothing for {self._member.silence_s:.0f} s"
            )
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if drain is not None:
            poll.register(drain, select.POLLIN)
        for file, _ in poll.poll(left * 1000):
            if drain is not None and file == drain.fileno():
                drain.pump()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Listener:
    """A listening socket on one overlay address; `port` is the one that it got.

    Raises UsageError for a wildcard address, EnvironmentFault where it cannot listen.
    """

    def __init__(self, address: str, port: int) -> None:
        parsed = ipaddress.ip_address(address)
        if parsed.is_unspecified or parsed.is_multicast:
            raise UsageError(
                f"a stage must not listen on {address}.",
                hint="Give the node's own overlay address.",
            )
        family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
        self.address = address
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.bind((address, port))
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise EnvironmentFault(
                f"cannot listen on {address} port {port}: {error.strerror}.",
                hint="Is the overlay up, and is the port free?",
            ) from None
        self.port: int = self._socket.getsockname()[1]

    def accept(
        self,
        member: Membership,
        layer: int,
        expected: str,
        deadline: float,
        interrupted: Callable[[float], bool],
    ) -> Inlet:
        """Wait for the predecessor and answer its hello; everybody else is closed and logged.

        `layer` is the first one of this part, `expected` the only source address that may connect.
        `interrupted(seconds)` is called between waits and says whether to give up.
        """
        source = ipaddress.ip_address(expected)
        while time.monotonic() < deadline and not interrupted(0.0):
            if not select.select([self._socket], [], [], 0.2)[0]:
                continue
            connection, peer = self._socket.accept()
            found = ipaddress.ip_address(peer[0].partition("%")[0])
            if found != source:
                log.warning("refused a connection from %s: only %s may connect", found, source)
                connection.close()
                continue
            _no_delay(connection)
            try:
                hello = _read_hello(connection, member.limits, str(found), HELLO_TIMEOUT_S)
                _check_hello(hello, member, member.predecessor, layer)
                connection.sendall(encode_hello(member.hello(layer)))
            except (PeerError, OSError) as error:
                log.warning("refused the predecessor at %s: %s", found, error)
                connection.close()
                continue
            return Inlet(connection, member, expected)
        raise EngineError(
            f"{stage_name(member.predecessor, expected)} did not connect in time.",
            hint="Is its engine running, and is the overlay path up?",
        )

    def close(self) -> None:
        """Stop listening; accepted connections live on."""
        self._socket.close()


class Dialled:
    """A connection to the successor that has said hello and has no answer yet."""

    def __init__(
        self, member: Membership, layer: int, local: str, remote: tuple[str, int], deadline: float
    ) -> None:
        self._member = member
        self._layer = layer
        self._address = remote[0]
        self._socket = _connect(local, remote, stage_name(member.successor, remote[0]), deadline)
        _no_delay(self._socket)
        self._socket.sendall(encode_hello(member.hello(layer)))

    def finish(self, deadline: float) -> Outlet:
        """Wait for the successor's hello and return the outlet; PeerError when it refuses."""
        member = self._member
        left = max(0.1, deadline - time.monotonic())
        name = stage_name(member.successor, self._address)
        hello = _read_hello(self._socket, member.limits, name, left)
        _check_hello(hello, member, member.successor, self._layer)
        return Outlet(self._socket, member, self._address)

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()


def _connect(local: str, remote: tuple[str, int], name: str, deadline: float) -> socket.socket:
    last = "no time was left"
    while time.monotonic() < deadline:
        wait = min(_CONNECT_ATTEMPT_S, max(0.1, deadline - time.monotonic()))
        try:
            return socket.create_connection(remote, wait, source_address=(local, 0))
        except OSError as error:
            last = error.strerror or "no answer"
        time.sleep(_CONNECT_PAUSE_S)
    raise EngineError(
        f"cannot reach {name} on port {remote[1]}: {last}.",
        hint="Is its engine running, and is the overlay path up?",
    )


def _no_delay(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _read_hello(connection: socket.socket, limits: Limits, name: str, timeout_s: float) -> Hello:
    # No rows may come before the hello.
    decoder = Decoder(replace(limits, max_rows=0), name)
    deadline = time.monotonic() + timeout_s
    while True:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            count = connection.recv_into(decoder.space())
        except TimeoutError:
            raise PeerError(f"{name} did not say hello within {timeout_s:.0f} s.") from None
        except OSError as error:
            raise PeerError(f"{name} was lost ({error.strerror}).") from None
        if count == 0:
            raise PeerError(
                f"{name} refused this stage: it closed the connection.",
                hint="Its log says why: another ring, epoch or model.",
            )
        message = decoder.advance(count)
        if isinstance(message, Hello):
            return message
        if message is not None or time.monotonic() > deadline:
            raise PeerError(f"{name} did not say hello.")


def _check_hello(hello: Hello, member: Membership, stage: int, layer: int) -> None:
    wanted = replace(member.hello(layer), stage=stage)
    for what in ("ring", "epoch", "stage", "layer", "n_embd", "row_type", "model"):
        found, own = getattr(hello, what), getattr(wanted, what)
        if found != own:
            shown = [
                value.hex()[:16] if isinstance(value, bytes) else value for value in (found, own)
            ]
            raise PeerError(
                f"{stage_name(hello.stage)} is of another {what.replace('_', ' ')}: "
                f"{shown[0]} instead of {shown[1]}."
            )
