"""Calls of tools: how models say them, found in an answer as it comes, or asked for by a grammar.

A core, used by `app.py` (which format a model has) and `answer.py`. A model says its calls the way
its chat template shows it earlier ones:

    hermes   <tool_call>{"name": …, "arguments": {…}}</tool_call>, also several; Qwen, Hermes
    mistral  [TOOL_CALLS][{"name": …, "arguments": {…}}, …]
             [TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]…, since the end of 2024
    granite  <|tool_call|>[{"name": …, "arguments": {…}}, …]
    llama    {"name": …, "parameters": {…}}, with or without <|python_tag|> before it
    json     {"name": …, "arguments": {…}}, or a list of them, as the whole answer

What looks like a call and is none, is text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.engine.serve.json_grammar import JsonGrammar, literal
from agent.engine.serve.offers import Tool
from agent.engine.serve.openai import ApiError
from agent.engine.serve.text import overlap
from agent.errors import UsageError

# When a call is asked for: more than so many at once nobody wants.
_MOST_CALLS = 16
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A model's wish that a function be called, `arguments` as the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Format:
    """How a model says its calls.

    `opens` comes before them and `closes` behind; without `opens` the whole answer is calls, or
    none. `listed`: they are a JSON list. `skips` may come first. `arguments` is what those are
    named. With `divides`, a call is its name, that, and its arguments.
    """

    opens: str = ""
    closes: str = ""
    listed: bool = False
    skips: str = ""
    arguments: str = "arguments"
    divides: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that may be control tokens of the model."""
        return tuple(filter(None, (self.opens, self.closes, self.skips, self.divides)))

    def grammar(self, tools: Sequence[Tool], *, several: bool) -> str:
        """Return the grammar of calls of these tools, at least one; raises ApiError."""
        grammar = JsonGrammar()
        calls = [self._call(grammar, number, tool) for number, tool in enumerate(tools)]
        call = grammar.rule(" | ".join(calls))
        more = f"{{0,{_MOST_CALLS - 1}}}"
        if self.listed:
            calls_ = (
                f'"[" ws {call}' + (f' (ws "," ws {call}){more}' if several else "") + ' ws "]"'
            )
            return grammar.text(f'{literal(self.opens)} " "? {calls_}')
        if not self.opens:
            return grammar.text(call)
        if self.divides:
            one = grammar.rule(f"{literal(self.opens)} {call}")
        else:
            one = grammar.rule(f"{literal(self.opens)} ws {call} ws {literal(self.closes)}")
        return grammar.text(f'{one} ("\\n"? {one}){more}' if several else one)

    def _call(self, grammar: JsonGrammar, number: int, tool: Tool) -> str:
        function = tool.function
        schema = function.parameters or {}
        if not schema.keys() - {"type", "properties", "required"} and not schema.get("properties"):
            schema = {"additionalProperties": False}
        try:
            arguments = grammar.schema({"type": "object", **schema})
        except UsageError as error:
            raise ApiError(
                f"`tools[{number}].function.parameters` cannot be kept: {error.message}",
                hint=error.hint,
                param="tools",
            ) from error
        if self.divides:
            return grammar.rule(f"{literal(function.name + self.divides)} {arguments}")
        name = literal(json.dumps(function.name))
        key = literal(json.dumps(self.arguments))
        return grammar.rule(
            rf'"{{" ws "\"name\"" ws ":" ws {name} ws "," ws {key} ws ":" ws {arguments} ws "}}"'
        )


# The first whose sign a chat template has; the last for all others.
_FORMATS = (
    ("<tool_call>", Format("<tool_call>", "</tool_call>")),
    ("[ARGS]", Format("[TOOL_CALLS]", divides="[ARGS]")),
    ("[TOOL_CALLS]", Format("[TOOL_CALLS]", listed=True)),
    ("<|tool_call|>", Format("<|tool_call|>", listed=True)),
    ("<|python_tag|>", Format(skips="<|python_tag|>", arguments="parameters")),
    ('"parameters":', Format(skips="<|python_tag|>", arguments="parameters")),
    ("", Format()),
)


def format_of(template: str) -> Format:
    """Return how the model of a chat template says its calls."""
    return next(format_ for sign, format_ in _FORMATS if sign in template)


