"""Connections to peers: listen, dial, keep, give up. One TCP connection is one link.

trio and libp2p, imported in the control plane's thread only. A link belongs to a peer whose
identity Noise has proved; who that is, and nothing from an address, is what `node.py` relies on.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from agent import endpoint
from agent.control.swarm import BoundedYamux, Socket, inbound, outbound
from agent.control.troubles import Trouble, unreachable
from agent.errors import EnvironmentFault

log = logging.getLogger(__name__)

# Inbound connections that have not named themselves yet.
MAX_HANDSHAKES = 64
# Addresses of one peer are tried this far apart (RFC 8305 says 0.25 s).
STAGGER_S = 0.25
# Closing takes libp2p 0.3 s; with a peer that takes no bytes, this.
CLOSE_LIMIT_S = 2.0
# libp2p wants to know where a connection came in; nothing depends on it.
_ANYWHERE = Multiaddr("/ip4/0.0.0.0/tcp/0")


class _DialError(Exception):
    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble


class Links:
    """All connections of one host."""

    def __init__(self, host: BasicHost) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._nursery: trio.Nursery | None = None
        self._sockets: set[Socket] = set()
        self._handshakes = trio.CapacityLimiter(MAX_HANDSHAKES)
        self._dialling: dict[tuple[str, tuple[str, ...]], trio.Lock] = {}

    async def listen(self, addresses: Sequence[str], nursery: trio.Nursery) -> list[str]:
        """Accept connections in `nursery`; return the addresses with their actual ports.

        Raises EnvironmentFault for an address that cannot be listened on.
        """
        self._nursery = nursery
        listeners: list[trio.SocketListener] = []
        try:
            for address in addresses:
                listeners += await _bind(address)
        except BaseException:
            for listener in listeners:
                listener.socket.close()
            raise
        if listeners:
            nursery.start_soon(trio.serve_listeners, self._accept, listeners)
        return [endpoint.join(*listener.socket.getsockname()[:2]) for listener in listeners]

    def kept(self, peer: str, other_than: Any = None) -> Any:
        """Return the newest live connection to the peer, or None."""
        for connection in reversed(self._swarm.get_connections(ID.from_base58(peer))):
            if not connection.is_closed and connection is not other_than:
                return connection
        return None

    async def connect(
        self, peer: str, addresses: Sequence[str], troubles: dict[str, Trouble], other_than: Any
    ) -> Any:
        """Return a connection to the peer, dialling once for all who ask at the same time.

        Raises PeerError when every address has failed; `troubles` says of each how, as far as it
        has, also when this is cancelled.
        """
        key = (peer, tuple(addresses))
        lock = self._dialling.setdefault(key, trio.Lock())
        try:
            async with lock:
                kept = self.kept(peer, other_than)
                return kept or await self._dial_all(peer, addresses, troubles)
        finally:
            if not lock.locked():
                self._dialling.pop(key, None)

    def give_up(self, connection: Any) -> None:
        """Close a connection; nobody waits for it."""
        self._spawn(_close, connection)

    def close_all(self) -> None:
        """Close every connection at once; the peers see it end."""
        for tcp in tuple(self._sockets):
            self._abort(tcp)

    # Outbound.

    async def _dial_all(
        self, peer: str, addresses: Sequence[str], troubles: dict[str, Trouble]
    ) -> Any:
        connections: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def attempt(address: str, delay_s: float) -> None:
                await trio.sleep(delay_s)
                try:
                    connections.append(await self._dial(peer, address))
                except _DialError as error:
                    troubles[address] = error.trouble
                else:
                    nursery.cancel_scope.cancel()

            for index, address in enumerate(addresses):
                nursery.start_soon(attempt, address, index * STAGGER_S)
        if not connections:
            raise unreachable(peer, troubles, addresses, 0.0)
        for late in connections[1:]:
            self.give_up(late)
        return connections[0]

    async def _dial(self, peer: str, address: str) -> Any:
        host, port = endpoint.split(address)
        try:
            # Resolves a name anew each time, and tries all its addresses.
            tcp = Socket(await trio.open_tcp_stream(host, port))
        except (OSError, UnicodeError) as error:  # UnicodeError: no host name looks like this
            log.debug("dial failed, address=%s: %s", address, error)
            raise _DialError(_trouble(error)) from None
        self._sockets.add(tcp)
        try:
            connection = await self._swarm.upgrade_outbound_raw_conn(
                outbound(self._host, tcp), ID.from_base58(peer)
            )
        except BaseException as error:
            self._abort(tcp)
            if not isinstance(error, Exception):
                raise
            log.debug("handshake failed, address=%s, peer=%s: %r", address, peer, error)
            # The library has no class of its own for another identity.
            other = "mismatch" in f"{error!r} {error.__cause__!r} {_root(error)!r}".lower()
            raise _DialError(Trouble.OTHER_NODE if other else Trouble.HANDSHAKE) from None
        self._spawn(self._until_closed, tcp, connection.muxed_conn)
        log.debug("connected, address=%s, peer=%s", address, peer)
        return connection

    # Inbound.

    async def _accept(self, stream: trio.SocketStream) -> None:
        """One connection until it ends; then `serve_listeners`, which calls this, closes it."""
        try:
            self._handshakes.acquire_nowait()
        except trio.WouldBlock:
            log.debug("too many handshakes at once; one connection turned away")
            return
        tcp = None
        try:
            tcp = Socket(stream)
            self._sockets.add(tcp)
            muxed = await self._swarm.upgrade_inbound_raw_conn(inbound(tcp), _ANYWHERE)
        except Exception as error:
            log.debug("inbound handshake failed, address=%s: %r",
                      tcp and tcp.peer_address, error)  # fmt: skip
            return
        finally:
            self._handshakes.release()
            if tcp is not None:
                self._sockets.discard(tcp)
        self._sockets.add(tcp)
        await self._until_closed(tcp, muxed)

    async def _until_closed(self, tcp: Socket, muxed: BoundedYamux) -> None:
        try:
            await muxed.event_closed.wait()
        finally:
            self._sockets.discard(tcp)
            tcp.abort()

    def _abort(self, tcp: Socket) -> None:
        tcp.abort()
        self._sockets.discard(tcp)

    def _spawn(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self._nursery is None:
            raise RuntimeError("the host does not run yet")
        self._nursery.start_soon(function, *args)


async def _close(connection: Any) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_LIMIT_S):
        await connection.close()
    connection.muxed_conn.tcp.abort()


async def _bind(address: str) -> list[trio.SocketListener]:
    host, port = endpoint.split(address, lowest_port=0)
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except (socket.gaierror, UnicodeError):
        raise EnvironmentFault(
            f"cannot listen on {address} (control plane): {host} is not an address",
            hint="Name an IP address of this machine, or 0.0.0.0 for all of them.",
        ) from None
    except OSError as error:
        codes = {each.errno for each in _causes(error)}
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


def _trouble(error: OSError | UnicodeError) -> Trouble:
    causes = list(_causes(error))
    if not causes or any(isinstance(each, socket.gaierror) for each in causes):
        return Trouble.UNKNOWN_NAME
    if any(each.errno == errno.ECONNREFUSED for each in causes):
        return Trouble.REFUSED
    return Trouble.UNREACHABLE


def _causes(error: BaseException) -> Iterator[OSError]:
    """Every OSError in an error: trio gathers those of a name's addresses in a group."""
    if isinstance(error, OSError):
        yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
