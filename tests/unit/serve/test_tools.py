"""Calls of tools: found in what models say, however it is cut, and asked for by a grammar."""

from __future__ import annotations

import itertools
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.serve.offers import Tool
from agent.engine.serve.openai import ApiError
from agent.engine.serve.tools import Call, CallReader, Format, format_of

HERMES = format_of("… <tool_call> …")
MISTRAL = format_of("… [TOOL_CALLS] …")
DIVIDED = format_of("… [TOOL_CALLS] … [ARGS] …")
GRANITE = format_of("… <|tool_call|> …")
LLAMA = format_of("… <|python_tag|> …")
PLAIN = format_of("{{ tools }}")
A, B = '{"name": "a", "arguments": {"x": 1}}', '{"name": "b", "arguments": {}}'


def read(
    format_: Format, text: str, cuts: list[int] | None = None, *, several: bool = True
) -> tuple[str, list[tuple[str, str]]]:
    """Return what is text, and the names and arguments of the calls; the text comes in pieces."""
    ids = itertools.count()
    reader = CallReader(format_, ["a", "b"], lambda: f"id{next(ids)}", several=several)
    said: list[str] = []
    calls: list[Call] = []
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or [])})
    for start, stop in itertools.pairwise(edges):
        more, found = reader.push(text[start:stop])
        said.append(more)
        calls += found
    more, found = reader.flush()
    assert reader.found == len(calls) + len(found)
    calls += found
    assert [call.id for call in calls] == [f"id{n}" for n in range(len(calls))]
    return "".join(said) + more, [(call.name, call.arguments) for call in calls]


CALL_A, CALL_B = ("a", '{"x": 1}'), ("b", "{}")
QUOTED = '{"name": "a", "arguments": {"x": "</tool_call> <tool_call>"}}'
CASES = [
    (HERMES, "no call at all <tool", "no call at all <tool", []),
    (HERMES, f"<tool_call>\n{A}\n</tool_call>", "", [CALL_A]),
    (HERMES, f"I look. <tool_call>{A}</tool_call>\n<tool_call>{B}</tool_call>", "I look. ",
     [CALL_A, CALL_B]),
    (HERMES, f"<tool_call>{A}</tool_call> and more", " and more", [CALL_A]),
    (HERMES, f"<tool_call>{A}", "", [CALL_A]),  # the end came instead of the mark
    (HERMES, '<tool_call>{"name": "a", "arg', '<tool_call>{"name": "a", "arg', []),
    (HERMES, "<tool_call>sorry</tool_call>", "<tool_call>sorry</tool_call>", []),
    (HERMES, f"<tool_call>{QUOTED}</tool_call>", "",
     [("a", '{"x": "</tool_call> <tool_call>"}')]),
    (HERMES, A, A, []),
    (HERMES, '<tool_call>{"name": "unknown"}</tool_call>', "", [("unknown", "{}")]),
    (MISTRAL, f"[TOOL_CALLS] [{A}, {B}]", "", [CALL_A, CALL_B]),
    (MISTRAL, f"[TOOL_CALLS][{A}", f"[TOOL_CALLS][{A}", []),
    (MISTRAL, "a [list] of [TOOL", "a [list] of [TOOL", []),
    (DIVIDED, '[TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b[ARGS]{}', "", [CALL_A, CALL_B]),
    (DIVIDED, 'Look: [TOOL_CALLS]a[ARGS]{"x": 1}', "Look: ", [CALL_A]),
    (DIVIDED, '[TOOL_CALLS]a[ARGS]{"x"', '[TOOL_CALLS]a[ARGS]{"x"', []),
    (DIVIDED, "[TOOL_CALLS]a", "[TOOL_CALLS]a", []),
    (GRANITE, f"<|tool_call|>[{B}]", "", [CALL_B]),
    (LLAMA, '{"name": "a", "parameters": {"x": 1}}', "", [CALL_A]),
    (LLAMA, '<|python_tag|>{"type": "function", "name": "a", "parameters": {"x": 1}}', "",
     [CALL_A]),
    (LLAMA, '{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}', "",
     [CALL_A, CALL_B]),
    (LLAMA, '{"name": "stranger", "parameters": {}}', '{"name": "stranger", "parameters": {}}', []),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, "<|python is a tag", "<|python is a tag", []),
    (LLAMA, "It is {braces}", "It is {braces}", []),
    (PLAIN, f"[{A}, {B}]", "", [CALL_A, CALL_B]),
    (PLAIN, '{"function": {"name": "a", "arguments": "{\\"x\\": 1}"}}', "", [CALL_A]),
    (PLAIN, '{"name": "a", "arguments": [1]}', '{"name": "a", "arguments": [1]}', []),
    (PLAIN, "[" * 5000, "[" * 5000, []),
    (PLAIN, "", "", []),
    (PLAIN, "  \n", "  \n", []),
]  # fmt: skip


def test_white_space_behind_a_call_is_kept_before_a_word_and_dropped_at_the_end() -> None:
    call = f"<tool_call>{A}</tool_call>"
    end = len(call)
    for text, said in ((f"{call} and more", " and more"), (f"{call}  \n", "")):
        assert read(HERMES, text, list(range(end, len(text)))) == (said, [CALL_A])


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=30))
@pytest.mark.parametrize("index", range(len(CASES)))
def test_calls_are_found_however_the_answer_is_cut(index: int, cuts: list[int]) -> None:
    format_, text, said, calls = CASES[index]
    assert read(format_, text) == (said, calls)
    found, found_calls = read(format_, text, cuts)
    assert found_calls == calls
    # Where white space between calls ends up depends on the pieces; nothing else does.
    assert found.split() == said.split()


@pytest.mark.parametrize("format_", [HERMES, MISTRAL, PLAIN])
def test_only_the_first_where_one_is_wanted(format_: Format) -> None:
    texts = {
        HERMES: f"<tool_call>{A}</tool_call><tool_call>{B}</tool_call>",
        MISTRAL: f"[TOOL_CALLS][{A}, {B}]",
        PLAIN: f"[{A}, {B}]",
    }
    assert read(format_, texts[format_], several=False) == ("", [CALL_A])
    if format_ is HERMES:
        more = f"So: {texts[HERMES]} and more"
        assert read(format_, more, several=False) == ("So: ", [CALL_A])


def test_text_is_not_held_back_longer_than_it_may_be_a_mark() -> None:
    reader = CallReader(HERMES, ["a"], str, several=True)
    assert [reader.push(text)[0] for text in ("Hi <", "tool", "s> ", "<tool_call>", "{")] == [
        "Hi ", "", "<tools> ", "", "",
    ]  # fmt: skip
    prose = CallReader(PLAIN, ["a"], str, several=True)
    assert [prose.push(text)[0] for text in (" ", "It", " is")] == ["", " It", " is"]


def test_a_tool_that_cannot_be_kept_is_named() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^a$"}}}
    functions = [{"name": "a"}, {"name": "b", "parameters": schema}]
    tools = [msgspec.convert({"type": "function", "function": f}, Tool) for f in functions]
    with pytest.raises(ApiError, match=r"tools\[1\].function.parameters.*`pattern`") as caught:
        HERMES.grammar(tools, several=True)
    assert caught.value.param == "tools"


def test_arguments_are_json_in_the_models_own_letters() -> None:
    [(_, arguments)] = read(PLAIN, '{"name": "a", "arguments": {"città": "Mönchengladbach"}}')[1]
    assert arguments == '{"città": "Mönchengladbach"}'
    assert json.loads(arguments)
