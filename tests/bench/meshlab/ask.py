"""A client that is there before what it asks: its own start does not count.

    python ask.py

Reads lines of JSON {"base": URL, "body": …}, sends each as a completion that is streamed, and
writes when each piece of text came (time.monotonic(), which all processes of a machine share).
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

# The longest wait for a byte.
_LIMIT_S = 120.0


def ask(base: str, body: dict[str, object]) -> list[float]:
    """Return when the pieces of one answer came."""
    place = urlsplit(base)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_LIMIT_S)
    connection.request(
        "POST", "/v1/completions", json.dumps(body | {"stream": True}),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{base} answered {response.status}: {response.read(300)!r}")
    came = []
    while line := response.readline():
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
            came.append(time.monotonic())
    connection.close()
    return came


if __name__ == "__main__":
    print("ready", flush=True)
    for wish in sys.stdin:
        print(json.dumps(ask(**json.loads(wish))), flush=True)
