"""The sockets that the gateway listens on: its own, one it was given, or systemd's.

A shell, used by `cli.py` before anything else starts, so that a port in use is one clear line.
An inherited socket may belong to another network namespace than this process.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import MutableMapping
from typing import Any

from gateway.config import parse_listen
from gateway.errors import EnvironmentFault, UsageFault

# sd_listen_fds(3): inherited sockets begin after stdin, stdout and stderr.
SYSTEMD_FIRST_FD = 3
BACKLOG = 1024


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
