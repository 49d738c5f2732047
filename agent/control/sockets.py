"""One TCP connection under libp2p, and the private network's cipher over it.

trio, imported in the control plane's thread only. `Socket` bounds what arrives before the other
side has named itself and gives up on one that vanished. `Private` is libp2p's private network
(pnet) with one difference: as a listener it is made only after the caller has shown that it knows a
network key (`preamble.py`), so that an outsider never gets a byte. Used by `links.py`.

When a host vanishes without a word, its connection ends after at most 60 s if nothing is sent (30 s
idle, three probes 10 s apart) and after 30 s if something is: yamux sends a ping each 30 s.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Sequence

import trio
from Crypto.Cipher import Salsa20
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection

from agent import endpoint
from agent.control import preamble
from agent.control.preamble import Doorkeeper, Opened

# One read of the kernel; libp2p asks for 2 bytes, then for 28, then for 12.
READ_BYTES = 64 * 1024
# multistream, Noise and yamux need some 1,000 bytes; a handshake payload is at most 64 KiB.
HANDSHAKE_BYTES = 64 * 1024
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
UNACKNOWLEDGED_LIMIT_MS = 30_000
# linux/tcp.h, struct tcp_info: tcpi_retransmits, of what is not acknowledged yet.
_INFO = struct.Struct("=2xB")


class Socket(TrioTCPStream):  # type: ignore[misc]  # libp2p is untyped to mypy
    """One TCP connection, with a limit on what arrives before the handshake ends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.peer_address = _peer_address(stream)
        self.aborted = False
        self.heard_at = trio.current_time()
        self._allowance: int | None = HANDSHAKE_BYTES
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_LIMIT_MS),
        ):
            stream.setsockopt(level, option, value)

    @property
    def address(self) -> str:
        """The other end as HOST:PORT; empty if it was gone at once."""
        return endpoint.join(*self.peer_address) if self.peer_address else ""

    @property
    def ip(self) -> str:
        """The other end's IP address; empty if it was gone at once."""
        return self.peer_address[0] if self.peer_address else ""

    def handshake_done(self) -> None:
        """Lift the limit: the other side is known and its messages have bounds of their own."""
        self._allowance = None

    def spend(self, size: int) -> None:
        """Count bytes that libp2p asks for in the handshake; raises when these are too many."""
        if self._allowance is not None:
            self._allowance -= size
            if self._allowance < 0:
                raise ConnectionClosedError("too much in the handshake", transport="tcp")

    async def read(self, n: int | None = None) -> bytes:
        """Read some bytes, at most `n`; none at the end. One task reads, so there is no lock."""
        try:
            data = bytes(await self.stream.receive_some(n))
            self.heard_at = trio.current_time()
            return data
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("reset by the peer", transport="tcp") from error
        except trio.ClosedResourceError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send all of `data`; yamux lets one task write at a time."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("reset by the peer", transport="tcp") from error
        except trio.ClosedResourceError as error:
            raise ConnectionClosedError("closed on this side", transport="tcp") from error

    async def open(self, keeper: Doorkeeper, keys: Sequence[bytes]) -> Opened | None:
        """Read a caller's first bytes and return what they prove; None if it leaves.

        Who proves nothing is left waiting, so that it sees the same whatever it sent: the caller of
        this cancels it when the time for a handshake is over.
        """
        first = b""
        while len(first) < preamble.FIRST_BYTES:
            chunk = await self.read(preamble.FIRST_BYTES - len(first))
            if not chunk:
                return None
            first += chunk
        opened = keeper.open(first, keys, time.time())
        if opened is None:
            await self._swallow()
        return opened

    async def _swallow(self) -> None:
        """Read until the other side leaves; after a while do not even read."""
        left = HANDSHAKE_BYTES
        while left > 0:
            chunk = await self.read(READ_BYTES)
            if not chunk:
                return
            left -= len(chunk)
        await trio.sleep_forever()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other end; libp2p's own knows no IPv6."""
        return self.peer_address

    def stalled(self) -> bool:
        """Say whether the other machine leaves what was sent unacknowledged, or is gone.

        The kernel has sent it again then: one that is only busy acknowledges within 40 ms.
        """
        try:
            info = self.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        except OSError:
            return True
        (retransmits,) = _INFO.unpack(info)
        return bool(retransmits)

    def abort(self) -> None:
        """Close at once, without waiting for anything."""
        self.aborted = True
        self.stream.socket.close()


def _peer_address(stream: trio.SocketStream) -> tuple[str, int] | None:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)


class Private(RawConnection):  # type: ignore[misc]  # libp2p is untyped to mypy
    """A connection under the network key; libp2p sees plain bytes."""

    def __init__(
        self,
        tcp: Socket,
        key: bytes,
        nonce: bytes,
        opened: Opened | None,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        """`nonce` (8 bytes) is ours; `opened` is what a caller has proved, None if we call.

        `on_answer` is called when the node that we call has said its first bytes.
        """
        super().__init__(tcp, opened is None)
        self._on_answer = on_answer
        self._key = key
        self._unsent = nonce
        self._write_cipher = Salsa20.new(key=key, nonce=nonce)
        self._read_cipher = opened.cipher if opened is not None else None
        # Decrypted and not yet asked for; at first what `preamble` has read already.
        self._ahead = bytearray(preamble.GREETING if opened is not None else b"")

    async def write(self, data: bytes) -> None:
        """Send all of `data`, the first time with our nonce in front."""
        sealed = self._unsent + self._write_cipher.encrypt(data)
        self._unsent = b""
        await super().write(sealed)

    async def read(self, n: int | None = None) -> bytes:
        """Read `n` bytes, fewer only at the end; some bytes if `n` is None.

        libp2p's callers ask for exactly what they need, and give up after 100 short reads.
        """
        self.stream.spend(1 if n is None else n)
        while len(self._ahead) < (1 if n is None else n):
            if not await self._receive():
                break
        size = len(self._ahead) if n is None else n
        data = bytes(self._ahead[:size])
        del self._ahead[:size]
        return data

    async def _receive(self) -> bool:
        """Decrypt what has come; False at the end."""
        sealed = await super().read(READ_BYTES)
        if self._read_cipher is None:
            while sealed and len(sealed) < preamble.NONCE_BYTES:
                more = await super().read(READ_BYTES)
                sealed = sealed + more if more else b""
            if not sealed:
                return False
            nonce, sealed = sealed[: preamble.NONCE_BYTES], sealed[preamble.NONCE_BYTES :]
            self._read_cipher = Salsa20.new(key=self._key, nonce=nonce)
            self._on_answer()
        elif not sealed:
            return False
        self._ahead += self._read_cipher.decrypt(sealed)
        return True


def calling(tcp: Socket, key: bytes, called: bytes, on_answer: Callable[[], None]) -> Private:
    """Return our side of a connection that we have dialled; `called` as for `make_nonce`."""
    nonce = preamble.make_nonce(key, called, time.time(), os.urandom(4))
    return Private(tcp, key, nonce, None, on_answer)


def called(tcp: Socket, opened: Opened) -> Private:
    """Return our side of a connection whose caller has proved that it knows a network key."""
    return Private(tcp, opened.key, os.urandom(preamble.NONCE_BYTES), opened)
