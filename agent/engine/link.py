"""The connections of a ring: TCP between neighbours, on overlay addresses only.

For the stage and the head, each of which has one inlet (from its predecessor) and one outlet (to
its successor); `join.py` makes them. Blocking calls with a bound on every wait; no threads, no
asyncio. A stage that has nothing to send pings its successor, so silence beyond a bound always
means a fault.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from agent.engine.frames import (
    Decoder,
    Echo,
    Fault,
    Frame,
    Hello,
    Limits,
    Message,
    Operation,
    Pairs,
    Ping,
    Probe,
    Rows,
    RowType,
    encode_echo,
    encode_fault,
    encode_frame,
    encode_ping,
    encode_probe,
    stage_name,
)
from agent.engine.row_types import LinkTypes
from agent.engine.rows import pack, unpack
from agent.errors import EngineError, PeerError

log = logging.getLogger(__name__)

# Pings come this many times within the time after which silence is a fault.
_PINGS_PER_SILENCE = 6
_HINT = "Look at that node's agent log."


class Lost(EngineError):
    """A neighbour's connection ended, fell silent or carried a fault; `stage` is who is broken."""

    def __init__(self, stage: int, reason: str) -> None:
        super().__init__(f"the ring is broken: {reason}.", hint=_HINT)
        self.stage = stage
        self.reason = reason


def blamed(error: Exception) -> int:
    """Return the stage that is to blame for a broken ring, -1 where it is not known."""
    return error.stage if isinstance(error, Lost) else -1


@dataclass(frozen=True)
class Membership:
    """What both ends of a connection must agree on, and this end's place in the ring.

    `stages` counts all processes of the ring with the head, `stage` is this one (the head is 0).
    `row_type` is how rows leave this stage; None: as the link's bandwidth has it.
    """

    ring: bytes
    epoch: int
    stage: int
    stages: int
    limits: Limits
    row_type: RowType | None
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

    @property
    def turn_s(self) -> float:
        """How long a frame may take to a neighbour, or round the ring, although everybody lives."""
        return self.silence_s * self.stages

    def hello(self, layer: int) -> Hello:
        """Return this end's hello, for the boundary before `layer`."""
        return Hello(self.ring, self.epoch, self.stage, layer, self.limits.n_embd, self.model)


class Inlet:
    """Where frames come in: the accepted connection from the predecessor."""

    def __init__(
        self,
        connection: socket.socket,
        member: Membership,
        address: str,
        patient_until: float = 0.0,
    ) -> None:
        """Take over a connection; silence counts from `patient_until` or the first word.

        The predecessor speaks once its own neighbours have come too, which may take it longer.
        """
        self._socket = connection
        self._member = member
        self.stage = member.predecessor
        self.name = stage_name(self.stage, address)
        self._decoder = Decoder(member.limits, self.name)
        self._waiting: deque[Message] = deque()
        self._heard = max(time.monotonic(), patient_until)
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

        Stops after a message, so that a frame is worked on before the next one is read, and whoever
        floods this end with small ones keeps it from nothing.
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
            if message is not None:
                self._note(message)
                return

    def _note(self, message: Message) -> None:
        match message:
            case Fault(_, stage, reason):
                raise Lost(stage, reason)
            case Ping():
                pass
            case Probe():
                with contextlib.suppress(OSError):  # if it ended, the next read will say so
                    self._socket.send(encode_echo(Echo(self._member.epoch)))
            case Frame(epoch) if epoch < self._member.epoch:
                log.info("dropped a frame of epoch %d, this is %d", epoch, self._member.epoch)
            case Frame(epoch) if epoch > self._member.epoch:
                raise PeerError(
                    f"{self.name} sent a frame of epoch {epoch}, this is {self._member.epoch}."
                )
            case _:
                self._waiting.append(message)

    def frame(self) -> Frame | None:
        """Return a received frame, its rows in f32 and finite; None when there is none yet."""
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        if not isinstance(message, Frame):
            raise PeerError(f"{self.name} sent a second {type(message).__name__.lower()}.")
        try:
            return unpack(message, self._member.limits.n_embd)
        except ValueError as error:
            raise PeerError(f"{self.name} sent {error}.") from None

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
        self._sent = -math.inf
        self._decoder = Decoder(member.limits, self.name)
        self.types = LinkTypes(member.limits.n_embd, member.row_type)
        self.ping_s = member.ping_s
        connection.setblocking(False)

    def fileno(self) -> int:
        """The socket, for select."""
        return self._socket.fileno()

    def send(
        self, operations: tuple[Operation, ...], pairs: Pairs, rows: Rows,
        drain: Inlet | None = None,
    ) -> None:  # fmt: skip
        """Send a frame of f32 rows in the link's type for so many; they are not changed.

        While the successor is slow, receive into `drain`, so that no ring can lock.
        """
        frame = Frame(self._member.epoch, operations, pairs, rows)
        self._send(encode_frame(pack(frame, self.types.of(len(pairs)))), drain)

    def probe(self, size: int, drain: Inlet) -> None:
        """Send a probe of `size` bytes; `echoed` says when it has arrived."""
        self._send(encode_probe(Probe(self._member.epoch), size), drain)

    def echoed(self) -> bool:
        """Receive what the successor has said, without waiting; return whether that is an echo."""
        try:
            count = self._socket.recv_into(self._decoder.space())
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise Lost(self.stage, f"{self.name} was lost ({error.strerror})") from None
        if count == 0:
            raise Lost(self.stage, f"{self.name} was lost (it closed the connection)")
        message = self._decoder.advance(count)
        if message is not None and not isinstance(message, Echo):
            raise PeerError(f"{self.name} sent what is no echo.")
        return message is not None

    def ping(self) -> None:
        """Send a ping if nothing has been sent for a while."""
        if time.monotonic() - self._sent >= self.ping_s:
            self._send([encode_ping(Ping(self._member.epoch))], None)

    def fault(self, stage: int, reason: str) -> None:
        """Tell the successor that the ring is broken, if it still listens."""
        with contextlib.suppress(OSError, Lost):
            self._socket.send(encode_fault(Fault(self._member.epoch, stage, reason)))

    def _send(self, pieces: Sequence[bytes | memoryview], drain: Inlet | None) -> None:
        rest = [memoryview(piece) for piece in pieces if len(piece)]
        began = time.monotonic()
        deadline = began + self._member.silence_s
        while rest:
            try:
                count = self._socket.sendmsg(rest)
            except (BlockingIOError, InterruptedError):
                self._wait(drain, deadline)
                continue
            except OSError as error:
                raise Lost(self.stage, f"{self.name} was lost ({error.strerror})") from None
            deadline = min(time.monotonic() + self._member.silence_s, began + self._member.turn_s)
            while rest and count >= len(rest[0]):
                count -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][count:]
        self._sent = time.monotonic()

    def _wait(self, drain: Inlet | None, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Lost(self.stage, f"{self.name} took too long to take a frame")
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
