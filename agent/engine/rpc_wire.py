"""What goes over the overlay between a head and llama.cpp's RPC servers: a hello, then bytes.

For `rpc_server.py` and `rpc_link.py`. A connection begins with a hello, which says for which ring
and epoch it is and what for: `DATA` is llama.cpp's own protocol, on `BEAT` each byte is sent back.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable

from agent.errors import UsageError

DATA, BEAT = 1, 2
_MAGIC = b"cvr1"
_HELLO = struct.Struct("!4s16sQHB")  # magic, ring, epoch, stage, what for
HELLO_BYTES = _HELLO.size
CLOSED = "it closed the connection"
_CHUNK_BYTES = 1 << 18
_UNIQUE_LOCAL = ipaddress.ip_network("fd00::/8")
_MESH_PREFIX = 48


def encode_hello(ring: bytes, epoch: int, stage: int, kind: int) -> bytes:
    """Return the hello of a connection."""
    return _HELLO.pack(_MAGIC, ring, epoch, stage, kind)


def kind_of(hello: bytes, ring: bytes, epoch: int, stage: int) -> int | None:
    """Return what a connection with this hello is for; None if it does not belong here."""
    for kind in (DATA, BEAT):
        if hello == encode_hello(ring, epoch, stage, kind):
            return kind
    return None


def check_addresses(own: str, head: str) -> None:
    """Raise UsageError unless both are overlay addresses of one mesh, or both this machine's own.

    llama.cpp's RPC asks nobody who they are, so it must never be heard anywhere else.
    """
    try:
        pair = [ipaddress.ip_address(text) for text in (own, head)]
    except ValueError:
        raise UsageError(f"{own!r} and {head!r} are not both IP addresses.") from None
    if all(address.is_loopback for address in pair):
        return
    prefixes = {int(address) >> (128 - _MESH_PREFIX) for address in pair}
    if len(prefixes) != 1 or not all(address in _UNIQUE_LOCAL for address in pair):
        raise UsageError(
            f"an RPC server must not listen on {own} for {head}: they are no overlay addresses"
            " of one mesh.",
            hint="Give the node's own overlay address.",
        )


def no_delay(connection: socket.socket) -> None:
    """Send what is written at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def pump(source: socket.socket, sink: socket.socket, moved: Callable[[], None]) -> str:
    """Move bytes until `source` ends or something fails; returns why, in words.

    `moved` is called whenever some came, before they go on.
    """
    space = memoryview(bytearray(_CHUNK_BYTES))
    try:
        while count := source.recv_into(space):
            moved()
            sink.sendall(space[:count])
    except OSError as error:
        return why(error)
    return CLOSED


def why(error: OSError) -> str:
    """Return in words how a connection was lost; a process that dies may close or reset it."""
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    return error.strerror or "it does not answer"
