"""The connections of a ring: TCP between neighbours, on overlay addresses only.

For the stage and the head, each of which has one inlet (from its predecessor) and one outlet (to
its successor); `join.py` makes them. Blocking calls with a bound on every wait; no asyncio. Frames
go to the successor alone, small messages both ways, so that each neighbour hears whether the other
lives. One thread works here; a second one (`watch.py`) pings, listens, and ends both when a
neighbour is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import select
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Sequence

from agent.engine.frames import (
    Decoder,
    Echo,
    Fault,
    Frame,
    Message,
    Operation,
    Pairs,
    Ping,
    Probe,
    Rows,
    encode_echo,
    encode_fault,
    encode_frame,
    encode_ping,
    encode_probe,
    stage_name,
)
from agent.engine.place import Lost, Membership
from agent.engine.row_types import LinkTypes
from agent.engine.rows import pack, unpack
from agent.engine.voice import Voice, rtt_s
from agent.errors import CoveyError, PeerError

__all__ = ["Inlet", "Lost", "Membership", "Outlet"]

log = logging.getLogger(__name__)

_COUNT = struct.Struct("=i")


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
        self.address = address
        self.name = stage_name(self.stage, address)
        self._decoder = Decoder(member.limits, self.name)
        self._waiting: deque[Message] = deque()
        self._voice = Voice(connection)
        self._lock = threading.Lock()
        self._received = 0
        self._ended: CoveyError | None = None
        self.patient_until = patient_until
        connection.setblocking(False)

    def fileno(self) -> int:
        """The socket, for select."""
        return self._socket.fileno()

    @property
    def has_waiting(self) -> bool:
        """Whether a message has already been received."""
        return bool(self._waiting)

    @property
    def rtt_s(self) -> float:
        """The connection's RTT in seconds, 0 where it is not known."""
        return rtt_s(self._socket)

    def pump(self) -> None:
        """Receive what is there, without waiting; raises Lost when the connection ended.

        Stops after a message, so that a frame is worked on before the next one is read, and whoever
        floods this end with small ones keeps it from nothing. Once it has raised it always does.
        """
        with self._lock:
            if self._ended is None:
                try:
                    self._receive()
                except CoveyError as error:
                    self._ended = error
            if self._ended is not None:
                raise self._ended

    def _receive(self) -> None:
        while True:
            try:
                count = self._socket.recv_into(self._decoder.space())
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise Lost(self.stage, f"{self.name} was lost ({error.strerror})") from None
            if count == 0:
                raise Lost(self.stage, f"{self.name} was lost (it closed the connection)")
            self._received += count
            message = self._decoder.advance(count)
            if message is not None:
                self._note(message)
                return

    def arrived(self) -> tuple[int, int]:
        """Return how many bytes have come since the beginning, and how many are not read yet."""
        with self._lock:
            unread = int(_COUNT.unpack(fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4)))[0])
            return self._received + unread, unread

    def ping(self) -> None:
        """Show the predecessor that this stage lives; without waiting."""
        with contextlib.suppress(OSError):  # if it ended, the next read will say so
            self._voice.say(encode_ping(Ping(self._member.epoch)))

    def fault(self, stage: int, reason: str) -> None:
        """Tell the predecessor that the ring is broken, if it still listens."""
        with contextlib.suppress(OSError):
            self._voice.say(encode_fault(Fault(self._member.epoch, stage, reason)))

    def end(self, error: CoveyError) -> None:
        """Have whoever waits for a frame wake up and raise `error`; from any thread."""
        with self._lock:
            self._ended = self._ended or error
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def _note(self, message: Message) -> None:
        match message:
            case Fault(_, stage, reason):
                raise Lost(stage, reason)
            case Ping():
                pass
            case Probe():
                with contextlib.suppress(OSError):  # if it ended, the next read will say so
                    self._voice.say(encode_echo(Echo(self._member.epoch)))
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

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Outlet:
    """Where frames go out: the connection to the successor."""

    def __init__(self, connection: socket.socket, member: Membership, address: str) -> None:
        self._socket = connection
        self._member = member
        self.stage = member.successor
        self.address = address
        self.name = stage_name(self.stage, address)
        self._sent = -math.inf
        self._voice = Voice(connection)
        self._lock = threading.Lock()
        self._ended: CoveyError | None = None
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

    @property
    def rtt_s(self) -> float:
        """The connection's RTT in seconds, 0 where it is not known."""
        return rtt_s(self._socket)

    def echoed(self) -> bool:
        """Receive what the successor has said, without waiting; return whether that is an echo."""
        return isinstance(self._hear()[1], Echo)

    def hear(self) -> bool:
        """Receive what the successor has said, without waiting; return whether it said anything.

        Raises Lost when the connection ended, or the successor says that the ring is broken.
        """
        return self._hear()[0]

    def _why(self, error: OSError) -> CoveyError:
        """Return why sending failed: what the successor said before it closed, if it did."""
        if self._ended is not None:
            return self._ended
        with contextlib.suppress(PeerError):
            try:
                while self._hear()[0]:
                    pass
            except Lost as lost:
                return lost
        return Lost(self.stage, f"{self.name} was lost ({error.strerror})")

    def _hear(self) -> tuple[bool, Message | None]:
        with self._lock:
            try:
                count = self._socket.recv_into(self._decoder.space())
            except (BlockingIOError, InterruptedError):
                return False, None
            except OSError as error:
                raise Lost(self.stage, f"{self.name} was lost ({error.strerror})") from None
            if count == 0:
                raise Lost(self.stage, f"{self.name} was lost (it closed the connection)")
            message = self._decoder.advance(count)
        match message:
            case Fault(_, stage, reason):
                raise Lost(stage, reason)
            case None | Ping() | Echo():
                return True, message
        raise PeerError(f"{self.name} sent what a predecessor sends.")

    def ping(self) -> None:
        """Send a ping if nothing has been sent for a while, nor is just now; without waiting."""
        now = time.monotonic()
        # Who asks does so three times in `ping_s`; it is not to pass.
        if now - self._sent < self.ping_s * 2 / 3:
            return
        try:
            if self._voice.say(encode_ping(Ping(self._member.epoch))):
                self._sent = now
        except OSError as error:
            raise self._why(error) from None

    def fault(self, stage: int, reason: str) -> None:
        """Tell the successor that the ring is broken, if it still listens."""
        with contextlib.suppress(OSError):
            self._voice.say(encode_fault(Fault(self._member.epoch, stage, reason)))

    def end(self, error: CoveyError, *, at_once: bool) -> None:
        """Have whoever sends raise `error`, from any thread; a frame that has begun is finished.

        `at_once`: it is not.
        """
        self._ended = self._ended or error
        if at_once:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, pieces: Sequence[bytes | memoryview], drain: Inlet | None) -> None:
        if self._ended is not None:
            raise self._ended
        with self._voice.alone() as owed:
            rest = [memoryview(piece) for piece in (owed, *pieces) if len(piece)]
            began = time.monotonic()
            deadline = began + self._member.silence_s
            while rest:
                try:
                    count = self._socket.sendmsg(rest)
                except (BlockingIOError, InterruptedError):
                    self._wait(drain, deadline)
                    continue
                except OSError as error:
                    raise self._why(error) from None
                deadline = min(
                    time.monotonic() + self._member.silence_s, began + self._member.turn_s
                )
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
