"""An OpenAI server of llama.cpp alone, such as a house has before it has Covey.

`python plain_server.py ADDRESS PORT MODEL.gguf`, with a Python that has llama_cpp. It streams one
chat at a time and knows nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import llama_cpp


class Handler(BaseHTTPRequestHandler):
    """Lists the model, and streams chats."""

    model: llama_cpp.Llama

    def do_GET(self) -> None:
        """Answer with the list of models."""
        body = json.dumps({"object": "list", "data": [{"id": "plain", "object": "model"}]}).encode()
        self._begin("application/json")
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Stream a chat."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._begin("text/event-stream")
        pieces: Iterator[Any] = self.model.create_chat_completion(
            asked["messages"], max_tokens=asked["max_tokens"], temperature=0.0, stream=True
        )
        for piece in pieces:
            self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()


if __name__ == "__main__":
    address, port, model = sys.argv[1:]
    Handler.model = llama_cpp.Llama(model, n_ctx=512, verbose=False)
    HTTPServer((address, int(port)), Handler).serve_forever()
