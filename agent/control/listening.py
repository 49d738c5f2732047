"""Where a node listens, and what the system's errors about addresses mean to a person.

trio, imported in the control plane's thread only. Used by `links.py`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import trio

from agent import endpoint
from agent.control.troubles import Trouble
from agent.errors import EnvironmentFault


async def bind(address: str) -> list[trio.SocketListener]:
    """Return listeners at HOST:PORT; raises EnvironmentFault that says what is in the way."""
    host, port = endpoint.split(address, lowest_port=0)
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except (socket.gaierror, UnicodeError):
        raise EnvironmentFault(
            f"cannot listen on {address} (control plane): {host} is not an address",
            hint="Name an IP address of this machine, or 0.0.0.0 for all of them.",
        ) from None
    except OSError as error:
        codes = {each.errno for each in _faults(error)}
        if errno.EADDRINUSE in codes:
            raise EnvironmentFault(
                f"port {port} (control plane) is in use",
                hint=f"Stop what holds it (`ss -ltnp sport = :{port}` shows it) or set another.",
            ) from None
        if errno.EADDRNOTAVAIL in codes:
            raise EnvironmentFault(
                f"cannot listen on {address} (control plane): this machine has no such address",
                hint="Name an IP address of this machine, or 0.0.0.0 for all of them.",
            ) from None
        if errno.EACCES in codes:
            raise EnvironmentFault(
                f"port {port} (control plane) may be used by root only",
                hint="Set a control port of 1024 or more.",
            ) from None
        raise EnvironmentFault(f"cannot listen on {address} (control plane): {error}") from None


def trouble(error: OSError | UnicodeError) -> Trouble:
    """Return what a failed dial is called."""
    causes = list(_faults(error))
    if not causes or any(isinstance(each, socket.gaierror) for each in causes):
        return Trouble.UNKNOWN_NAME
    if any(each.errno == errno.ECONNREFUSED for each in causes):
        return Trouble.REFUSED
    return Trouble.UNREACHABLE


def _faults(error: BaseException) -> Iterator[OSError]:
    """Every OSError in an error: trio gathers those of a name's addresses in a group."""
    if isinstance(error, OSError):
        yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _faults(each)
    if error.__cause__ is not None:
        yield from _faults(error.__cause__)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Return an error and what caused it, one after the other."""
    yield error
    if error.__cause__ is not None:
        yield from chain(error.__cause__)
