"""What holds for every dialect: bodies of strangers are refused or asked, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.port import Refused
from gateway.dialects.served import DIALECTS, by_name
from gateway.dialects.translation import Translation

WORDS = st.sampled_from(
    """
    model messages input role user assistant system content type text tool_result tool_use id name
    tool_use_id function_call function_call_output call_id arguments output tools tool_choice auto
    function parameters input_schema image input_text stream max_tokens
    """.split()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)
# Messages that are nearly right reach further than those that are all wrong.
BLOCKS = st.lists(st.dictionaries(WORDS, WORDS | VALUES, max_size=5), max_size=3)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": WORDS | BLOCKS},
        optional={"type": WORDS, "tool_calls": VALUES},
    ),
    min_size=1,
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.just(5), "messages": MESSAGES, "input": MESSAGES},
    optional={"tools": VALUES, "tool_choice": VALUES, "system": VALUES, "stream": st.booleans()},
)
ALL = DIALECTS | by_name(lambda: ("m",))
PATHS = pytest.mark.parametrize("path", ALL)


@given(body=BODIES | st.dictionaries(WORDS, VALUES, max_size=6))
def test_any_body_is_refused_or_asked(body: dict[str, Any]) -> None:
    """Every dialect is given each body: to make one up takes longer than all that read it."""
    raw = json.dumps(body).encode()
    for path, dialect in ALL.items():
        try:
            translation = Translation(dialect, raw, 0.0)
        except Refused as refused:
            assert 400 <= refused.status < 600, path
            assert refused.message, path
        else:
            asked = msgspec.json.decode(translation.body)
            assert asked["model"] == translation.model != "", path
            assert asked.get("stream", False) is translation.streamed, path


@given(body=st.binary(max_size=40))
def test_bytes_that_are_no_object_are_refused(body: bytes) -> None:
    for path, dialect in ALL.items():
        try:
            Translation(dialect, body, 0.0)
        except Refused:
            continue
        assert isinstance(json.loads(body), dict), path


@PATHS
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 502, 503, 504])
def test_errors_are_json_that_says_what_is_wrong(path: str, status: int) -> None:
    body = ALL[path].error(status, "The words", "model_not_found")
    assert b"The words" in body
    assert isinstance(json.loads(body), dict)
