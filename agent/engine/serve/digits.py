"""Integers between two bounds as a GBNF expression. A core, for `json_grammar.py`.

between 7 and 123   →   [7-9] | [1-9] [0-9] | "1" ([0-1] [0-9] | "2" [0-3])
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.errors import UsageError

# What a double holds exactly, and what every JSON reader takes.
MAX_DIGITS = 16


def integers(low: int | None, high: int | None) -> str:
    """Return an expression for the integers from `low` to `high`; None is no bound.

    Raises UsageError when there is none, or a bound is too large.
    """
    most = 10**MAX_DIGITS - 1
    low, high = -most if low is None else low, most if high is None else high
    if low > high:
        raise UsageError(f"there is no integer from {low} to {high}.")
    if low < -most or high > most:
        raise UsageError(f"integers of more than {MAX_DIGITS} digits are not supported.")
    options = []
    if low < 0:
        options += [f'"-" {each}' for each in _naturals(max(1, -high), -low)]
    if high >= 0:
        options += _naturals(max(0, low), high)
    return " | ".join(options)


def _naturals(low: int, high: int) -> Iterator[str]:
    """Yield an expression for each number of digits."""
    for count in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 0 if count == 1 else 10 ** (count - 1))
        last = min(high, 10**count - 1)
        yield _between(str(first), str(last))


def _between(low: str, high: str) -> str:
    """Return an expression for the digits from `low` to `high`, which have the same number."""
    rest = len(low) - 1
    if not rest:
        return _digit(low, high)
    if low[0] == high[0]:
        return f'"{low[0]}" {_between(low[1:], high[1:])}'
    first, last = int(low[0]), int(high[0])
    options = []
    if low[1:] != "0" * rest:
        options.append(f'"{first}" {_between(low[1:], "9" * rest)}')
        first += 1
    tail = None
    if high[1:] != "9" * rest:
        tail = f'"{last}" {_between("0" * rest, high[1:])}'
        last -= 1
    if first <= last:
        options.append(f"{_digit(str(first), str(last))} [0-9]{{{rest}}}")
    if tail:
        options.append(tail)
    return options[0] if len(options) == 1 else f"({' | '.join(options)})"


def _digit(low: str, high: str) -> str:
    return f'"{low}"' if low == high else f"[{low}-{high}]"
