"""What is noted of a request while it is served: for metrics, the access log and its span.

A core. `observe.py` makes one for each request; who serves the request fills in what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.tracing import Context

# By path: the operation's name in OpenTelemetry's GenAI conventions. Counting tokens is none.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/api/chat": "chat",
    "/v1/completions": "text_completion",
    "/api/generate": "text_completion",
    "/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/v1/rerank": "rerank",
}
# A model's name may be a stranger's text; of it so many letters are written down.
MOST_LETTERS = 256
# What nginx writes for a client that left before its answer began.
LEFT_STATUS = 499
# Errors that say no more than that the client has gone.
CLIENTS = frozenset({"cancelled", "client_left"})


@dataclass(eq=False)
class Record:
    """One request; times in seconds on the clock of time.monotonic, `unix_ns` on the other one.

    `error` is what OpenTelemetry calls error.type: a word of ours, or a status; empty: none.
    `key` is its key's name, empty for nobody's. `refused`: the gateway itself said no, for the
    reason that `error` has. `hedge`: it was `sent` to a second replica as well, or that one `won`.
    """

    operation: str
    trace: Context
    begun: float
    unix_ns: int
    model: str = ""
    key: str = ""
    key_id: str = ""
    replica: str = ""
    streamed: bool = False
    body: bytes = b""
    attempts: int = 0
    hedge: str = ""
    first_at: float | None = None
    ended: float = 0.0
    status: int = 0  # 0: none has left yet
    sent_bytes: int = 0
    prompt: int | None = None  # tokens, where the answer says
    completion: int | None = None
    error: str = ""
    refused: bool = False

    @property
    def failed(self) -> bool:
        """Whether it went wrong, and not by what its client did."""
        clients = self.error in CLIENTS or 400 <= self.status < 500
        return bool(self.error) and not clients

    @property
    def seconds(self) -> float:
        """How long it took, to the end of its answer."""
        return max(self.ended - self.begun, 0.0)

    @property
    def first_s(self) -> float | None:
        """After how long the answer's first byte was there; None: it never was."""
        return None if self.first_at is None else max(self.first_at - self.begun, 0.0)

    @property
    def token_s(self) -> float | None:
        """How long each token after the first took, of a stream that says how many they were."""
        if not self.streamed or self.first_at is None or (self.completion or 0) < 2:
            return None
        return max(self.ended - self.first_at, 0.0) / ((self.completion or 0) - 1)
