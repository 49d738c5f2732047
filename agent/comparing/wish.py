"""What is compared, as it is read from stdin, and the chats that both servers get. A core."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_SUBJECTS = (
    "the tides", "how bread rises", "a harbour town in winter", "the history of the bicycle",
    "how bees find their way", "rain on a tin roof", "why glass is clear", "an old lighthouse",
)  # fmt: skip


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenAI server: its base URL with or without /v1, a model or "" for its only one, a key."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s?#@]+$")]
    model: str = ""
    key: str = ""
    name: str = ""
    # Its certificate may be one that it signed itself.
    verify_tls: bool = True

    @property
    def base(self) -> str:
        """The URL that /v1/… follows."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to compare: runs of each, chats at once in a run, tokens of an answer at most."""

    ours: Server
    theirs: Server
    runs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    streams: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    tokens: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = 128
    threshold_percent: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    # Seconds for the first token and between two: a model may have to be loaded first.
    patience_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0


def chat(wish: Wish, model: str, run: int, stream: int) -> dict[str, Any]:
    """Return the request of one chat of run `run`: the same for both servers but for the model.

    It begins with the run's number, so that no server has a prompt's beginning cached from before.
    """
    subject = _SUBJECTS[(run + stream) % len(_SUBJECTS)]
    text = f"Note {run}.{stream}. Write a long, detailed essay about {subject}."
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": wish.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
