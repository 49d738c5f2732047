"""Grammars by llama.cpp: answers follow them on a ring, bad ones are refused, schemas are exact."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_rings as rings
import llama_cpp
import msgspec
import numpy as np
import pytest

from agent.engine import grammar
from agent.engine.chain import Samplers
from agent.engine.generation import Finish, GenerationRequest, Sampling, Token
from agent.engine.generator import Generator, Job
from agent.engine.llama import Weights
from agent.engine.serve.digits import integers
from agent.engine.serve.json_grammar import JsonGrammar
from agent.engine.serve.offers import Tool
from agent.engine.serve.tools import CallReader, format_of
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, UsageError

pytestmark = pytest.mark.slow

PROMPT = rings.prompt(20)
END = 2
FIRST_BYTE = 3  # the token of the byte 0


@pytest.fixture(scope="module")
def weights(models: Callable[..., Path]) -> Iterator[Weights]:
    loaded = Weights(models())
    yield loaded
    loaded.close()


class Answers:
    """A generator over a pipeline, for one request after the other or several at once."""

    def __init__(self, pipeline: Any, weights: Weights) -> None:
        self.vocabulary = Vocabulary(weights)
        self.samplers = Samplers(self.vocabulary, rings.N_CTX)
        self._pipeline = pipeline
        self._generator = Generator(
            pipeline, self.vocabulary, context=rings.N_CTX, n_batch=rings.N_BATCH, slots=4,
            sequences=4, samplers=self.samplers,
        )  # fmt: skip

    def ask(self, *samplings: Sampling, count: int = 60) -> list[tuple[bytes, Any]]:
        found: list[tuple[list[Token], list[Finish | CoveyError | None]]] = []
        for sampling in samplings:
            found.append(([], []))
            request = GenerationRequest(PROMPT, count, sampling)
            self._generator.add(Job(request, found[-1][0].append, found[-1][1].append))
        self._generator.run()
        return [(b"".join(t.piece for t in tokens), ends[0]) for tokens, ends in found]

    def close(self) -> None:
        self.samplers.close()


@pytest.fixture(params=[(), (5, 9)], ids=["whole", "ring"])
def answers(
    weights: Weights, models: Callable[..., Path], tmp_path: Path, request: Any
) -> Iterator[Answers]:
    with rings.pipeline(models(), tmp_path, request.param) as pipeline:
        made = Answers(pipeline, weights)
        yield made
        made.close()


def test_answers_follow_their_grammars_and_others_are_as_without(answers: Answers) -> None:
    free = Sampling(temperature=0.0, logit_bias=((END, -100.0),))
    alone = answers.ask(free)[0]
    number = Sampling(temperature=0.0, grammar='root ::= [0-9]{3} "." [0-9]+ "ring"')
    hot = Sampling(temperature=3.0, seed=4, top_k=0, grammar='root ::= ("é" | "ü"){2,5}')
    found = answers.ask(free, number, hot)
    assert found[0] == alone
    text, finish = found[1]
    assert re.fullmatch(rb"[0-9]{3}\.[0-9]+(ring)?", text), text
    assert finish is (Finish.STOP if text.endswith(b"ring") else Finish.LENGTH)
    assert found[2][0].decode() in {
        "".join(each) for n in range(2, 6) for each in itertools.product("éü", repeat=n)
    }
    # Reproducible, although a token may be sampled twice.
    assert answers.ask(hot)[0] == found[2]


def test_a_grammar_changes_nothing_while_the_answer_fits_it(answers: Answers) -> None:
    for fields in (
        {"temperature": 0.0},
        {"seed": 5, "temperature": 1.5},
        {"mirostat": 2, "seed": 1},
    ):
        biased = {"logit_bias": ((END, -100.0),), "repeat_penalty": 1.2, **fields}
        plain = answers.ask(Sampling(**biased), count=20)[0]  # type: ignore[arg-type]
        # Half of a character is no character: what such bytes would begin is decided later.
        fitting = Sampling(**biased, grammar=r"root ::= [^\U0010FFFF]*")  # type: ignore[arg-type]
        if plain[0].isascii():
            assert answers.ask(fitting, count=20)[0] == plain


def test_a_grammar_that_leaves_no_token_ends_its_own_answer_only(answers: Answers) -> None:
    # The end is all that is left, and just that is forbidden.
    stuck = Sampling(temperature=0.0, grammar='root ::= "ab"', ignore_eos=True)
    other = Sampling(temperature=0.0, grammar='root ::= "ab"')
    (text, error), fine = answers.ask(stuck, other)
    assert (text, str(error)) == (b"ab", "the grammar allows no token of this model here.")
    assert fine == (b"ab", Finish.STOP)


def test_an_ambiguous_grammar_ends_before_it_takes_all_time(answers: Answers) -> None:
    growing = 'root ::= [a-z] root "b" | [a-z] root "c" | "a"'
    forced = tuple((token, 50.0) for token in range(FIRST_BYTE + 97, FIRST_BYTE + 123))
    sampling = Sampling(temperature=0.0, grammar=growing, logit_bias=forced)
    [(_, error)] = answers.ask(sampling, count=400)
    assert isinstance(error, UsageError)
    assert "too ambiguous" in str(error)


CHAIN = "".join(f"a{n} ::= a{n + 1}\n" for n in range(3000)) + 'a3000 ::= "b"\nroot ::= a0'
BAD = {
    "no rule": ("x", "it begins with 'x'"),
    "no root": ('a ::= "b"', "no rule root"),
    "unknown rule": ("root ::= foo", "no rule foo"),
    "left recursion": ('root ::= root "a"', "left-recursive"),
    # In these llama.cpp itself would hang.
    "hidden left recursion": ('root ::= a root "b" | "c"\na ::= "a"?', "left-recursive"),
    "hidden in a group": ('root ::= ("a"* | "b") b "b" | "c"\nb ::= root', "left-recursive"),
    "nothing, repeated": ('root ::= a*\na ::= b\nb ::= "c"?', "repeated without end"),
    "nothing, repeated from 1": ('root ::= ("a"{0,3}){1,}', "repeated without end"),
    "zero byte": ('root ::= "a\0"', "cannot be read by llama.cpp"),
    "bad escape": (r'root ::= "\q"', "cannot be read by llama.cpp"),
    "half a surrogate": ('root ::= "\ud800"', None),
    "nested": ("root ::= " + "(" * 500 + '"a"' + ")" * 500, "more than 100 deep"),
    "unclosed": ("root ::= ((", "a bracket stays open"),
    "unopened": ('root ::= "a")', "was not open"),
    "open before a rule": ('root ::= ("a"\nb ::= "c")', "open before b"),
    "nothing to repeat": ("root ::= *", "nothing to repeat"),
    "unknown sign": ('root ::= "a" & "b"', "nothing begins with '& "),
    "repeated": ("root ::= " + '"a"{0,2000} ' * 11, "more than 20000 times"),
    "huge number": ('root ::= "a"{99999999999999999999}', "more than 20000 times"),
    "product": ('root ::= "a"{2000}{2000}', "cannot be read by llama.cpp"),
    "large": ("root ::= " + "a" * 2**17, "larger than"),
    "chain": (CHAIN, None),
    "brackets that are none": ('root ::= "' + "(" * 500 + '" [(]{3}  # ' + "(" * 500, None),
    "empty": ('root ::= ""', None),
    "optional things": ('root ::= a? ("b"? "c")* a{2} ("d" | )\na ::= "x" root "y" | "z"', None),
}


@pytest.mark.parametrize("name", BAD)
def test_grammars_that_are_refused_with_one_line(weights: Weights, name: str) -> None:
    text, said = BAD[name]
    samplers = Samplers(Vocabulary(weights), rings.N_CTX)
    try:
        for _ in range(2):
            if said is None:
                samplers.prepare(Sampling(grammar=text))
                samplers.make(Sampling(grammar=text), ()).close()
                continue
            with pytest.raises(UsageError, match=said) as caught:
                samplers.prepare(Sampling(grammar=text))
            assert caught.value.hint
            assert "\n" not in caught.value.line()
    finally:
        samplers.close()


def test_what_was_made_ready_is_not_kept_without_end(weights: Weights) -> None:
    samplers = Samplers(Vocabulary(weights), rings.N_CTX)
    for number in range(100):
        samplers.prepare(Sampling(grammar=f'root ::= "{number}"'))
    assert len(samplers._ready) <= 32
    samplers.close()
    assert not samplers._ready


class Matcher:
    """Whether texts are what a grammar describes, by llama.cpp, byte by byte."""

    def __init__(self, weights: Weights, text: str) -> None:
        self._made = grammar.compile_grammar(text, weights.vocabulary)

    def matches(self, text: str) -> bool:
        copy = llama_cpp.llama_sampler_clone(self._made)
        try:
            for token in [*(FIRST_BYTE + byte for byte in text.encode()), END]:
                single = np.array([(token, 1.0, 0.0)], "i4,f4,f4")
                pointer = single.ctypes.data_as(
                    llama_cpp.ctypes.POINTER(llama_cpp.llama_token_data)
                )
                array = llama_cpp.llama_token_data_array(pointer, 1, -1, False)
                llama_cpp.llama_sampler_apply(copy, llama_cpp.ctypes.byref(array))
                if single["f1"][0] == -np.inf:
                    return False
                llama_cpp.llama_sampler_accept(copy, token)
            return True
        finally:
            llama_cpp.llama_sampler_free(copy)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self._made)


NODE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["v", "next"],
        }
    },
}
AB = {
    "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"const": "x"}},
    "required": ["b"],
}
# A schema, JSON texts that fit, and some that do not.
SCHEMAS: list[tuple[Any, list[str], list[str]]] = [
    ({}, ["1", '{"a": [1, "x", null]}', "[]", "-0.5e+3", '"\\u00e9 \\n"'],
     ["", "{", "01", "1.", '"\n"', '"\\x"', "nul", '{"a"}', "[1,]", "{} {}"]),
    (True, ["true"], ["True"]),
    ({"type": "object"}, ["{}", '{"x":{"y":[]}}', "{ }"], ["[]", "1", '{"x":1,}']),
    ({"type": "string"}, ['""', '"a€"', '"\\""'], ["a", '"a', '"a"b', "1"]),
    ({"type": ["string", "null"]}, ['"x"', "null"], ["1"]),
    ({"type": "boolean"}, ["true", "false"], ["null"]),
    ({"enum": ["a\"b\\", 1, None, {"x": [1.5]}]},
     ['"a\\"b\\\\"', "1", "null", '{"x": [1.5]}'], ["2"]),
    ({"const": "ü\n"}, ['"ü\\n"'], ['"u"']),
    (AB, ['{"b":null}', '{"a":true,"b":null,"c":"x"}', '{ "b": null, "c": "x" }'],
     ["{}", '{"a":true}', '{"b":null,"a":true}', '{"b":null,"d":1}', '{"b":null "c":"x"}']),
    ({"properties": {"a": {"type": "null"}, "b": {"type": "null"}}},
     ["{}", '{"a":null}', '{"b":null}', '{"a":null,"b":null}', '{\n  "a": null\n}'],
     ['{,"a":null}', '{"a":null,}', '{"c":null}']),
    ({"properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
     ["{}", '{"ab":null}', '{"a":1}', '{"abc":1,"b":2}', '{"ab":null,"x":7}', '{"":1}'],
     ['{"ab":1}', '{"x":null}', '{"ab":null,"ab":1}']),
    ({"type": "object", "additionalProperties": {"type": "boolean"}},
     ["{}", '{"k":true}'], ['{"k":1}']),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"k":1}']),
    ({"required": ["k"]}, ['{"k":[1]}', '{"k":1,"l":2}'], ["{}", '{"l":1}']),
    ({"type": "array", "items": {"type": "null"}}, ["[]", "[null]", "[null, null]"], ["[1]"]),
    ({"items": {"type": "null"}, "minItems": 2, "maxItems": 3}, ["[null,null]", "[null,null,null]"],
     ["[]", "[null]", "[null,null,null,null]"]),
    ({"items": {"type": "null"}, "maxItems": 1}, ["[]", "[null]"], ["[null,null]"]),
    ({"type": "array", "minItems": 1}, ["[1]", '[1,"x"]'], ["[]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    ({"prefixItems": [{"type": "null"}, {"type": "boolean"}]}, ["[null,true]"], ["[null]", "[]"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"äöü"'], ['"a"', '"abcd"']),
    ({"type": "string", "maxLength": 1}, ['""', '"\\n"'], ['"ab"']),
    ({"type": "string", "minLength": 1}, ['"abcdefg"'], ['""']),
    ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"24-01-01"']),
    ({"type": "string", "format": "date-time"},
     ['"2024-02-29T12:00:00Z"', '"2024-02-29T12:00:00.5+01:00"'], ['"2024-02-29 12:00:00Z"']),
    ({"type": "string", "format": "uuid"}, ['"12345678-1234-1234-1234-123456789abc"'], ['"1234"']),
    ({"type": "string", "format": "email"}, ['"a@b"'], ["1"]),
    ({"type": "integer"}, ["0", "-12"], ["1.5", "01", "1e3"]),
    ({"type": "integer", "minimum": 7, "exclusiveMaximum": 124.0},
     ["7", "99", "123"], ["6", "124", "-7"]),
    ({"type": "number", "minimum": 0}, ["0.5", "12"], ["-1"]),
    (NODE, ['{"v":1,"next":null}', '{"v":1,"next":{"v":2,"next":null}}'],
     ['{"v":1}', '{"v":1,"next":1}']),
    ({"allOf": [{"$ref": "#/$defs/p"}, {"properties": {"q": {"type": "null"}}, "required": ["q"]}],
      "$defs": {"p": {"type": "object", "properties": {"p": {"type": "null"}}}}},
     ['{"p":null,"q":null}', '{"q":null}'], ['{"p":null}']),
    ({"type": "object", "oneOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]},
                                  {"properties": {"b": {"const": 2}}, "required": ["b"]}]},
     ['{"a":1}', '{"b":2}'], ["{}", '{"a":2}', "1"]),
    ({"$ref": "#/x~1y/0", "x/y": [{"type": "null"}], "description": "d"}, ["null"], ["1"]),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_a_schema_takes_what_fits_it_and_nothing_else(weights: Weights, index: int) -> None:
    schema, fitting, others = SCHEMAS[index]
    made = JsonGrammar()
    matcher = Matcher(weights, made.text(made.schema(schema)))
    try:
        assert [text for text in fitting if not matcher.matches(text)] == []
        assert [text for text in others if matcher.matches(text)] == []
        for text in fitting:
            json.loads(text)
    finally:
        matcher.close()


def test_answers_by_schema_are_json_that_fits(answers: Answers) -> None:
    made = JsonGrammar()
    text = made.text(made.schema(AB))
    samplings = [
        Sampling(temperature=2.0, top_k=0, min_p=0.0, seed=seed, grammar=text) for seed in range(4)
    ]
    for raw, finish in answers.ask(*samplings, count=100):
        assert finish is Finish.STOP
        found = json.loads(raw)
        assert found["b"] is None
        assert set(found) <= {"a", "b", "c"}


def test_integers_between_two_bounds_are_exactly_those() -> None:
    draw = random.Random(1)
    for _ in range(300):
        low = draw.randint(-(10 ** draw.randint(0, 4)), 10 ** draw.randint(0, 4))
        high = low + draw.randint(0, 10 ** draw.randint(0, 4))
        pattern = re.compile(integers(low, high).replace('"', "").replace(" ", ""))
        for value in (
            low,
            high,
            low - 1,
            high + 1,
            *draw.choices(range(low - 50, high + 50), k=20),
        ):
            assert bool(pattern.fullmatch(str(value))) == (low <= value <= high)


deep: Any = {}
for _ in range(60):
    deep = {"type": "array", "items": deep, "minItems": 1}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (False, "false is no JSON schema"),
        ([], "no JSON schema"),
        ({"type": "int"}, "type"),
        ({"type": {}}, "type"),
        ({"not": {"type": "null"}}, "`not` is not supported"),
        ({"type": "string", "pattern": "^a$"}, "`pattern` is not supported"),
        ({"type": "array", "uniqueItems": True}, "`uniqueItems` is not supported"),
        ({"type": "number", "maximum": 5}, "`maximum` of a number"),
        ({"type": "integer", "minimum": "5"}, "must be an integer"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer from 5 to 4"),
        ({"type": "integer", "minimum": 10**30}, "no integer|digits"),
        ({"enum": []}, "`enum`"),
        ({"enum": "abc"}, "`enum`"),
        ({"anyOf": {}}, "`anyOf`"),
        ({"properties": []}, "`properties`"),
        ({"required": [[]]}, "`required`"),
        ({"properties": {"a": 5}}, "5 is no JSON schema"),
        ({"type": "array", "minItems": -1}, "`minItems`"),
        ({"type": "array", "items": {}, "maxItems": 10**9}, "at most 1000"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "nothing has"),
        ({"prefixItems": [{}], "items": {}}, "prefixItems"),
        ({"$ref": "https://example.com/x"}, "not within it"),
        ({"$ref": "#/nowhere"}, "which it has not"),
        ({"$ref": 5}, "not within it"),
        ({"$ref": "#", "properties": {"a": {}}}, "long|deep"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "given twice"),
        ({"allOf": [{"properties": 5}, {"properties": {}}]}, "given twice"),
        (deep, "more than 40 deep"),
        ({"anyOf": [{"enum": [n]} for n in range(4000)]}, "more than 3000 rules"),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(schema: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        JsonGrammar().schema(schema)


def test_a_schema_that_refers_to_itself_only_is_refused(weights: Weights) -> None:
    made = JsonGrammar()
    text = made.text(made.schema({"$ref": "#"}))
    with pytest.raises(UsageError, match="left-recursive"):
        grammar.compile_grammar(text, weights.vocabulary)


TOOLS = [
    msgspec.convert({"type": "function", "function": function}, Tool)
    for function in (
        {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        {"name": "g"},
    )
]


@pytest.mark.parametrize(
    ("sign", "one", "two"),
    [
        ("<tool_call>", '<tool_call>\n{"name": "f", "arguments": {"x": 5}}\n</tool_call>',
         '\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'),
        ("[TOOL_CALLS]", '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 5}}',
         ', {"name": "g", "arguments": {}}'),
        ("[ARGS]", '[TOOL_CALLS]f[ARGS]{"x": 5}', "[TOOL_CALLS]g[ARGS]{}"),
        ("<|python_tag|>", '{"name": "f", "parameters": {"x": 5}}', None),
        ("", '{"name":"f","arguments":{"x":5}}', None),
    ],
)  # fmt: skip
def test_calls_that_are_asked_for_are_found_again(
    weights: Weights, sign: str, one: str, two: str | None
) -> None:
    form = format_of(sign)
    end = "]" if form.listed else ""
    for several in (False, True):
        matcher = Matcher(weights, form.grammar(TOOLS, several=several))
        texts = {one + end: True, one + (two or " ") + end: bool(two) and several,
                 one.replace('"x"', '"y"') + end: False, one.replace("f", "h", 1) + end: False,
                 "": False, "Well, " + one + end: False}  # fmt: skip
        assert {text: matcher.matches(text) for text in texts} == texts
        matcher.close()
    reader = CallReader(form, ["f", "g"], lambda: "id", several=True)
    said, calls = reader.push(one + (two or "") + end)
    rest, more = reader.flush()
    assert said + rest == ""
    assert [call.name for call in (*calls, *more)] == (["f", "g"] if two else ["f"])
