"""libp2p 0.8.1 as Covey uses it: TCP, Noise, yamux and the private network's key, nothing else.

Importing this module imports libp2p (1-2 s, 70 MB); only `node.py` does, in the trio thread. It
builds a host whose parts are bounded, because the library's own are not. Found in its source:

* `new_host` also offers plaintext, TLS and SECIO; only Noise is offered here.
* Before Noise has named the other side, it may announce a message of any length, which is then
  collected in memory. `Socket` ends a connection that sends more than a handshake needs.
* yamux only logs a peer that ignores its receive window, and buffers on. `_Buffer` refuses.
* A cancelled write leaves half a Noise message on the wire, which ends the connection for all who
  use it. `Yamux._write_frame` is shielded, with a limit of its own.
* Every inbound connection holds its slot until the host stops (250 in all), listeners set
  SO_REUSEPORT (so two agents share a port without an error), a failed peer is not dialled again for
  60 s, and of all its addresses one is tried. `node.py` listens and dials by itself.
* The swarm dials peers that it remembers, by itself, and asks each peer who it is. Both are off.
* `swarm_connection` logs through the root logger, which installs a handler on stderr, and the
  `libp2p` logger writes to stderr at every hostile byte. `_quiet` sends all of it to our log.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.host.basic_host import BasicHost, _IdentifyNotifee
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.pnet.protector import new_protected_conn
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader

log = logging.getLogger(__name__)

# multistream, Noise and yamux need some 1,000 bytes; a handshake payload is at most 64 KiB.
HANDSHAKE_BYTES = 64 * 1024
# An inbound connection that has not named itself by then is closed.
HANDSHAKE_LIMIT_S = 5.0
# A peer that takes no byte for this long is gone; others wait behind the same connection.
WRITE_LIMIT_S = 10.0
# What may lie unread in all streams of one connection: four whole frames.
UNREAD_BYTES = 16 * 1024 * 1024
MAX_CONNECTIONS = 300
# yamux pings each 30 s: a host that vanished is noticed after two of them at the latest.
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
UNACKNOWLEDGED_LIMIT_MS = 30_000


class Socket(TrioTCPStream):  # type: ignore[misc]  # libp2p is untyped to mypy
    """One TCP connection under libp2p, with a limit on what arrives before the handshake ends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.peer_address = _peer_address(stream)
        self._allowance: int | None = HANDSHAKE_BYTES
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_LIMIT_MS),
        ):
            stream.setsockopt(level, option, value)

    def handshake_done(self) -> None:
        """Lift the limit: the other side is known and its messages have bounds of their own."""
        self._allowance = None

    async def read(self, n: int | None = None) -> bytes:
        """Read `n` bytes, fewer only at the end; some bytes if `n` is None.

        libp2p's callers ask for exactly what they need, and give up after 100 short reads.
        """
        chunks = bytearray()
        while n is None or len(chunks) < n:
            want = None if n is None else min(n - len(chunks), HANDSHAKE_BYTES)
            chunk = await super().read(want)
            chunks += chunk
            if self._allowance is not None:
                self._allowance -= len(chunk)
                if self._allowance < 0:
                    raise ConnectionClosedError("too much in the handshake", transport="tcp")
            if n is None or not chunk:
                break
        return bytes(chunks)

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other end; libp2p's own knows no IPv6."""
        return self.peer_address

    def abort(self) -> None:
        """Close at once, without waiting for anything."""
        self.stream.socket.close()


def _peer_address(stream: trio.SocketStream) -> tuple[str, int] | None:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)


class _Buffer(bytearray):
    """The unread bytes of one stream; knows those of the other streams of its connection."""

    def __init__(self, others: _Buffers) -> None:
        super().__init__()
        self._all = others

    def extend(self, data: Any) -> None:
        if sum(map(len, self._all.values())) + len(data) > UNREAD_BYTES:
            raise MuxedStreamError("the peer ignores the receive window")
        super().extend(data)


class _Buffers(dict[int, bytearray]):
    """yamux's `stream_buffers`: whatever is put in becomes a bounded buffer, empty at first."""

    def __setitem__(self, stream_id: int, _: bytearray) -> None:
        super().__setitem__(stream_id, _Buffer(self))


