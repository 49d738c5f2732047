"""Server-sent events, as OpenAI's streams use them. A core, used by `app.py`."""

from __future__ import annotations

from typing import Any

import msgspec

# The proxies that buffer by default (nginx) are told not to.
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
DONE = b"data: [DONE]\n\n"
# A comment: clients skip it, and proxies see that the connection is alive.
STILL_WORKING = b": still working\n\n"


def event(value: dict[str, Any]) -> bytes:
    """Return one event; JSON holds no raw line break, so it is always one `data:` line."""
    return b"data: %s\n\n" % msgspec.json.encode(value)
