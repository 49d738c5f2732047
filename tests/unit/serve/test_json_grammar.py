"""Whatever is given as a schema becomes a grammar of bounded size, or is refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import gbnf
from agent.engine.serve.json_grammar import JsonGrammar
from agent.errors import UsageError

LEAVES = st.sampled_from(
    [None, True, False, 0, 1, -3, 2.5, 10**20, "", "a", "string", "object", "integer", "#",
     "#/properties/a", "#/$defs/x", "#/anyOf/0", "date", {}, []]
)  # fmt: skip
KEYS = st.sampled_from(
    ["type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems",
     "maxItems", "minLength", "maxLength", "format", "enum", "const", "anyOf", "oneOf", "allOf",
     "$ref", "$defs", "minimum", "maximum", "exclusiveMinimum", "not", "a", "x"]
)  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.fixed_dictionaries({"properties": st.dictionaries(KEYS, inner, max_size=3)})
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(schema=SCHEMAS)
def test_any_json_as_a_schema(schema: Any) -> None:
    made = JsonGrammar()
    try:
        text = made.text(made.schema(schema))
    except UsageError as error:
        assert "\n" not in error.line()
        return
    try:
        gbnf.check(text)
    except UsageError as error:
        # A schema that says nothing but itself is left-recursive; nothing else can be wrong.
        assert "left-recursive" in str(error), (schema, text)


def test_schemas_that_grow_end_early() -> None:
    doubling: Any = {"type": "null"}
    for _ in range(30):
        doubling = {"properties": {"a": doubling, "b": doubling}}
    crossed = {"allOf": [{"anyOf": [{"properties": {f"p{n}": {}}} for n in range(50)]}] * 2}
    wide = {"anyOf": [{"$ref": "#/$defs/w"}] * 50, "$defs": {"w": {"allOf": [{"$ref": "#"}] * 50}}}
    for schema in (doubling, crossed, wide):
        made = JsonGrammar()
        try:
            assert len(made.text(made.schema(schema))) < 2**20
        except UsageError:
            continue
