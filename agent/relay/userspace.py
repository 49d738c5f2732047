"""Forwards pairs in this process: for nodes that may not use nftables, and whatever it cannot do.

A shell. One thread with its own epoll, so that neither the agent's loop nor a busy pair holds up
the others. Each side of a pair has a socket on its port, for `door.py`; once the side has a seat,
a second socket is connected to it, and the kernel gives that one what comes from there. So what
comes from elsewhere never mixes with the stream, and a batch goes from one connected socket to the
other by two system calls. Pairs that the kernel forwards stay here as well: then nothing comes but
what is for the agent itself.

The thread alone touches sockets and doors; the agent's loop gives it commands and gets calls back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.errors import EnvironmentFault
from agent.probing.port import MAGIC
from agent.relay import sockets
from agent.relay.batch import SLOT_BYTES, Batch
from agent.relay.door import Door
from agent.relay.pairs import Counts, Pair, Seat
from agent.relay.wire import NONCE_BYTES, PairSeal

_log = logging.getLogger(__name__)

_ANCILLARY_BYTES = 64
# Datagrams of strangers that are looked at before others get their turn.
_STRANGERS_AT_ONCE = 64
# Opens that are tried in a second, over all ports: 12 % of a core while somebody floods us.
_TRIES_PER_S = 20_000
# A burst may be as long as this at the full rate.
_BURST_S = 0.1
_BURST_MIN_BYTES = 64 * 1024
_COMMAND_TIMEOUT_S = 5.0
_IDLE_S = 60.0
# WireGuard's first message is kept for a peer that is not there yet: it repeats it after 5 s only.
_HOLD_S = 5.0
_MAGIC_WORD = struct.unpack("=I", MAGIC)[0]

_T = TypeVar("_T")
OnSeat = Callable[[bytes, int, Seat], None]


@dataclass(frozen=True)
class _Line:
    """A socket that is connected to a seat."""

    socket: socket.socket
    seat: Seat


@dataclass
class _Side:
    """One side of a pair: its port's socket, the line to its seat, and what it has sent."""

    number: int
    door: Door
    waiting: socket.socket
    line: _Line | None = None
    held: tuple[float, bytes] | None = None
    sent_bytes: int = 0
    allowance: float = 0.0
    filled_at: float = 0.0


@dataclass
class _Open:
    """A pair and its sides."""

    pair: Pair
    sides: tuple[_Side, _Side] = field(repr=False)