class CallReader:
    """Finds the calls in an answer: of the tools `names`, and if not `several`, the first alone."""

    def __init__(
        self, format_: Format, names: Sequence[str], new_id: Callable[[], str], *, several: bool
    ) -> None:
        self._format = format_
        self._names = frozenset(names)
        self._new_id = new_id
        self._several = several
        self._held = ""
        # Whether what is held belongs to a call; None: not known yet, for the answer begins.
        self._inside: bool | None = False if format_.opens else None
        self.found = 0

    @property
    def done(self) -> bool:
        """Whether nothing more is wanted."""
        return self.found > 0 and not self._several

    def push(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """Take the next text; returns what is no call for sure, and the calls that are whole."""
        self._held += text
        return self._marked() if self._format.opens else self._bare()

    def flush(self) -> tuple[str, tuple[Call, ...]]:
        """Return what was held back: the answer has ended."""
        held, self._held = self._held, ""
        if self._inside is False or not held:
            return "" if self.found and held.isspace() else held, ()
        calls = self._calls(held, known=not self._format.opens)
        if calls:
            return "", calls
        return (self._format.opens if self._inside else "") + held, ()

    def _marked(self) -> tuple[str, tuple[Call, ...]]:
        said: list[str] = []
        calls: list[Call] = []
        while True:
            if not self._inside:
                before, mark, after = self._held.partition(self._format.opens)
                keep = 0 if mark else overlap(self._held, self._format.opens)
                free = before[: len(before) - keep]
                # Between calls and at the end, white space means nothing; before a word it does.
                blank = bool(self.found) and free.isspace()
                said.append("" if blank else free)
                kept = before if blank else before[len(before) - keep :]
                self._held = after if mark else kept
                self._inside = bool(mark)
            if not self._inside or not (closed := self._closed()):
                break
            inner, self._held = closed
            self._inside = False
            found = self._calls(inner, known=False)
            said.append("" if found else self._format.opens + inner + self._format.closes)
            calls += found
            if self.done:  # what comes behind is not wanted
                self._held = ""
                break
        return "".join(said), tuple(calls)

    def _closed(self) -> tuple[str, str] | None:
        """Return what is before the end of a call, and behind it; its strings may hold the mark."""
        closes = self._format.closes
        at = self._held.find(closes) if closes else -1
        first = at
        while at >= 0:
            inner = self._held[:at]
            if next(_objects(inner), None) is not None:
                return inner, self._held[at + len(closes) :]
            at = self._held.find(closes, at + 1)
        if first >= 0 and not self._held.lstrip().startswith("{"):
            return self._held[:first], self._held[first + len(closes) :]
        return None

    def _bare(self) -> tuple[str, tuple[Call, ...]]:
        if self._inside is None:
            text = self._held.lstrip()
            skips = self._format.skips
            if text.startswith(skips):
                text = text[len(skips) :].lstrip()
            elif text and skips.startswith(text):
                return "", ()
            if not text:
                return "", ()
            self._inside = text[0] in "{["
        if self._inside:
            return "", ()
        held, self._held = self._held, ""
        return held, ()

    def _calls(self, text: str, *, known: bool) -> tuple[Call, ...]:
        """Return the calls of a text, none if it is anything else; `known`: of our tools only."""
        found = []
        for item in self._items(text):
            call = self._call(item)
            if call is None or (known and call.name not in self._names):
                return ()
            found.append(call)
        wanted = found if self._several else found[: max(0, 1 - self.found)]
        self.found += len(wanted)
        return tuple(wanted)

    def _items(self, text: str) -> Iterator[Any]:
        """Yield what may be the calls of a text."""
        format_ = self._format
        if not format_.divides:
            yield from _objects(text.lstrip().removeprefix(format_.skips))
            return
        for part in text.split(format_.opens):
            name, _, arguments = part.partition(format_.divides)
            given = list(_objects(arguments))
            yield {"name": name.strip(), "arguments": given[0]} if len(given) == 1 else None

    def _call(self, item: Any) -> Call | None:
        if isinstance(item, dict) and isinstance(item.get("function"), dict):
            item = item["function"]
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            return None
        arguments = item.get("arguments", item.get("parameters"))
        if isinstance(arguments, str):
            arguments = next(_objects(arguments), None)
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            return None
        return Call(self._new_id(), item["name"], json.dumps(arguments, ensure_ascii=False))


def _objects(text: str) -> Iterator[Any]:
    """Yield the JSON values of a text, which may be apart by `;` or `,`, those of lists one by one.

    Nothing when there is anything else in it.
    """
    found: list[Any] = []
    at = 0
    try:
        while text[at:].strip(" \t\r\n;,"):
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n;,"))
            value, at = _DECODER.raw_decode(text, at)
            found += value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        return
    yield from found


def call_object(call: Call) -> Mapping[str, Any]:
    """Return a call as OpenAI writes it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
