"""The comparison as a page of Markdown, and as JSON. A core; keys are in neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.comparing.timing import Figures, Run, figures
from agent.comparing.verdict import LEAST_ROUNDS, Outcome, Verdict, overall, verdict
from agent.comparing.wish import Server, Wish

_WORDS: dict[Outcome, str] = {"go": "Go", "no go": "No go", "undecided": "Not decided"}


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Under which it was measured: the time, and facts in words by what they are about."""

    when: str
    facts: dict[str, str] = {}


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured with so many chats at once; `rounds` and `figures` in servers' order.

    `verdicts` are ours with each of the others.
    """

    streams: int
    rounds: tuple[tuple[Run, ...], ...]
    figures: tuple[Figures, ...]
    verdicts: tuple[Verdict, ...]


def levels(wish: Wish, found: Mapping[int, Sequence[tuple[Run, ...]]]) -> tuple[Level, ...]:
    """Return figures and verdicts of what `asking.measure` returns."""
    return tuple(
        Level(
            streams,
            tuple(rounds),
            tuple(figures([runs[index] for runs in rounds]) for index in range(len(wish.servers))),
            tuple(
                verdict([(runs[0], runs[1 + index]) for runs in rounds], wish.threshold_percent)
                for index in range(len(wish.others))
            ),
        )
        for streams, rounds in found.items()
    )


def outcome(compared: Sequence[Level]) -> Outcome | None:
    """Return what all verdicts come to, None where there is none."""
    found = [one.outcome for level in compared for one in level.verdicts]
    return overall(found) if found else None


def headline(wish: Wish, compared: Sequence[Level]) -> str:
    """Return the verdict as one line: the one that decides."""
    decides = outcome(compared)
    for level in compared:
        for other, one in zip(wish.others, level.verdicts, strict=True):
            if one.outcome == decides:
                several = len(wish.others) > 1 or len(wish.streams) > 1
                where = f" against {other.title}, {_chats(level.streams)}" if several else ""
                return sentence(one, where)
    first = compared[0].figures[0]
    return f"{first.tokens_s:.1f} tokens/s, compared with nothing."


def sentence(found: Verdict, where: str = "") -> str:
    """Return one verdict as a sentence; `where` says of what."""
    more = "more" if found.speedup_percent >= 0 else "fewer"
    low, high = found.speedup_percent_range
    doubt = ""
    if found.outcome == "undecided":
        why = (
            f"its rounds differ more than that ({low:+.0f} to {high:+.0f} %)"
            if found.rounds >= LEAST_ROUNDS
            else f"fewer than {LEAST_ROUNDS} rounds say nothing of chance"
        )
        doubt = f", but {why}; measure more of them, with nothing else at work"
    return (
        f"{_WORDS[found.outcome]}: {abs(found.speedup_percent):.0f} % {more} tokens/s{where}, "
        f"{found.threshold_percent:g} % more are wanted{doubt}."
    )


def markdown(wish: Wish, compared: Sequence[Level], conditions: Conditions) -> str:
    """Return the page."""
    against = ", ".join(other.title for other in wish.others) or "nothing"
    rounds = "One round" if wish.rounds == 1 else f"Medians of {wish.rounds} rounds"
    asked = f"prompts of about {wish.prompt_tokens} tokens and " if wish.prompt_tokens else ""
    lines = [f"# Covey against {against}", "", headline(wish, compared), ""]
    for level in compared:
        if len(compared) > 1:
            lines += [f"## {_chats(level.streams).capitalize()}", ""]
        lines += [*_table(wish, level), ""]
    lines += [
        f"{rounds} (the least to the most), {_all_chats(wish)}: {asked}answers of up to "
        f"{wish.tokens} tokens, the same for all and in turns, {conditions.when}. tokens/s are "
        "those after the first, of all chats together. Of the speed-up stands behind it where it "
        f"is nine times of ten. Go from {wish.threshold_percent:g} % more tokens/s on.",
        "",
    ]
    lines += [f"* {name}: {fact}" for name, fact in conditions.facts.items()]
    return "\n".join(lines).rstrip() + "\n"


def document(wish: Wish, compared: Sequence[Level], conditions: Conditions) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "when": conditions.when,
        "outcome": outcome(compared),
        "headline": headline(wish, compared),
        "threshold_percent": wish.threshold_percent,
        "rounds": wish.rounds,
        "tokens": wish.tokens,
        "prompt_tokens": wish.prompt_tokens,
        "servers": [
            {"name": one.title, "url": one.base, "model": one.model} for one in wish.servers
        ],
        "conditions": conditions.facts,
        "levels": [
            {
                "streams": level.streams,
                "servers": [
                    {"name": server.title, **msgspec.to_builtins(its)}
                    for server, its in zip(wish.servers, level.figures, strict=True)
                ],
                "verdicts": [
                    {"against": other.title, **msgspec.to_builtins(one)}
                    for other, one in zip(wish.others, level.verdicts, strict=True)
                ],
                "rounds": msgspec.to_builtins(level.rounds),
            }
            for level in compared
        ],
    }


def _table(wish: Wish, level: Level) -> list[str]:
    lines = [
        "| | tokens/s | time to first token | Covey's speed-up | its first token | |",
        "|---|---|---|---|---|---|",
        _row(wish.ours, level.figures[0], ("", "", "")),
    ]
    for other, theirs, one in zip(wish.others, level.figures[1:], level.verdicts, strict=True):
        low, high = one.speedup_percent_range
        speedup = f"{one.speedup_percent:+.0f} % ({low:+.0f} to {high:+.0f})"
        lines.append(_row(other, theirs, (speedup, _sooner(one), _WORDS[one.outcome])))
    return lines


def _row(server: Server, figures: Figures, more: tuple[str, str, str]) -> str:
    named = f"{server.title}: `{server.model}` at {server.base}".replace("|", "\\|")
    return f"| {' | '.join([named, _rate(figures), _wait(figures), *more])} |"


def _chats(streams: int) -> str:
    return "one chat" if streams == 1 else f"{streams} chats at once"


def _all_chats(wish: Wish) -> str:
    return " and then ".join(_chats(streams) for streams in wish.streams)


def _rate(figures: Figures) -> str:
    low, high = figures.tokens_s_range
    return f"{figures.tokens_s:.1f} ({low:.1f} to {high:.1f})"


def _wait(figures: Figures) -> str:
    low, high = figures.first_token_s_range
    return f"{_ms(figures.first_token_s)} ms ({_ms(low)} to {_ms(high)})"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}"


def _sooner(found: Verdict) -> str:
    percent = found.first_token_percent
    return f"{abs(percent):.0f} % {'sooner' if percent >= 0 else 'later'}"
