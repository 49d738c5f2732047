"""What a worker has to do with the others: the supervisor's orders, and the board they share.

A shell, made by `workers.py` in each worker's process, used by `serve.py`, `app.py`, `observe.py`
and `standing.py`. Where the gateway is one process there is none.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from gateway.board import Board
from gateway.config import Config
from gateway.together import Sheet

_log = logging.getLogger(__name__)

# What the others and /metrics know of a worker is as old as this at most; what it counted since is
# lost if it is killed.
TELL_S = 0.5
# An order is a configuration at most, and the kernel takes some 200 KiB at a time.
MOST_ORDER_BYTES = 2**20


class Reload(msgspec.Struct, frozen=True, tag=True):
    """Take this configuration, as far as a running gateway can."""

    config: Config


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End when running requests have, or at once."""

    at_once: bool


Order = Reload | Stop

_order = msgspec.msgpack.Decoder(Order)
_sheet = msgspec.msgpack.Decoder(Sheet)


class Worker:
    """Worker `number` (from 1) of a gateway.

    Orders come on `channel`, each as one message; `lock` is a file that all workers have open.
    """

    def __init__(self, number: int, channel: socket.socket, board: Board, lock: int) -> None:
        self.number = number
        self.workers = board.workers
        self.channel = channel
        self._board = board
        self._lock = lock
        self._too_long = False

    def orders(self) -> Iterator[Order]:
        """Return the orders that have come; without a supervisor, the order to stop."""
        while True:
            try:
                message = self.channel.recv(MOST_ORDER_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                _log.warning("stopping: the process that supervises the workers is gone")
                asyncio.get_running_loop().remove_reader(self.channel)
                yield Stop(at_once=False)
                return
            yield _order.decode(message)

    def ready(self) -> None:
        """Tell the supervisor that this worker serves."""
        try:
            self.channel.send(b"ready")
        except OSError:
            return  # it is gone, which `orders` finds as well

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold what one worker holds at a time; one that is killed gives it back."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def before(self) -> Sheet | None:
        """Return what the process told that was this worker before, if there was one."""
        return self._read(self.number)

    def tell(self, own: Sheet) -> None:
        """Let the others know how this worker stands."""
        fits = self._board.write(self.number, msgspec.msgpack.encode(own))
        if not fits and not self._too_long:
            _log.error("metrics are too many to be told to the other workers")
        self._too_long = not fits

    def told(self, own: Sheet) -> list[Sheet]:
        """Tell, and return how all stand, itself first; what the dead had counted is there, too."""
        # Told first: whoever is asked next must not know less than this answer says.
        self.tell(own)
        others = [n for n in range(1, self.workers + 1) if n != self.number]
        return [own, *(sheet for n in others if (sheet := self._read(n)) is not None)]

    async def tell_on(
        self, sheet: Callable[[], Sheet], hear: Callable[[Sequence[Sheet]], None]
    ) -> None:
        """Tell, and `hear` the others, again and again until cancelled: it lives."""
        while True:
            self._board.beat(self.number)
            try:
                hear(self.told(sheet())[1:])
            except Exception:  # a fault of ours; /metrics would stand still without a word
                _log.exception("the other workers could not be told")
            await asyncio.sleep(TELL_S)

    def _read(self, number: int) -> Sheet | None:
        data, there = self._board.read(number)
        if not data:
            return None
        sheet = _sheet.decode(data)
        return sheet if there else sheet.ended()