class BoundedYamux(Yamux):  # type: ignore[misc]  # libp2p is untyped to mypy
    """yamux with whole writes and bounded buffers."""

    def __init__(self, connection: Any, peer_id: ID, tcp: Socket) -> None:
        super().__init__(connection, peer_id, is_initiator=connection.is_initiator)
        self.stream_buffers = _Buffers()
        self.tcp = tcp

    async def start(self) -> None:
        """Run until the connection ends; a fault ends this connection, not the whole swarm."""
        try:
            await super().start()
        except Exception:
            log.warning("connection lost, peer=%s", self.peer_id, exc_info=True)
            self.tcp.abort()
            await self._cleanup_on_error()

    async def _write_frame(self, data: bytes) -> None:
        deadline = trio.current_time() + WRITE_LIMIT_S
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            async with self._write_lock:
                await self.secured_conn.write(data)
        if scope.cancelled_caught:
            self.tcp.abort()
            raise MuxedStreamError("the peer takes no more bytes")


class _Upgrader(TransportUpgrader):  # type: ignore[misc]  # libp2p is untyped to mypy
    """Raw connection → Noise → BoundedYamux (libp2p's own always builds its own Yamux)."""

    async def upgrade_security(
        self, raw_conn: Any, is_initiator: bool, peer_id: ID | None = None
    ) -> Any:
        secured = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        # The private network's cipher wraps the RawConnection that holds our Socket.
        secured.tcp = getattr(raw_conn, "_conn", raw_conn).stream
        return secured

    async def upgrade_connection(self, conn: Any, peer_id: ID) -> Any:
        tcp: Socket = conn.tcp
        muxers = self.muxer_multistream
        await muxers.select_transport(conn)
        tcp.handshake_done()
        return BoundedYamux(conn, peer_id, tcp)


class _Idle(AutoConnector):  # type: ignore[misc]  # libp2p is untyped to mypy
    """Dials nobody: who talks to whom is Covey's decision."""

    async def start(self) -> None:
        pass

    async def maybe_connect(self) -> None:
        pass


class QuietSwarm(Swarm):  # type: ignore[misc]  # libp2p is untyped to mypy
    """A swarm that does what it is told and nothing on its own."""

    def _init_connection_management(self) -> None:
        super()._init_connection_management()
        self.auto_connector = _Idle(self)


class _ToOurs(logging.Handler):
    """Hands libp2p's warnings to Covey's log, at debug: most are a peer's doing, not a fault."""

    def emit(self, record: logging.LogRecord) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s", record.name, record.getMessage().partition("\n")[0])


def _quiet() -> None:
    swarm_connection.logging = logging.getLogger(swarm_connection.__name__)
    top = logging.getLogger("libp2p")
    if not top.handlers:  # LIBP2P_DEBUG has put some there
        top.addHandler(_ToOurs(logging.WARNING))
        top.propagate = False
    # Some lines at debug for every address.
    logging.getLogger("multiaddr").setLevel(logging.WARNING)


def build_host(seed: bytes, network_key: bytes | None) -> BasicHost:
    """Return a host for the node key's seed (32 bytes); it listens nowhere and is not running.

    `network_key` (32 bytes) makes it silent to everyone who does not have the same one.
    """
    _quiet()
    keys = create_new_key_pair(seed)
    identity = ID.from_pubkey(keys.public_key)
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    peers = PeerStore()
    peers.add_key_pair(identity, keys)
    swarm = QuietSwarm(
        identity,
        peers,
        _Upgrader({NOISE_PROTOCOL: noise}, {YAMUX_PROTOCOL: Yamux}),
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            high_watermark=MAX_CONNECTIONS,
            min_connections=0,
            low_watermark=0,
            max_connections_per_peer=1,
            inbound_upgrade_timeout=HANDSHAKE_LIMIT_S,
        ),
        psk=network_key.hex() if network_key is not None else None,
    )
    host = BasicHost(swarm, disable_identify_address_discovery=True)
    for protocol in tuple(host.get_mux().handlers):
        host.remove_stream_handler(protocol)
    for notifee in [n for n in swarm.notifees if isinstance(n, _IdentifyNotifee)]:
        swarm.remove_notifee(notifee)
    return host


def outbound(host: BasicHost, tcp: Socket) -> Any:
    """Return what `Swarm.upgrade_outbound_raw_conn` takes."""
    psk = host.get_network().psk
    raw = RawConnection(tcp, True)
    return new_protected_conn(raw, psk) if psk is not None else raw


def inbound(tcp: Socket) -> Any:
    """Return what `Swarm.upgrade_inbound_raw_conn` takes; that applies the network key itself."""
    return RawConnection(tcp, False)
