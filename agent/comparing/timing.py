"""What one run of a server was like: the time to the first token, and tokens a second. A core.

A run is one or more chats at once. Its rate counts the tokens after each chat's first, over the
seconds from the first token of all to the last of all: what answers come with, without what their
prompts took, which the time to the first token shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class Chat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer: seconds on one clock, and its tokens as the server counted them.

    `prompt_tokens` 0: it did not say.
    """

    asked_at: float
    first_at: float
    last_at: float
    tokens: int
    prompt_tokens: int = 0


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run's figures: seconds to the first token (the median of its chats), tokens a second.

    `tokens` of all its answers, `prompt_tokens` of one of its prompts (the median; 0: not known).
    """

    first_token_s: float
    tokens_s: float
    tokens: int
    prompt_tokens: int = 0


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All runs' medians, the least and the most."""

    first_token_s: float
    first_token_s_range: tuple[float, float]
    tokens_s: float
    tokens_s_range: tuple[float, float]
    tokens: int
    prompt_tokens: int


def run_of(chats: Sequence[Chat]) -> Run | None:
    """Return what chats that ran at once come to, or None where too few tokens came to tell."""
    first = min(chat.first_at for chat in chats)
    seconds = max(chat.last_at for chat in chats) - first
    tokens = sum(chat.tokens for chat in chats)
    following = tokens - len(chats)
    if following < len(chats) or seconds <= 0:
        return None
    waits = [chat.first_at - chat.asked_at for chat in chats]
    prompt = statistics.median_low([chat.prompt_tokens for chat in chats])
    return Run(statistics.median(waits), following / seconds, tokens, prompt)


def figures(runs: Sequence[Run]) -> Figures:
    """Return the medians of one run or more."""
    waits = [run.first_token_s for run in runs]
    rates = [run.tokens_s for run in runs]
    return Figures(
        statistics.median(waits), (min(waits), max(waits)),
        statistics.median(rates), (min(rates), max(rates)),
        statistics.median_low([run.tokens for run in runs]),
        statistics.median_low([run.prompt_tokens for run in runs]),
    )  # fmt: skip
