"""The comparison as a page of Markdown, and as JSON. A core; keys are in neither."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.comparing.timing import Figures
from agent.comparing.verdict import Verdict
from agent.comparing.wish import Server, Wish


def headline(verdict: Verdict) -> str:
    """Return the verdict as one sentence."""
    word = "Go" if verdict.go else "No go"
    more = "more" if verdict.speedup_percent >= 0 else "fewer"
    low, high = verdict.speedup_percent_range
    doubt = "" if verdict.sure else (
        f" Not sure: its runs differ ({low:+.0f} to {high:+.0f} %); measure more of them."
    )  # fmt: skip
    return (
        f"{word}: {abs(verdict.speedup_percent):.0f} % {more} tokens/s, "
        f"{verdict.threshold_percent:g} % more are wanted.{doubt}"
    )


def markdown(wish: Wish, verdict: Verdict, when: str) -> str:
    """Return the page; `when` is the time of the comparison, as text."""
    ours, theirs = verdict.ours, verdict.theirs
    runs = "One run" if wish.runs == 1 else f"Medians of {wish.runs} runs (the least to the most)"
    chats = "one chat" if wish.streams == 1 else f"{wish.streams} chats at once"
    return f"""# Covey against {_title(wish.theirs, "the other server")}

{headline(verdict)}

| | tokens/s | time to first token |
|---|---|---|
| {_named(wish.ours, "Covey")} | {_rate(ours)} | {_wait(ours)} |
| {_named(wish.theirs, "the other")} | {_rate(theirs)} | {_wait(theirs)} |
| difference | {verdict.speedup_percent:+.0f} % | {_sooner(verdict)} |

{runs}, {chats} of up to {wish.tokens} tokens each, \
the same for both and in turns, {when}.
"""


def document(wish: Wish, verdict: Verdict, when: str) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "when": when,
        "ours": _public(wish.ours),
        "theirs": _public(wish.theirs),
        "runs": wish.runs,
        "streams": wish.streams,
        "tokens": wish.tokens,
        "verdict": msgspec.to_builtins(verdict),
        "headline": headline(verdict),
    }


def _public(server: Server) -> dict[str, Any]:
    return {"name": server.name, "url": server.url, "model": server.model}


def _title(server: Server, otherwise: str) -> str:
    return server.name or otherwise


def _named(server: Server, otherwise: str) -> str:
    return f"{_title(server, otherwise)}: `{server.model}` at {server.base}".replace("|", "\\|")


def _rate(figures: Figures) -> str:
    low, high = figures.tokens_s_range
    return f"{figures.tokens_s:.1f} ({low:.1f} to {high:.1f})"


def _wait(figures: Figures) -> str:
    low, high = figures.first_token_s_range
    return f"{_ms(figures.first_token_s)} ms ({_ms(low)} to {_ms(high)})"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}"


def _sooner(verdict: Verdict) -> str:
    percent = verdict.first_token_percent
    return f"{abs(percent):.0f} % {'sooner' if percent >= 0 else 'later'}"
