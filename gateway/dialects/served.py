"""Which dialects are served, by the path that clients POST to. A core, used by `app.py`."""

from __future__ import annotations

from gateway.dialects import anthropic, responses
from gateway.dialects.port import Dialect

DIALECTS: dict[str, Dialect] = {
    "/v1/messages": anthropic.Messages(),
    "/v1/messages/count_tokens": anthropic.CountTokens(),
    "/v1/responses": responses.Responses(),
}
