"""/tokenize and /detokenize: texts, chats and token ids, checked, and the forms of the answers.

A core, used by `app.py`. The forms are llama-server's; a chat in place of `content` is ours, so
that a client may count what its chat takes, and so are the bounds: an answer is many times as large
as its request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.engine.serve.fields import convert, json_fields
from agent.engine.serve.openai import ApiError, Json
from agent.engine.serve.sampling import TokenId
from agent.engine.serve.schema import ChatAsk, parse_chat

# The largest contexts; an answer of so many tokens is about 8 MB of JSON.
MAX_TOKENS = 2**20
# With its piece, a token takes about 300 bytes of memory until it is sent.
MAX_PIECES = 2**16


@dataclass(frozen=True)
class TokenizeAsk:
    """A text, or a chat for the model's template; the two below say how a text is read.

    `add_special`: with what the model wants around a text, such as a BOS. `parse_special`: control
    tokens in the text are such, and not text.
    """

    model: str
    given: str | ChatAsk
    add_special: bool
    parse_special: bool
    with_pieces: bool

    def check_fits(self, tokens: int) -> None:
        """Raise ApiError if the answer would be too large."""
        most = MAX_PIECES if self.with_pieces else MAX_TOKENS
        if tokens <= most:
            return
        raise ApiError(
            f"This makes {tokens} tokens; an answer holds {most} at most"
            + (" with their pieces" if self.with_pieces else ""),
            hint="Split it." if tokens > MAX_TOKENS else "Split it, or leave `with_pieces` out.",
            param="messages" if isinstance(self.given, ChatAsk) else "content",
        )


@dataclass(frozen=True)
class DetokenizeAsk:
    """The ids of tokens whose text is wanted."""

    model: str
    ids: tuple[int, ...]


class _Request(msgspec.Struct, frozen=True):
    model: str | None = None
    content: str | None = None
    messages: list[Any] | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class _Detokenize(msgspec.Struct, frozen=True):
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_TOKENS)]
    model: str | None = None


def parse_tokenize(body: bytes, served: str) -> TokenizeAsk:
    """Return the checked request of /tokenize; `served` is the model where it names none.

    A chat has the fields of /v1/chat/completions, which are checked as they are there. Raises
    ApiError.
    """
    request = convert(json_fields(body, {}), _Request)
    if (request.content is None) == (request.messages is None):
        raise ApiError(
            "The request must have either `content`, a text, or the `messages` of a chat",
            param="content",
        )
    return TokenizeAsk(
        model=request.model or served,
        given=parse_chat(body, served) if request.content is None else request.content,
        add_special=bool(request.add_special),
        parse_special=request.parse_special is not False,
        with_pieces=bool(request.with_pieces),
    )


def parse_detokenize(body: bytes, served: str) -> DetokenizeAsk:
    """Return the checked request of /detokenize, `served` as above; raises ApiError."""
    request = convert(json_fields(body, {}), _Detokenize)
    return DetokenizeAsk(request.model or served, request.tokens)


def tokens_object(ids: Sequence[int], pieces: Sequence[bytes] | None) -> Json:
    """Return the answer of /tokenize, with the piece of each token where they are given."""
    if pieces is None:
        return {"tokens": list(ids)}
    return {
        "tokens": [
            {"id": token, "piece": _piece(piece)} for token, piece in zip(ids, pieces, strict=True)
        ]
    }


def _piece(piece: bytes) -> str | list[int]:
    """Return a piece as text, or its bytes where it is only a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
