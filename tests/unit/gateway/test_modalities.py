"""What of a chat is no text, and which models a server says take it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.modalities import PARTS, seeing, shown

TEXT = {"type": "text", "text": "What is this?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


def found(messages: Any) -> Any:
    return shown(msgspec.Raw(json.dumps(messages).encode()))


@pytest.mark.parametrize("type_", sorted(PARTS))
def test_a_part_that_is_no_text(type_: str) -> None:
    messages = [
        {"role": "system", "content": "file"},
        {"role": "user", "content": [TEXT, {"type": type_}, IMAGE]},
        {"role": "user", "content": [IMAGE]},
    ]
    assert found(messages) == ("messages[1].content[1]", type_)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": [TEXT]}],
        [{"role": "user", "content": json.dumps([IMAGE])}],
        [{"role": "user", "content": [{"type": "text", "text": "image_url"}]}],
        [{"role": "user", "content": [TEXT, {"type": "text", "text": "file"}], "name": "file"}],
        [{"role": "assistant", "content": None, "tool_calls": [{"type": "file"}]}],
        [{"type": "file"}, 5], {"type": "file"}, "image_url", None,
        [{"role": "user", "content": [{"type": ["file"]}, "file", None]}],
    ],
)  # fmt: skip
def test_chats_that_show_nothing_and_what_is_no_chat(messages: Any) -> None:
    assert found(messages) is None


def test_no_messages_at_all() -> None:
    assert shown(msgspec.Raw()) is None
    assert shown(msgspec.Raw(b'[{"type": "file", "content": "\xff"}]')) is None


@given(
    chats=st.lists(
        st.lists(st.sampled_from([TEXT, IMAGE]), max_size=4) | st.text(max_size=5), max_size=4
    )
)
def test_the_first_of_all(chats: list[Any]) -> None:
    where = [
        f"messages[{at}].content[{number}]"
        for at, content in enumerate(chats)
        for number, part in enumerate(content)
        if part is IMAGE
    ]
    told = found([{"role": "user", "content": content} for content in chats])
    assert (told and told.where) == (where[0] if where else None)


def listed(**model: Any) -> frozenset[str]:
    return seeing(json.dumps({"object": "list", "data": [{"id": "m", **model}]}).encode())


def test_models_that_say_that_they_see() -> None:
    assert listed(capabilities=["completion", "vision"]) == {"m"}
    assert listed(capabilities={"completion_chat": True, "vision": True}) == {"m"}
    assert listed(architecture={"input_modalities": ["text", "image"]}) == {"m"}
    both = {
        "data": [{"id": "m"}, {"id": "n"}],
        "models": [{"name": "m", "capabilities": ["completion", "multimodal"]}],
    }
    assert seeing(json.dumps(both).encode()) == {"m"}


@pytest.mark.parametrize(
    "model",
    [
        {}, {"capabilities": ["chat", "completions"]}, {"capabilities": {"vision": False}},
        {"capabilities": "vision"}, {"capabilities": [["vision"], None]}, {"architecture": "image"},
        {"architecture": {"input_modalities": ["text"]}}, {"id": 5, "capabilities": ["vision"]},
    ],
)  # fmt: skip
def test_models_that_do_not(model: dict[str, Any]) -> None:
    assert listed(**model) == frozenset()


@pytest.mark.parametrize(
    "body", [b'["capabilities"]', b'{"capabilities": "\xff"}', b'{"models": {"capabilities": 1}}']
)
def test_lists_that_are_none(body: bytes) -> None:
    assert seeing(body) == frozenset()
