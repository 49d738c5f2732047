"""What of a GBNF grammar has to be known before llama.cpp reads it: its size, and that it ends.

A core, for `grammar.py`. llama.cpp's parser calls itself for each bracket, and writes repetitions
out. Of left recursion it finds that of rules which are empty by their own text alone: with any
other, its matcher grows without end. So this looks at which rules can begin with themselves.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.errors import UsageError

# A schema of a hundred properties needs some 20 KB.
MAX_BYTES = 128 * 2**10
MAX_DEPTH = 100
# llama.cpp takes at most 2,000 in one place.
MAX_REPEATED = 20_000

_TOKENS = re.compile(
    r"""
    (?P<skip>   \s+ | \#[^\n]* )
  | (?P<rule>   [\w-]+ (?= \s* ::= ) ) \s* ::=
  | (?P<name>   [\w-]+ )
  | (?P<text>   " (?: \\. | [^"\\] )* " | \[ (?: \\. | [^\]\\] )* \] | \. | !?<[^>]*> )
  | (?P<times>  [*+?] | \{ [\d\s]* ,? [\d\s]* \} )
  | (?P<mark>   [()|] )
    """,
    re.VERBOSE | re.DOTALL,
)
_HINT = "It needs a rule `root`, every rule that it names, and no left recursion."


@dataclass(eq=False)
class _Item:
    """A part of a sequence: a rule's `name`, alternatives, or text; `empty`: it may be absent."""

    name: str = ""
    options: list[list[_Item]] = field(default_factory=list)
    empty: bool = False
    loops: bool = False


def check(text: str) -> None:
    """Raise UsageError for a grammar that is too large, that has no end, or that is none."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise UsageError(f"the grammar is larger than {MAX_BYTES} bytes.", hint="Make it smaller.")
    _check_ends(_read(text))


def _read(text: str) -> dict[str, _Item]:
    """Return the rules; what this lets through, llama.cpp still has to understand."""
    rules: dict[str, _Item] = {}
    stack: list[_Item] = []
    at = repeated = 0
    while at < len(text):
        token = _TOKENS.match(text, at)
        if token is None:
            raise _unreadable(f"nothing begins with {text[at : at + 10]!r} there")
        at = token.end()
        sequence = stack[-1].options[-1] if stack else None
        kind = token.lastgroup
        if kind == "skip":
            continue
        if kind == "rule":
            if len(stack) > 1:
                raise _unreadable(f"a bracket is open before {token['rule']}")
            # Alternatives may be added to a rule later.
            rule = rules.setdefault(token["rule"], _Item())
            rule.options.append([])
            stack = [rule]
        elif sequence is None:
            raise _unreadable(f"it begins with {token[0][:10]!r}")
        elif kind == "name":
            sequence.append(_Item(name=token["name"]))
        elif kind == "text":
            sequence.append(_Item(empty=token["text"] == '""'))
        elif kind == "times":
            if not sequence:
                raise _unreadable(f"{token['times'][:10]!r} has nothing to repeat")
            repeated += _repeat(sequence, token["times"])
        elif token["mark"] == "(":
            stack.append(_Item(options=[[]]))
            sequence.append(stack[-1])
        elif token["mark"] == "|":
            stack[-1].options.append([])
        elif len(stack) > 1:
            stack.pop()
        else:
            raise _unreadable("a bracket closes that was not open")
        if len(stack) > MAX_DEPTH:
            raise UsageError(
                f"the grammar's brackets are more than {MAX_DEPTH} deep.", hint="Use more rules."
            )
        if repeated > MAX_REPEATED:
            raise UsageError(
                f"the grammar repeats more than {MAX_REPEATED} times in all.",
                hint="Use `*` instead of large counts.",
            )
    if len(stack) > 1:
        raise _unreadable("a bracket stays open")
    return rules


def _repeat(sequence: list[_Item], times: str) -> int:
    """Have the last item of a sequence repeated; returns how often it is written out."""
    counts = [int(number[:9]) for number in re.findall(r"\d+", times)]
    endless = times in "*+" or bool(re.search(r",\s*\}", times))
    least = {"*": 0, "?": 0, "+": 1}.get(times, 0 if "{" in times and not counts else -1)
    if least < 0:
        least = 0 if re.match(r"\{\s*,", times) else counts[0]
    inner = _Item(options=[[sequence[-1]]], empty=least == 0, loops=endless)
    sequence[-1] = inner
    return max(counts, default=0)


def _check_ends(rules: dict[str, _Item]) -> None:
    """Raise UsageError for rules that are missing, or that can begin with themselves."""
    users: defaultdict[str, list[str]] = defaultdict(list)
    for name, rule in rules.items():
        for item in _within(rule):
            if item.name:
                users[item.name].append(name)
    missing = users.keys() - rules.keys()
    if "root" not in rules or missing:
        raise _unreadable(f"it has no rule {min(missing, default='root')}")
    empty: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in empty and _may_be_empty(rules[name], empty):
            empty.add(name)
            waiting += users[name]
    beginnings = {name: set(_beginnings(rule, empty)) for name, rule in rules.items()}
    for rule in rules.values():
        for item in _within(rule):
            if item.loops and any(_all_empty(option, empty) for option in item.options):
                raise _unreadable("something that may be empty is repeated without end")
    # What begins with text alone cannot begin with itself, nor what begins with that, and so on.
    begun_by: defaultdict[str, list[str]] = defaultdict(list)
    for name, first in beginnings.items():
        for other in first:
            begun_by[other].append(name)
    left = {name: len(first) for name, first in beginnings.items()}
    waiting = [name for name, count in left.items() if not count]
    while waiting:
        name = waiting.pop()
        del left[name]
        for other in begun_by[name]:
            left[other] -= 1
            if not left[other]:
                waiting.append(other)
    if left:
        raise _unreadable(f"the rule {min(left)} is left-recursive")


def _within(item: _Item) -> Iterator[_Item]:
    yield item
    for option in item.options:
        for part in option:
            yield from _within(part)


def _may_be_empty(item: _Item, empty: set[str]) -> bool:
    if item.empty or item.name in empty:
        return True
    return any(_all_empty(option, empty) for option in item.options)


def _all_empty(option: list[_Item], empty: set[str]) -> bool:
    return all(_may_be_empty(part, empty) for part in option)


def _beginnings(item: _Item, empty: set[str]) -> Iterator[str]:
    """Yield the rules that an item can begin with."""
    if item.name:
        yield item.name
    for option in item.options:
        for part in option:
            yield from _beginnings(part, empty)
            if not _may_be_empty(part, empty):
                break


def _unreadable(why: str) -> UsageError:
    return UsageError(f"the grammar cannot be read: {why}.", hint=_HINT)
