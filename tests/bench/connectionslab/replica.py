"""A replica in this process that knows who is connected: answers, endless streams, and silence.

It answers a chat request at once, with "stream" it streams until its client is gone, and with
"wait" it says nothing at all.
"""

from __future__ import annotations

import asyncio
import re
import socket

MODEL = "bench"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_PIECE = b"data: %s\n\n" % (b"x" * 4000)
_CHUNK = b"%x\r\n%s\r\n" % (len(_PIECE), _PIECE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_SEND_BUFFER_BYTES = 16 * 2**10


def _whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


_MODELS = _whole(b'{"object":"list","data":[{"id":"%s"}]}' % MODEL.encode())
_ANSWER = _whole(b'{"object":"chat.completion","choices":[]}')


class Replica:
    """Listens on `port` once started; `connected` is how many gateway's connections there are."""

    def __init__(self) -> None:
        self.connected = 0
        self.busy = 0
        self.port = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", 0, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.close()


class _Connection(asyncio.Protocol):
    _transport: asyncio.Transport

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._got = b""
        self._busy = False
        self._streams = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # What waits in the kernel is nobody's to measure here.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES
        )
        self._replica.connected += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._replica.connected -= 1
        self._replica.busy -= self._busy
        self._streams = False

    def data_received(self, data: bytes) -> None:
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._got, 0, head)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(self._got) < end:
            return
        asked, self._got = self._got[:end], self._got[end:]
        if asked.startswith(b"GET"):
            self._transport.write(_MODELS)
        elif b'"stream"' in asked or b'"wait"' in asked:
            self._busy = True
            self._replica.busy += 1
            if b'"stream"' in asked:
                self._streams = True
                self._transport.write(_HEAD)
                self._stream()
        else:
            self._transport.write(_ANSWER)

    def pause_writing(self) -> None:
        self._streams = False

    def resume_writing(self) -> None:
        self._streams = True
        self._stream()

    def _stream(self) -> None:
        while self._streams and not self._transport.is_closing():
            self._transport.write(_CHUNK)
