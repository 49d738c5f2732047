"""libp2p 0.8.1 as Covey uses it: TCP, Noise, yamux and the private network's key, nothing else.

Importing this module imports libp2p (0.5-2 s, 35 MB after `lean.py`); only `node.py` does, in the
trio thread. It builds a host whose parts are bounded, because the library's own are not. Found in
its source:

* `new_host` also offers plaintext, TLS and SECIO; only Noise is offered here.
* Before Noise has named the other side, it may announce a message of any length, which is then
  collected in memory. `sockets.Socket` ends a connection that sends more than a handshake needs.
* yamux only logs a peer that ignores its receive window, and buffers on. `_Buffer` refuses.
* A cancelled write leaves half a Noise message on the wire, which ends the connection for all who
  use it. `Yamux._write_frame` is shielded, with a limit of its own.
* Every inbound connection holds its slot until the host stops (250 in all), listeners set
  SO_REUSEPORT (so two agents share a port without an error), a failed peer is not dialled again for
  60 s, and of all its addresses one is tried. `links.py` listens and dials by itself.
* The private network's listener answers before the caller has proved anything. The swarm gets no
  key: `links.py` wraps each connection in both directions (`sockets.py`).
* The swarm dials peers that it remembers, by itself, and closes one of two connections to a peer,
  each side another one. Both are off. Its `BasicHost` is not used: it asks each peer who it is.
* A stream that was reset keeps what lies unread for a minute (`BoundedYamux` drops it), and whoever
  reads from it then leaves an event behind for ever (`_Events` refuses it).
* GossipSub is our own, with the library's wire: `gossip.py` says why.
* `swarm_connection` logs through the root logger, which installs a handler on stderr, and the
  `libp2p` logger writes to stderr at every hostile byte. `_quiet` sends all of it to our log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from agent.control.sockets import Socket

log = logging.getLogger(__name__)

# An inbound connection that has not named itself by then is closed.
HANDSHAKE_LIMIT_S = 5.0
# A peer that takes no byte for this long is gone; others wait behind the same connection.
WRITE_LIMIT_S = 10.0
# What may lie unread in all streams of one connection: four whole frames.
UNREAD_BYTES = 16 * 1024 * 1024
# What may lie unread in all connections together, beyond UNREAD_FREE_BYTES in each.
UNREAD_IN_ALL_BYTES = 128 * 1024 * 1024
UNREAD_FREE_BYTES = 512 * 1024
MAX_CONNECTIONS = 300


class _Buffer(bytearray):
    """The unread bytes of one stream; knows those of the other streams of its connection."""

    def __init__(self, others: _Buffers) -> None:
        super().__init__()
        self._all = others

    def extend(self, data: Any) -> None:
        unread = self._all.unread() + len(data)
        if unread > UNREAD_BYTES:
            raise MuxedStreamError("the peer ignores the receive window")
        if (
            unread > UNREAD_FREE_BYTES
            and self._all.unread_in_all() + len(data) > UNREAD_IN_ALL_BYTES
        ):
            raise MuxedStreamError("too much lies unread on this node")
        super().extend(data)


class _Buffers(dict[int, bytearray]):
    """yamux's `stream_buffers`: whatever is put in becomes a bounded buffer, empty at first."""

    def __init__(self, unread_in_all: Callable[[], int]) -> None:
        """`unread_in_all` counts the unread bytes of every connection of this node."""
        super().__init__()
        self.unread_in_all = unread_in_all

    def __setitem__(self, stream_id: int, _: bytearray) -> None:
        super().__setitem__(stream_id, _Buffer(self))

    def unread(self) -> int:
        """Return how many bytes lie unread on this connection."""
        return sum(map(len, self.values()))


class _Events(dict[int, trio.Event]):
    """yamux's `stream_events`: takes those of streams that there are."""

    def __init__(self, streams: Mapping[int, Any]) -> None:
        super().__init__()
        self._streams = streams

    def __setitem__(self, stream_id: int, event: trio.Event) -> None:
        if stream_id in self._streams:
            super().__setitem__(stream_id, event)


class BoundedYamux(Yamux):  # type: ignore[misc]  # libp2p is untyped to mypy
    """yamux with whole writes and bounded buffers."""

    def __init__(self, connection: Any, peer_id: ID, tcp: Socket) -> None:
        super().__init__(connection, peer_id, is_initiator=connection.is_initiator)
        self.stream_buffers = _Buffers(self._unread_in_all)
        self.stream_events = _Events(self.streams)
        self.tcp = tcp

    def _unread_in_all(self) -> int:
        """Libp2p's connections set `swarm` before the first byte can come."""
        connections = self.swarm.get_connections()
        return sum(each.muxed_conn.stream_buffers.unread() for each in connections)

    async def start(self) -> None:
        """Run until the connection ends; a fault ends this connection, not the whole swarm."""
        try:
            await super().start()
        except Exception:
            log.warning("connection lost, peer=%s", self.peer_id, exc_info=True)
            self.tcp.abort()
            await self._cleanup_on_error()

    def _finalize_stream_locked(self, stream: Any, *, fully_closed: bool) -> None:
        """End a stream; of one that was reset nobody reads what is left."""
        if fully_closed and stream.reset_received:
            self.stream_buffers.get(stream.stream_id, bytearray()).clear()
        super()._finalize_stream_locked(stream, fully_closed=fully_closed)

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
        """Return the connection after Noise; `peer_id` None takes whoever answers."""
        if is_initiator and peer_id is None:
            secured = await self._secure_anybody(raw_conn)
        else:
            secured = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        secured.tcp = raw_conn.stream
        return secured

    async def _secure_anybody(self, raw_conn: Any) -> Any:
        try:
            return await self.security_multistream.secure_outbound(raw_conn, None)
        except (MultiselectError, MultiselectClientError, HandshakeFailure) as error:
            raise SecurityUpgradeFailure("no handshake") from error

    async def upgrade_connection(self, conn: Any, peer_id: ID | None) -> Any:
        tcp: Socket = conn.tcp
        await self.muxer_multistream.select_transport(conn)
        tcp.handshake_done()
        return BoundedYamux(conn, conn.get_remote_peer(), tcp)


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


class Host:
    """What we use of libp2p in one node: its identity and its swarm."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: the node key's (32 bytes). It listens nowhere and is not running."""
        _quiet()
        keys = create_new_key_pair(seed)
        self.id = ID.from_pubkey(keys.public_key)
        noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
        peers = PeerStore()
        peers.add_key_pair(self.id, keys)
        self.swarm = QuietSwarm(
            self.id,
            peers,
            _Upgrader({NOISE_PROTOCOL: noise}, {YAMUX_PROTOCOL: Yamux}),
            connection_config=ConnectionConfig(
                max_connections=MAX_CONNECTIONS,
                high_watermark=MAX_CONNECTIONS,
                min_connections=0,
                low_watermark=0,
                # `keeper.py` decides which of several stays.
                max_connections_per_peer=MAX_CONNECTIONS,
                inbound_upgrade_timeout=HANDSHAKE_LIMIT_S,
            ),
        )
        # They count connections for the library's own choice among peers.
        for notifee in tuple(self.swarm.notifees):
            self.swarm.remove_notifee(notifee)
