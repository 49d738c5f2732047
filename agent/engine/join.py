"""How a stage meets its neighbours: the listener, the dialling, and the hello on both sides.

For `process.py`; once both neighbours are met, `link.py` does the rest. Exactly one connection is
accepted: from the predecessor's overlay address, with a hello of the same ring, epoch and model.
Every wait is bounded and asks between short steps whether the engine must stop.
"""

from __future__ import annotations

import ipaddress
import logging
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.engine.frames import Decoder, Hello, encode_hello, stage_name
from agent.engine.link import Inlet, Membership, Outlet
from agent.errors import CoveyError, EngineError, EnvironmentFault, PeerError, UsageError

log = logging.getLogger(__name__)

# One predecessor connects; the rest of the queue is for those that are refused.
_BACKLOG = 4
# A neighbour says hello as soon as it has connected; one that does not is not a neighbour.
_HELLO_TIMEOUT_S = 10.0
_CONNECT_ATTEMPT_S = 5.0
_CONNECT_PAUSE_S = 0.1
# How often a wait asks whether it is to go on.
_STEP_S = 0.2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Interrupted(Exception):
    """The engine was told to stop while it waited for a neighbour."""


@dataclass(frozen=True)
class Patience:
    """Until when to wait (monotonic seconds), and the question whether to stop before."""

    deadline: float
    interrupted: Callable[[], bool]

    def left_s(self) -> float:
        """Return the seconds that are left, 0 at the least; raises Interrupted."""
        if self.interrupted():
            raise Interrupted
        return max(0.0, self.deadline - time.monotonic())

    def at_most(self, seconds: float) -> Patience:
        """Return a shorter one."""
        return replace(self, deadline=min(self.deadline, time.monotonic() + seconds))


class Listener:
    """A listening socket on one overlay address; `port` is the one that it got.

    Raises UsageError for a wildcard address, EnvironmentFault where it cannot listen.
    """

    def __init__(self, address: str, port: int) -> None:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            raise UsageError(f"{address!r} is not an IP address to listen on.") from None
        if parsed.is_unspecified or parsed.is_multicast:
            raise UsageError(
                f"a stage must not listen on {address}.",
                hint="Give the node's own overlay address.",
            )
        family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
        self.address = address
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((address, port))
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise EnvironmentFault(
                f"cannot listen on {address} port {port}: {error.strerror}.",
                hint="Is the overlay up, and is the port free?",
            ) from None
        self.port: int = self._socket.getsockname()[1]

    def accept(self, member: Membership, layer: int, expected: str, patience: Patience) -> Inlet:
        """Wait for the predecessor and answer its hello; everybody else is closed and logged.

        `layer` is the first one of this part, `expected` the only source address that may connect.
        Raises EngineError when nobody fit came in time.
        """
        source = ipaddress.ip_address(expected)
        while left := patience.left_s():
            if not select.select([self._socket], [], [], min(left, _STEP_S))[0]:
                continue
            connection, found = self.accept_any()
            if found != source:
                log.warning("refused a connection from %s: only %s may connect", found, source)
                connection.close()
                continue
            try:
                _no_delay(connection)
                hello = _read_hello(
                    connection, member, str(found), patience.at_most(_HELLO_TIMEOUT_S)
                )
                _check_hello(hello, member, member.predecessor, layer)
                connection.sendall(encode_hello(member.hello(layer)))
            except (CoveyError, OSError) as error:
                log.warning("refused the predecessor at %s: %s", found, error)
                connection.close()
                continue
            except BaseException:
                connection.close()
                raise
            return Inlet(connection, member, expected, patience.deadline)
        raise EngineError(
            f"{stage_name(member.predecessor, expected)} did not connect in time.",
            hint="Is its engine running, and is the overlay path up?",
        )

    def accept_any(self) -> tuple[socket.socket, Address]:
        """Return a connection that has come and its source, which nobody has checked yet."""
        connection, peer = self._socket.accept()
        return connection, ipaddress.ip_address(peer[0].partition("%")[0])

    def fileno(self) -> int:
        """Its descriptor, for select."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening; accepted connections live on."""
        self._socket.close()


class Dialled:
    """A connection to the successor that has said hello and has no answer yet.

    It leaves from this node's own overlay address `local`. Raises EngineError when the successor
    cannot be reached in time.
    """

    def __init__(
        self,
        member: Membership,
        layer: int,
        local: str,
        remote: tuple[str, int],
        patience: Patience,
    ) -> None:
        self._member = member
        self._layer = layer
        self._address = remote[0]
        self._name = stage_name(member.successor, remote[0])
        self._socket = self._connect(local, remote, patience)
        try:
            _no_delay(self._socket)
            self._socket.sendall(encode_hello(member.hello(layer)))
        except OSError as error:
            self._socket.close()
            raise EngineError(f"{self._name} was lost ({error.strerror}).") from None

    def finish(self, patience: Patience) -> Outlet:
        """Wait for the successor's hello and return the outlet; PeerError when it refuses."""
        hello = _read_hello(self._socket, self._member, self._name, patience)
        _check_hello(hello, self._member, self._member.successor, self._layer)
        return Outlet(self._socket, self._member, self._address)

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()

    def _connect(self, local: str, remote: tuple[str, int], patience: Patience) -> socket.socket:
        last = "no time was left"
        while left := patience.left_s():
            try:
                return socket.create_connection(
                    remote, min(left, _CONNECT_ATTEMPT_S), source_address=(local, 0)
                )
            except OSError as error:
                last = error.strerror or "no answer"
            time.sleep(_CONNECT_PAUSE_S)
        raise EngineError(
            f"cannot reach {self._name} on port {remote[1]}: {last}.",
            hint="Is its engine running, and is the overlay path up?",
        )


def _no_delay(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _read_hello(
    connection: socket.socket, member: Membership, name: str, patience: Patience
) -> Hello:
    # No rows may come before the hello.
    decoder = Decoder(replace(member.limits, max_rows=0), name)
    while left := patience.left_s():
        connection.settimeout(min(left, _STEP_S))
        try:
            count = connection.recv_into(decoder.space())
        except TimeoutError:
            continue
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
        if message is not None:
            break
    raise PeerError(f"{name} did not say hello.")


def _check_hello(hello: Hello, member: Membership, stage: int, layer: int) -> None:
    wanted = replace(member.hello(layer), stage=stage)
    for what in ("ring", "epoch", "stage", "layer", "n_embd", "model"):
        found, own = getattr(hello, what), getattr(wanted, what)
        if found != own:
            shown = [
                value.hex()[:16] if isinstance(value, bytes) else value for value in (found, own)
            ]
            raise PeerError(
                f"{stage_name(hello.stage)} is of another {what.replace('_', ' ')}: "
                f"{shown[0]} instead of {shown[1]}."
            )
