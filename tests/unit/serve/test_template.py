"""Chat templates: the names Hugging Face defines, the sandbox, and what can go wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.engine.serve.template import ChatTemplate
from agent.errors import UsageError

NOW = datetime(2025, 3, 9, 12, 0, tzinfo=UTC)
HELLO = [{"role": "user", "content": "hello"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(messages, now=NOW)


def test_blocks_leave_no_line_breaks_or_indentation() -> None:
    # trim_blocks and lstrip_blocks: how templates are laid out is no part of the prompt.
    source = """{% for message in messages %}
    {% set start = '<|im_start|>' + message.role %}
{{ start }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
    assert render(source, [{"role": "system", "content": "Be brief."}, *HELLO]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_special_tokens_are_there() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>hello</s>"


def test_the_date_is_the_given_one() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "09 Mar 2025"


def test_tojson_does_not_escape_for_html() -> None:
    assert render("{{ messages | tojson }}", [{"role": "user", "content": "<é&'>"}]) == (
        '[{"role": "user", "content": "<é&\'>"}]'
    )


def test_generation_blocks_and_loop_controls() -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% break %}{% endfor %}"
    )
    assert render(source, HELLO * 2) == "hello"


def test_client_variables_reach_the_template_but_replace_nothing() -> None:
    template = ChatTemplate(
        "{{ thinking }} {{ messages[0].content }} {{ bos_token }}", bos="<s>", eos="</s>"
    )
    variables = {"thinking": False, "messages": [], "bos_token": "x"}
    assert template.render(HELLO, now=NOW, variables=variables) == "False hello <s>"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must"),
        ("{{ messages[7].content.x }}", "cannot render"),
        ("{{ 1 / 0 }}", "cannot render"),
        ("{{ messages[0].content.__class__.__mro__ }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "cannot render"),
        ("{% if %}", "does not compile"),
    ],
)
def test_a_template_that_fails_is_a_clear_refusal(source: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        render(source)
    assert "raise_exception" in source or "/v1/completions" in caught.value.hint


def test_no_template_names_the_other_way() -> None:
    with pytest.raises(UsageError, match="no chat template") as caught:
        ChatTemplate(None, bos="", eos="").render(HELLO, now=NOW)
    assert "/v1/completions" in caught.value.hint


def test_tools_are_shown_to_the_model_where_the_template_knows_them() -> None:
    source = "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}."
    template = ChatTemplate(source, bos="", eos="")
    tool = {"type": "function", "function": {"name": "f"}}
    now = datetime(2024, 5, 6, tzinfo=UTC)
    assert template.knows_tools
    assert template.render([], now=now, tools=[tool]) == json.dumps(tool) + "."
    assert template.render([], now=now) == "."
    for without in ("{{ messages }} tools", None, "{% broken"):
        assert not ChatTemplate(without, bos="", eos="").knows_tools
