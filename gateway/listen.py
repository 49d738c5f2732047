"""The sockets that the gateway listens on: its own, one it was given, or systemd's.

A shell, used by `cli.py` before anything else starts, so that a port in use is one clear line.
An inherited socket may belong to another network namespace than this process.

A client that is gone without a word (its machine is off, its network is cut) or that reads nothing
is found out by TCP, whose timers connections inherit from the socket that accepts them.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from gateway.config import parse_listen
from gateway.errors import EnvironmentFault, UsageFault

# sd_listen_fds(3): inherited sockets begin after stdin, stdout and stderr.
SYSTEMD_FIRST_FD = 3
BACKLOG = 1024
# A connection on which a client acknowledges nothing for so long, or takes nothing of what waits
# for it, is closed; one that is silent is asked after PROBE_AFTER_S whether it is there.
GONE_S, PROBE_AFTER_S, PROBE_EACH_S = 60, 30, 10
# While connections are refused, it is said so often.
_SAY_EACH_S = 10.0
_FULL = (
    b'{"error":{"message":"The gateway has no file left for another connection. Try again.",'
    b'"type":"server_error","param":null,"code":null}}'
)
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)

_log = logging.getLogger(__name__)


def open_sockets(
    listen: str, fd: int | None, environment: MutableMapping[str, str], *, shared: bool = False
) -> list[socket.socket]:
    """Return listening sockets: of `fd`, else of systemd (LISTEN_FDS), else bound to `listen`.

    `shared`: the last are only bound, for as many that listen as `sibling` makes. systemd's
    variables are taken out of `environment`, as sd_listen_fds does. Raises UsageFault and
    EnvironmentFault.
    """
    given = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if fd is not None:
        return [_inherited(fd)]
    if given[0].isdecimal() and given[1] == str(os.getpid()):
        fds = range(SYSTEMD_FIRST_FD, SYSTEMD_FIRST_FD + int(given[0]))
        if fds:
            return [_inherited(number) for number in fds]
    return _bound(*parse_listen(listen), shared=shared)


def sibling(sock: socket.socket) -> socket.socket:
    """Return a socket for one of several processes, to listen where a `shared` one is bound.

    A given one listens already: all take their connections from it. Raises EnvironmentFault.
    """
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return sock
    where = sock.getsockname()
    try:
        return _socket(sock.family, where, shared=True)
    except OSError as error:
        raise _cannot_bind(where[0], where[1], error) from None


class Listener(socket.socket):
    """A listening socket that refuses connections when files run short, and says so.

    Files numbered `most_files` and above are for connections to replicas: the kernel gives a new
    file the lowest number that is free, so an accepted connection's number says how many there are.
    `plain`: no TLS, so that a refusal can be read.
    """

    def __init__(self, sock: socket.socket, most_files: int, *, plain: bool) -> None:
        family, kind, protocol = sock.family, sock.type, sock.proto
        super().__init__(family, kind, protocol, fileno=sock.detach())
        self._most_files = most_files
        self._plain = plain
        self._refused = 0
        self._said_at = float("-inf")
        if family == socket.AF_UNIX:
            return
        with suppress(OSError):  # an inherited socket may speak another protocol (MPTCP)
            self.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EACH_S)
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_S)

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection; raises BlockingIOError where none can be taken now."""
        connection, where = super().accept()
        if connection.fileno() < self._most_files:
            return connection, where
        with connection:
            self._refuse(connection)
        # asyncio comes again when it has looked after those that are served.
        raise BlockingIOError(errno.EAGAIN, "a connection was refused")

    def _refuse(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if self._plain:
            with suppress(OSError):
                connection.recv(2**16)  # what stays unread makes closing a reset
            with suppress(OSError):
                connection.send(_REFUSAL)
        self._refused += 1
        now = time.monotonic()
        if now - self._said_at >= _SAY_EACH_S:
            _log.warning(
                "refusing connections: clients have %d files open, and more are kept for replicas"
                " count=%d", self._most_files, self._refused,
            )  # fmt: skip
            self._said_at, self._refused = now, 0


def address(sock: socket.socket, scheme: str = "http") -> str:
    """Return where the socket listens, as a URL or a path."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"{scheme}://{host}:{name[1]}"
    return f"unix:{os.fsdecode(name)}"


def _inherited(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageFault(
            f"file descriptor {fd} is no socket ({error.strerror})",
            hint="Pass a listening stream socket to this process.",
        ) from None
    if sock.type != socket.SOCK_STREAM or sock.family not in (
        socket.AF_INET, socket.AF_INET6, socket.AF_UNIX,
    ):  # fmt: skip
        sock.detach()  # it is not ours to close
        raise UsageFault(
            f"file descriptor {fd} is no stream socket",
            hint="Pass a listening stream socket to this process.",
        )
    try:
        sock.listen(BACKLOG)  # harmless where it listens already
    except OSError as error:
        sock.detach()
        raise UsageFault(
            f"file descriptor {fd} cannot listen ({error.strerror})",
            hint="Pass a listening stream socket to this process.",
        ) from None
    return sock


def _bound(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageFault(
            f"--listen: {host} is no host name or address ({error.strerror})",
            hint="Write an address of this machine, such as 127.0.0.1 or ::1.",
        ) from None
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, where in found:
            sock = _socket(family, where)
            sockets.append(sock)
            if shared:
                # Only now, so that a gateway that shares this port among workers of its own is in
                # the way like any other program.
                where = sock.getsockname()
                sock.close()
                sockets[-1] = _socket(family, where, shared=True)
            else:
                sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise _cannot_bind(host, port, error) from None
    return sockets


def _socket(family: int, where: tuple[Any, ...], *, shared: bool = False) -> socket.socket:
    """Return a socket that is bound; `shared`: others of this user's may be, in the same way."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _cannot_bind(host: str, port: int, error: OSError) -> EnvironmentFault:
    if error.errno == errno.EADDRINUSE:
        return EnvironmentFault(
            f"port {port} on {host} is in use",
            hint=f"Stop what listens there (`ss -ltnp sport = :{port}`) or choose with --listen.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return EnvironmentFault(
            f"{host} is no address of this machine", hint="`ip address` shows them."
        )
    if error.errno == errno.EACCES:
        return EnvironmentFault(
            f"port {port} needs more rights than this user has",
            hint="Choose a port above 1023, or let systemd pass the socket.",
        )
    return EnvironmentFault(f"cannot listen on {host} port {port}: {error.strerror}")
