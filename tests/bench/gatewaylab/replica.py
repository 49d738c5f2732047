"""An OpenAI server that costs next to nothing, so that a gateway before it is what is measured.

    replica.py PORT        serves on the loopback until its stdin ends

It answers at once; a stream has `max_tokens` chunks, each `TOKEN_S` after the one before, and every
chunk is a write of its own. What it says is always the same, so that bytes can be compared.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys

MODEL = "bench"
TOKEN_S = 0.002

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_STREAM = re.compile(rb'"stream": *true')
_TOKENS = re.compile(rb'"max_tokens": *(\d+)')
_COMMON = {"id": "chatcmpl-1", "created": 1, "model": MODEL}


def _whole(body: object) -> bytes:
    text = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(text), text,
    )  # fmt: skip


def _event(data: bytes) -> bytes:
    event = b"data: %s\n\n" % data
    return b"%x\r\n%s\r\n" % (len(event), event)


_MESSAGE = {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog."}
_USAGE = {"prompt_tokens": 12, "completion_tokens": 10, "total_tokens": 22}
ANSWER = _whole(
    {**_COMMON, "object": "chat.completion", "usage": _USAGE,
     "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}]}
)  # fmt: skip
MODELS = _whole({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]})
HEALTHY = _whole({"status": "ok"})
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = _event(
    json.dumps(
        {**_COMMON, "object": "chat.completion.chunk",
         "choices": [{"index": 0, "delta": {"content": " fox"}, "finish_reason": None}]}
    ).encode()
)  # fmt: skip
END = _event(b"[DONE]") + b"0\r\n\r\n"


class Replica(asyncio.Protocol):
    """One connection."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._got = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._got, 0, head)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(self._got) < end:
            return
        request, self._got = self._got[:end], self._got[end:]
        if not request.startswith(b"POST"):
            path = request.split(b" ", 2)[1]
            known = {b"/v1/models": MODELS, b"/health": HEALTHY}
            self._transport.write(known.get(path, MISSING))
        elif _STREAM.search(request, head):
            tokens = _TOKENS.search(request, head)
            self._transport.write(HEAD + TOKEN)
            self._loop.call_later(TOKEN_S, self._token, int(tokens[1]) - 1 if tokens else 0)
        else:
            self._transport.write(ANSWER)

    def _token(self, left: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(TOKEN if left else END)
        if left:
            self._loop.call_later(TOKEN_S, self._token, left - 1)


async def main(port: int) -> None:
    """Serve until nobody needs it any more."""
    loop = asyncio.get_running_loop()
    await loop.create_server(Replica, "127.0.0.1", port, backlog=1024)
    gc.disable()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
