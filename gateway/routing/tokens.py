"""How many tokens a prompt has, from its bytes.

A core. Each model has its own tokens, so the bytes for each are learned from what its answers say
that they cost (`gateway/usage.py`).
"""

from __future__ import annotations

# English prose with most vocabularies; JSON's own quotes and field names are counted as prompt.
BYTES_PER_TOKEN = 4.0
# The prior weighs as much as a short prompt; the last hundred or so answers decide.
_PRIOR_TOKENS = 50.0
_FORGET = 0.99
# Beyond these it is no text: an image in base64, or a prompt whose template is longer than it.
_LEAST, _MOST = 0.5, 16.0


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