class UserspaceForwarder:
    """Carries pairs' datagrams between their seats, and finds the seats by the doors.

    `on_seat` is called on the loop that `start` runs on, for each new seat.
    """

    def __init__(self, on_seat: OnSeat, clock: Callable[[], float] = time.time) -> None:
        self._on_seat = on_seat
        self._clock = clock
        self._pairs: dict[bytes, _Open] = {}
        self._ears: dict[int, tuple[_Open, _Side, _Line | None]] = {}
        self._batch = Batch()
        self._tries = float(_TRIES_PER_S)
        self._tried_at = 0.0
        self._commands: deque[tuple[Callable[[], object], asyncio.Future[Any]]] = deque()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = False

    # ------------------------------------------------------- from the agent's loop

    def start(self) -> None:
        """Start the thread; call it on the agent's loop."""
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread and close all ports."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ending = True
        os.eventfd_write(self._wake, 1)
        await asyncio.to_thread(thread.join, _COMMAND_TIMEOUT_S)
        self._epoll.close()
        os.close(self._wake)

    async def add(self, pair: Pair, doors: tuple[Door, Door]) -> None:
        """Open a pair's ports. Raises PortTaken, or EnvironmentFault; then none is open."""
        await self._do(lambda: self._add(pair, doors))

    async def remove(self, identity: bytes) -> None:
        """Close a pair's ports; one that is not there is no fault."""
        await self._do(lambda: self._remove(identity))

    async def place(self, identity: bytes, side: int, seat: Seat) -> None:
        """Give a side a seat that was proved otherwise; `on_seat` is called for it."""
        await self._do(lambda: self._place(identity, side, seat))

    def set_seal(self, identity: bytes, side: int, seal: PairSeal) -> None:
        """Let a side's door use another seal from now on; one that is gone is no fault."""
        pair = self._pairs.get(identity)
        if pair is not None:
            pair.sides[side].door.seal = seal  # one reference, which the thread reads once a time

    async def counts(self) -> Counts:
        """Return what was sent on of each pair that is open, since it was opened."""
        return await self._do(
            lambda: {
                key: (each.sides[0].sent_bytes, each.sides[1].sent_bytes)
                for key, each in self._pairs.items()
            }
        )

    async def _do(self, command: Callable[[], _T]) -> _T:
        if self._thread is None or self._loop is None or not self._thread.is_alive():
            raise EnvironmentFault("the relay's forwarder is not running", hint="Read the log.")
        done: asyncio.Future[_T] = self._loop.create_future()
        self._commands.append((command, done))
        os.eventfd_write(self._wake, 1)
        async with asyncio.timeout(_COMMAND_TIMEOUT_S):
            return await done

    # ------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while not self._ending:
                for fd, _ in self._epoll.poll(_IDLE_S):
                    if fd == self._wake:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._wake)
                        self._obey()
                        break  # what is open may have changed; the others are told again
                    ear = self._ears.get(fd)
                    if ear is None:
                        continue
                    pair, side, line = ear
                    if line is None:
                        self._listen(pair, side)
                    else:
                        self._carry(pair, side, line)
        except Exception:
            _log.exception("the relay's forwarder ended by a fault")
        finally:
            for identity in list(self._pairs):
                self._remove(identity)

    def _obey(self) -> None:
        while self._commands:
            command, done = self._commands.popleft()
            try:
                result: object = command()
            except Exception as fault:
                self._tell(_settle, done, None, fault)
            else:
                self._tell(_settle, done, result, None)

    def _tell(self, call: Callable[..., object], *arguments: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
                self._loop.call_soon_threadsafe(call, *arguments)

    def _add(self, pair: Pair, doors: tuple[Door, Door]) -> None:
        made_here: list[socket.socket] = []
        try:
            for port in pair.ports:
                made_here.append(sockets.waiting(port))
        except BaseException:
            for each in made_here:
                each.close()
            raise
        first, second = (_Side(n, doors[n], made_here[n]) for n in (0, 1))
        made = _Open(pair, (first, second))
        self._pairs[pair.id] = made
        for side in made.sides:
            self._hear(side.waiting, made, side, None)

    def _remove(self, identity: bytes) -> None:
        pair = self._pairs.pop(identity, None)
        for side in pair.sides if pair else ():
            self._close(side.waiting)
            if side.line is not None:
                self._close(side.line.socket)

    def _hear(self, made: socket.socket, pair: _Open, side: _Side, line: _Line | None) -> None:
        self._ears[made.fileno()] = (pair, side, line)
        self._epoll.register(made.fileno(), select.EPOLLIN)

    def _close(self, made: socket.socket) -> None:
        self._ears.pop(made.fileno(), None)
        made.close()  # which takes it out of epoll

    def _place(self, identity: bytes, number: int, seat: Seat) -> None:
        pair = self._pairs.get(identity)
        if pair is not None:
            self._seat(pair, pair.sides[number], seat)

    def _seat(self, pair: _Open, side: _Side, seat: Seat) -> None:
        if side.line is not None:
            self._close(side.line.socket)
            side.line = None
        try:
            side.line = line = _Line(sockets.connected(pair.pair.ports[side.number], seat), seat)
        except OSError as error:
            _log.warning("relay seat not taken place=%s local=%s: %s", seat.place, seat.local,
                         error)  # fmt: skip
            return
        side.allowance, side.filled_at = 0.0, 0.0
        # Others' datagrams may lie in it from before it was connected.
        while self._batch.receive(line.socket.fileno()):
            pass
        self._hear(line.socket, pair, side, line)
        other = pair.sides[1 - side.number]
        if other.held is not None and time.monotonic() < other.held[0] + _HOLD_S:
            with contextlib.suppress(OSError):  # as lost on the way
                line.socket.send(other.held[1])
        other.held = None
        self._tell(self._on_seat, pair.pair.id, side.number, seat)

    def _carry(self, pair: _Open, side: _Side, line: _Line) -> None:
        """Send what came from a seat on to the other one."""
        batch, other = self._batch, pair.sides[1 - side.number].line
        got = batch.receive(line.socket.fileno())
        if not got:
            return
        if batch.has_word(_MAGIC_WORD, got):
            self._carry_mixed(pair, side, line, got)
        elif other is None:
            side.held = (time.monotonic(), batch.datagram(got - 1))
        else:
            lengths = batch.lengths(got)
            if SLOT_BYTES in lengths:
                self._carry_each(pair, side, range(got))
            elif self._allowed(pair.pair, side, size := sum(lengths)):
                side.sent_bytes += size
                batch.send(other.socket.fileno(), 0, got)

    def _carry_mixed(self, pair: _Open, side: _Side, line: _Line, got: int) -> None:
        """Sort our own datagrams out of a batch that has some."""
        onward = []
        for number in range(got):
            data = self._batch.datagram(number)
            if not data.startswith(MAGIC) or self._knock(pair, side, data, line.seat):
                onward.append(number)
        self._carry_each(pair, side, onward)

    def _carry_each(self, pair: _Open, side: _Side, numbers: list[int] | range) -> None:
        batch, other = self._batch, pair.sides[1 - side.number].line
        if other is None:
            return
        lengths = batch.lengths(max(numbers, default=-1) + 1)
        for number in numbers:
            size = lengths[number]
            if size < SLOT_BYTES and self._allowed(pair.pair, side, size):
                side.sent_bytes += size
                batch.send(other.socket.fileno(), number, number + 1)

    def _allowed(self, pair: Pair, side: _Side, size: int) -> bool:
        """Say whether the rate lets a batch through, and take it off the allowance."""
        now, rate = time.monotonic(), pair.rate_bytes_s
        most = max(_BURST_MIN_BYTES, rate * _BURST_S)
        side.allowance = min(most, side.allowance + (now - side.filled_at) * rate)
        side.filled_at = now
        if side.allowance <= 0:
            return False
        side.allowance -= size  # below zero: the next ones wait for it
        return True

    def _listen(self, pair: _Open, side: _Side) -> None:
        """Look at what comes to a port from anywhere but its seat."""
        for _ in range(_STRANGERS_AT_ONCE):
            try:
                data, ancillary, _, source = side.waiting.recvmsg(SLOT_BYTES, _ANCILLARY_BYTES)
            except OSError:
                return
            if not data.startswith(MAGIC):
                continue
            seat = sockets.seat_of(source, ancillary)
            if seat is not None and self._may_try():
                self._knock(pair, side, data, seat)

    def _may_try(self) -> bool:
        now = time.monotonic()
        filled = self._tries + (now - self._tried_at) * _TRIES_PER_S
        self._tries, self._tried_at = min(filled, float(_TRIES_PER_S)), now
        if self._tries < 1:
            return False
        self._tries -= 1
        return True

    def _knock(self, pair: _Open, side: _Side, data: bytes, seat: Seat) -> bool:
        """Let the door judge; say whether the datagram is to be sent on."""
        known = None if side.line is None else side.line.seat
        peer_open = pair.sides[1 - side.number].line is not None
        taken = side.door.take(
            data, seat.place, None if known is None else known.place, self._clock(),
            os.urandom(NONCE_BYTES), peer_open=peer_open,
        )  # fmt: skip
        if taken.opened and seat != known:
            self._seat(pair, side, seat)
        if taken.answer is not None:
            sockets.answer(side.waiting, taken.answer, seat)
        return taken.foreign


def _settle(done: asyncio.Future[Any], result: object, fault: BaseException | None) -> None:
    if done.done():
        return
    if fault is not None:
        done.set_exception(fault)
    else:
        done.set_result(result)
