"""How many tokens a prompt has, from its bytes, and what an answer's end says of them.

A core. Each model has its own tokens, so the bytes for each are learned from the `usage` of its
answers; the gateway reads that from the last bytes of an answer and from nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# English prose with most vocabularies; JSON's own quotes and field names are counted as prompt.
BYTES_PER_TOKEN = 4.0
# The prior weighs as much as a short prompt; the last hundred or so answers decide.
_PRIOR_TOKENS = 50.0
_FORGET = 0.99
# Beyond these it is no text: an image in base64, or a prompt whose template is longer than it.
_LEAST, _MOST = 0.5, 16.0
# `usage` and what servers put behind it: a fingerprint, timings, the end of the stream.
TAIL_BYTES = 2048

_NAME = b'"usage"'
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_COUNTS = re.compile(rb'"(prompt_tokens|completion_tokens|cached_tokens)"\s*:\s*(\d{1,9})\b')


@dataclass(frozen=True)
class Usage:
    """What an answer says of its tokens; None: it does not say."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


def usage(tail: bytes) -> Usage:
    """Return the usage in the last bytes of an answer, whole or streamed."""
    at = tail.rfind(_NAME)  # the last one counts
    while at >= 0 and not _USAGE.match(tail, at):
        at = tail.rfind(_NAME, 0, at)
    if at < 0:
        return Usage()
    found = {name: int(count) for name, count in _COUNTS.findall(tail, at)}
    return Usage(found.get(b"prompt_tokens"), found.get(b"completion_tokens"),
                 found.get(b"cached_tokens"))  # fmt: skip


class BytesPerToken:
    """The ratio of one model, learned from its answers."""

    def __init__(self) -> None:
        self._tokens = _PRIOR_TOKENS
        self._bytes = _PRIOR_TOKENS * BYTES_PER_TOKEN

    @property
    def value(self) -> float:
        """Bytes of a request's prompt for each of its tokens."""
        return min(max(self._bytes / self._tokens, _LEAST), _MOST)

    def learn(self, prompt_bytes: int, tokens: int) -> None:
        """Note that a prompt of so many bytes had so many tokens."""
        if prompt_bytes <= 0 or tokens <= 0:
            return
        self._bytes = self._bytes * _FORGET + prompt_bytes
        self._tokens = self._tokens * _FORGET + tokens
