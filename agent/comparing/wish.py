"""What is compared, as it is read from stdin, and the chats that all servers get. A core."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_SUBJECTS = (
    "the tides", "how bread rises", "a harbour town in winter", "the history of the bicycle",
    "how bees find their way", "rain on a tin roof", "why glass is clear", "an old lighthouse",
)  # fmt: skip
# What long prompts are filled with: words that any vocabulary has.
_FILLER = (
    "the", "sea", "is", "calm", "and", "the", "day", "is", "long", "while", "boats", "go", "out",
    "to", "where", "the", "water", "is", "deep",
)  # fmt: skip

_Streams = Annotated[int, msgspec.Meta(ge=1, le=256)]


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

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name or self.base.partition("//")[2]


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to compare: ours with each other server, in rounds, with so many chats at once.

    `tokens` is what an answer has at most, `prompt_tokens` about what a prompt has; 0: as short as
    it comes. `salt` begins every prompt, so that nothing of it is cached from a comparison before.
    """

    ours: Server
    others: tuple[Server, ...] = ()
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    streams: Annotated[tuple[_Streams, ...], msgspec.Meta(min_length=1, max_length=16)] = (1,)
    tokens: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = 128
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    threshold_percent: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    # Seconds for the first token and between two: a model may have to be loaded first.
    patience_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    salt: Annotated[str, msgspec.Meta(max_length=64)] = ""

    @property
    def servers(self) -> tuple[Server, ...]:
        """All of them, ours first."""
        return self.ours, *self.others


def chat(wish: Wish, model: str, run: int, stream: int, filler: int = 0) -> dict[str, Any]:
    """Return the request of one chat of run `run`: the same for all servers but for the model.

    It begins with the run's number, so that no server has a prompt's beginning cached from before.
    `filler` words come before what is asked.
    """
    subject = _SUBJECTS[(run + stream) % len(_SUBJECTS)]
    start = (run + stream) % len(_FILLER)
    words = [_FILLER[(start + number) % len(_FILLER)] for number in range(filler)]
    asked = f"Write a long, detailed essay about {subject}."
    text = " ".join([f"Note {wish.salt}{run}.{stream}.", *words, asked])
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": wish.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
