"""From JSON schemas to GBNF: a grammar of exactly the JSON texts that fit a schema.

A core, used by `schema.py` and `tools.py`. What a grammar of bounded size cannot say (`not`,
`uniqueItems`, `pattern`, bounds of fractions, …) is refused by name; annotations are skipped, as
are keywords that JSON Schema does not define. Properties come in the order of the schema, and an
object that names some has no others unless `additionalProperties` says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from agent.engine.serve.digits import integers
from agent.engine.serve.json_schema import (
    TYPES,
    bounds,
    check_supported,
    is_integer,
    kind_of,
    merged,
    schemas,
    shown,
    target,
    without,
)
from agent.errors import UsageError

MAX_DEPTH = 40
MAX_RULES = 3000
# llama.cpp writes repetitions out.
MAX_REPEATED = 1000

# At most one space or line break with indentation: enough for every usual style, and an end to it.
_BASE = {
    "ws": r'| " " | "\n" [ \t]{0,20}',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": r'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "positive": r'("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "member": 'string ws ":" ws value',
    "object": '"{" ws (member (ws "," ws member)* ws)? "}"',
    "array": '"[" ws (value (ws "," ws value)* ws)? "]"',
    "date": r'[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])',
    "time": r'([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    r'("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "hex": "[0-9a-fA-F]",
}
_FORMATS = {
    "date": r'"\"" date "\""',
    "time": r'"\"" time "\""',
    "date-time": r'"\"" date "T" time "\""',
    "uuid": r'"\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\""',
}


class JsonGrammar:
    """Collects rules; `text` is the grammar whose root is an expression over them."""

    def __init__(self) -> None:
        self._rules = dict(_BASE)
        self._references: dict[tuple[int, str], str] = {}
        self._roots: list[Any] = []  # kept, so that their identities stay theirs
        self._root: Any = None

    def text(self, root: str) -> str:
        """Return the grammar."""
        return "\n".join(
            f"{name} ::= {rule}" for name, rule in [("root", root), *self._rules.items()]
        )

    def schema(self, schema: Any) -> str:
        """Return an expression for what fits a schema, whose `$ref` are within itself.

        Raises UsageError for a schema that is too large, makes no sense or asks too much.
        """
        self._roots.append(schema)
        self._root = schema
        return self._visit(schema, 0)

    def rule(self, expression: str) -> str:
        """Name an expression."""
        if len(self._rules) >= MAX_RULES:
            raise UsageError(f"the schema needs more than {MAX_RULES} rules.")
        name = f"r{len(self._rules)}"
        self._rules[name] = expression
        return name

    def _visit(self, schema: Any, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise UsageError(f"the schema is more than {MAX_DEPTH} deep.")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise UsageError(f"{shown(schema)} is no JSON schema that something fits.")
        check_supported(schema)
        if "$ref" in schema:
            return self._refer(schema, depth)
        if "allOf" in schema:
            parts = [without(schema, "allOf"), *schemas(schema, "allOf")]
            return self._visit(merged(self._resolved(part) for part in parts), depth + 1)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                base = without(schema, name)
                options = schemas(schema, name)
                if base:
                    options = [merged((base, self._resolved(option))) for option in options]
                return self._either(self._visit(option, depth + 1) for option in options)
        if "const" in schema:
            return literal(json.dumps(schema["const"], ensure_ascii=False))
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list) or not values:
                raise UsageError("the schema's `enum` must be a list that is not empty.")
            return self._either(literal(json.dumps(value, ensure_ascii=False)) for value in values)
        kind = schema.get("type", kind_of(schema))
        if isinstance(kind, list):
            return self._either(self._typed(each, schema, depth) for each in kind)
        return self._typed(kind, schema, depth)

    def _typed(self, kind: Any, schema: Mapping[str, Any], depth: int) -> str:
        match kind:
            case None:
                return "value"
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean" | "null":
                return str(kind)
        raise UsageError(f"the schema's type {shown(kind)} is none of {', '.join(TYPES)}.")

    def _refer(self, schema: Mapping[str, Any], depth: int) -> str:
        rest = without(schema, "$ref")
        if rest:
            return self._visit(merged((rest, self._resolved(schema))), depth + 1)
        key = (id(self._root), str(schema["$ref"]))
        if key not in self._references:
            # Named first: what it refers to may refer to itself.
            self._references[key] = name = self.rule("")
            self._rules[name] = self._visit(target(self._root, schema["$ref"]), depth + 1)
        return self._references[key]

    def _resolved(self, schema: Any) -> Any:
        """Follow references until something else."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            found, rest = target(self._root, schema["$ref"]), without(schema, "$ref")
            schema = merged((rest, found)) if rest else found
        raise UsageError(f"the schema's references are more than {MAX_DEPTH} long.")

    def _either(self, options: Iterable[str]) -> str:
        return self.rule(" | ".join(dict.fromkeys(options)))

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        named = isinstance(required, list) and all(isinstance(name, str) for name in required)
        if not isinstance(properties, dict) or not named:
            raise UsageError("the schema's `properties` must be an object, `required` names.")
        extra = schema.get("additionalProperties", not properties)
        if not properties and not required and extra in (True, {}):
            return "object"
        properties = {**properties, **{n: {} for n in required if n not in properties}}
        # What may follow a member, and what may come where none has come yet.
        following, first = "ws", '""'
        if extra is not False:
            value = self._visit(extra, depth + 1)
            other = self.rule(f'{self._key_but(properties)} ws ":" ws {value}')
            following = self.rule(f'(ws "," ws {other})* ws')
            first = self.rule(f"({other} {following})?")
        elif not properties:
            return r'"{" ws "}"'
        for name, property_ in reversed(properties.items()):
            value = self._visit(property_, depth + 1)
            member = self.rule(f'{literal(json.dumps(name, ensure_ascii=False))} ws ":" ws {value}')
            if name in required:
                first = self.rule(f"{member} {following}")
                following = self.rule(f'ws "," ws {member} {following}')
            else:
                first = self.rule(f"{member} {following} | {first}")
                following = self.rule(f'(ws "," ws {member})? {following}')
        return self.rule(f'"{{" ws {first} "}}"')

    def _key_but(self, names: Iterable[str]) -> str:
        """Return an expression for keys that are none of `names`; those have no escapes."""
        names = [json.dumps(name, ensure_ascii=False)[1:-1] for name in names]
        return "string" if not names else rf'"\"" {self._text_but(names, first=True)} "\""'

    def _text_but(self, names: list[str], *, first: bool) -> str:
        heads: dict[str, list[str]] = {}
        for name in filter(None, names):
            heads.setdefault(name[0], []).append(name[1:])
        options = [f"{literal(head)} {self._text_but(rest, first=False)}"
                   for head, rest in heads.items() if head != "\\"]  # fmt: skip
        excluded = "".join(_in_class(head) for head in heads)
        options.append(rf'[^"\\\x7F\x00-\x1F{excluded}] [^"\\\x7F\x00-\x1F]*')
        if "" not in names:
            options.append('""')
        return self.rule(" | ".join(options))

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        least, most = bounds(schema, "minItems", "maxItems")
        tuple_ = schema.get("prefixItems", [])
        items = schema.get("items", not tuple_)
        if isinstance(items, list):  # as before JSON Schema 2020
            tuple_, items = items, False
        if not isinstance(tuple_, list):
            raise UsageError("the schema's `prefixItems` must be a list.")
        if tuple_:
            if items not in (False, None) or least > len(tuple_) or (most or 0) > len(tuple_):
                raise UsageError("the schema's tuple of `prefixItems` cannot go on with `items`.")
            parts = [self._visit(each, depth + 1) for each in tuple_]
            return self.rule('"[" ws ' + ' ws "," ws '.join(parts) + ' ws "]"')
        if most == 0 or items is False:
            return '"[" ws "]"'
        item = self._visit(items, depth + 1)
        if item == "value" and (least, most) == (0, None):
            return "array"
        more = (
            "*" if (least <= 1 and most is None) else _times(max(least - 1, 0), most and most - 1)
        )
        some = f'{item} (ws "," ws {item}){more} ws'
        return self.rule(f'"[" ws {some} "]"' if least else f'"[" ws ({some})? "]"')

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = bounds(schema, "minLength", "maxLength")
        form = schema.get("format")
        if isinstance(form, str) and form in _FORMATS and (least, most) == (0, None):
            return self.rule(_FORMATS[form])
        if (least, most) == (0, None):
            return "string"
        return self.rule(rf'"\"" char{_times(least, most)} "\""')

    def _integer(self, schema: Mapping[str, Any]) -> str:
        limits: dict[str, int | None] = {}
        for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            value = schema.get(name)
            if value is not None and not is_integer(value):
                raise UsageError(f"the schema's `{name}` of an integer must be an integer.")
            limits[name] = None if value is None else int(value)
        above, below = limits["exclusiveMinimum"], limits["exclusiveMaximum"]
        lows = [limits["minimum"], None if above is None else above + 1]
        highs = [limits["maximum"], None if below is None else below - 1]
        low = max((each for each in lows if each is not None), default=None)
        high = min((each for each in highs if each is not None), default=None)
        if low is None and high is None:
            return "integer"
        return self.rule(integers(low, high))

    def _number(self, schema: Mapping[str, Any]) -> str:
        given = {
            name: schema[name]
            for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
            if schema.get(name) is not None
        }
        if not given:
            return "number"
        if given == {"minimum": 0}:
            return "positive"
        raise UsageError(
            f"the schema's `{next(iter(given))}` of a number is not supported, but for minimum 0.",
            hint="Leave it out, or make it an integer.",
        )


def literal(text: str) -> str:
    """Return the GBNF expression of a text."""
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _in_class(character: str) -> str:
    return f"\\U{ord(character):08X}"


def _times(least: int, most: int | None) -> str:
    if max(least, most or 0) > MAX_REPEATED:
        raise UsageError(
            f"the schema has a length of {max(least, most or 0)}, but at most {MAX_REPEATED} fit."
        )
    return f"{{{least},{'' if most is None else most}}}"
