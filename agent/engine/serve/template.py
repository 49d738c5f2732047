"""The model's chat template: from messages to the prompt's text.

A core, used by `app.py`. Templates are programs that come with the model file, so they run in
Jinja's immutable sandbox, with the names that Hugging Face defines for them: `raise_exception`,
`strftime_now`, `tojson`, loop controls and the `generation` block (it marks text for training).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent.errors import UsageError

_OTHER_WAY = "Send the whole prompt as text to /v1/completions instead."


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One model's template, compiled once.

    `source` None or a source that does not compile is not an error here: `render` then raises
    UsageError, so that the model is still served for plain completions.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        self._special = {"bos_token": bos, "eos_token": eos}
        self._template: jinja2.Template | None = None
        self.knows_tools = False
        self._why_not = "This model has no chat template"
        if source is None:
            return
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
            self.knows_tools = "tools" in names
        except Exception as error:  # not jinja2's own alone: what is nested deep, for one
            self._why_not = f"This model's chat template does not compile: {error}"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        now: datetime,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the prompt's text for `messages` ({"role", "content", …}), ready to be answered.

        `variables` are the client's own for the template; they do not replace the standard ones.
        `tools` are shown to the model if the template `knows_tools`.
        Raises UsageError when there is no usable template or it refuses these messages.
        """
        if self._template is None:
            raise UsageError(self._why_not, hint=_OTHER_WAY)
        try:
            return self._template.render(
                {
                    **(variables or {}),
                    **self._special,
                    "messages": [dict(message) for message in messages],
                    "tools": [dict(tool) for tool in tools] or None,
                    "documents": None,
                    "add_generation_prompt": True,
                    "strftime_now": now.strftime,
                }
            )
        except _Refused as error:
            raise UsageError(
                f"This model's chat template refuses these messages: {error}"
            ) from error
        except Exception as error:  # a template is foreign code: it may raise anything
            raise UsageError(
                f"This model's chat template cannot render these messages: {error}",
                hint=_OTHER_WAY,
            ) from error


class _Refused(jinja2.TemplateError):
    """The template itself called raise_exception."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as Hugging Face's filter does; Jinja's own escapes HTML's characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
