"""Break a client's connection off, so that nobody takes what it got for a whole answer.

A shell, used by `upstream.py` and `bounds.py` once an answer's status has left.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import aiohttp
from aiohttp import web

_RESET = struct.pack("ii", 1, 0)


def cut(request: web.Request, *, framed: bool) -> None:
    """Break the connection off; `framed`: the answer has chunks or a length.

    Without its last chunk, or short of its length, an answer is broken to every client. One that
    has neither (HTTP/1.0) is whole when its connection is closed, so that one is reset.
    """
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None and not framed and request.version < aiohttp.HttpVersion11:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
