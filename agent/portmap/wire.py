"""The UDP sockets of NAT-PMP and PCP: questions to one gateway, and announcements to all. A shell.

Used by `service.py`. A socket for questions is open only while one waits for its answer, and reads
a bounded number of datagrams for each that it sent, so a flood ends at a closed port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from agent.portmap.natpmp import ANNOUNCE_GROUP, ANNOUNCE_PORT, PORT
from agent.portmap.words import Answer, Dialect, Request

_log = logging.getLogger(__name__)

_READ_BYTES = 2048  # more than the longest message, so a longer one is seen to be longer
# A gateway answers each request once; some answer twice.
_READS_PER_SEND = 16
# Announcements come in a handful when a gateway starts.
_ANNOUNCEMENTS = 32
_ANNOUNCEMENTS_WINDOW_S = 10.0


class Wire:
    """What one way sends and hears."""

    def __init__(
        self,
        local: str,
        gateway: str,
        dialect: Dialect,
        answered: Callable[[Answer], None],
        unreachable: Callable[[], None],
    ) -> None:
        self.dialect = dialect
        self._local, self._gateway = local, gateway
        self._answered, self._unreachable = answered, unreachable
        self._socket: socket.socket | None = None
        self._reads_left = 0
        self._flooded = False

    def send(self, request: Request) -> None:
        """Send; what cannot be sent counts as lost."""
        if self._flooded:
            self.close()  # what waits in it is not worth reading: begin with an empty one
        try:
            if self._socket is None:
                self._socket = self._open()
            self._reads_left = _READS_PER_SEND
            asyncio.get_running_loop().add_reader(self._socket, self._readable, self._socket)
            self._socket.send(self.dialect.encode(request))
        except ConnectionRefusedError:
            self._unreachable()
        except OSError as error:
            _log.debug("port mapping: cannot send gateway=%s error=%s", self._gateway, error)

    def close(self) -> None:
        """Hear nothing more; may be called at any time."""
        self._flooded = False
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            # The gateway maps to the address that asks; connected, we hear only this gateway.
            opened.bind((self._local, 0))
            opened.connect((self._gateway, PORT))
        except BaseException:
            opened.close()
            raise
        return opened

    def _readable(self, reading: socket.socket) -> None:
        if self._reads_left == 0:
            self._flooded = True
            asyncio.get_running_loop().remove_reader(reading)
            return
        self._reads_left -= 1
        try:
            data = reading.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            self._unreachable()
            return
        except OSError as error:
            _log.debug("port mapping: cannot read gateway=%s error=%s", self._gateway, error)
            return
        answer = self.dialect.read(data)
        if answer is not None:
            self._answered(answer)


class Announcements:
    """Hears what gateways tell all hosts when they start or get another address."""

    def __init__(self, heard: Callable[[str, bytes], None]) -> None:
        self._heard = heard
        self._socket: socket.socket | None = None
        self._left = _ANNOUNCEMENTS
        self._resume: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; where the port is taken, restarts are noticed at the next check only."""
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((ANNOUNCE_GROUP, ANNOUNCE_PORT))  # the group's datagrams and no others
        except OSError as error:
            opened.close()
            _log.info("port mapping: announcements are not heard error=%s", error)
            return
        self._socket = opened
        self._listen()

    def join(self, local: str) -> None:
        """Hear the interface that has this address as well."""
        if self._socket is None:
            return
        member = socket.inet_aton(ANNOUNCE_GROUP) + socket.inet_aton(local)
        with contextlib.suppress(OSError):  # it is joined already, or the address is gone
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)

    def stop(self) -> None:
        """End; may be called twice."""
        if self._resume is not None:
            self._resume.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _listen(self) -> None:
        if self._socket is not None:
            self._left = _ANNOUNCEMENTS
            asyncio.get_running_loop().add_reader(self._socket, self._readable, self._socket)

    def _readable(self, reading: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if self._left == 0:
            loop.remove_reader(reading)
            self._resume = loop.call_later(_ANNOUNCEMENTS_WINDOW_S, self._listen)
            return
        try:
            data, sender = reading.recvfrom(_READ_BYTES)
        except OSError:
            return
        self._left -= 1
        if sender[1] == PORT:
            self._heard(str(sender[0]), data)
