"""GBNF grammars as llama.cpp's samplers. For `sampler.py`."""

from __future__ import annotations

from typing import Any

import llama_cpp

from agent.engine import gbnf
from agent.errors import UsageError


def compile_grammar(text: str, vocabulary: Any) -> Any:
    """Return llama.cpp's sampler of a grammar whose first rule is `root`; the caller frees it.

    Raises UsageError when it is too large or cannot be read.
    """
    gbnf.check(text)
    raw = text.encode("utf-8", "replace")
    made = None if b"\0" in raw else llama_cpp.llama_sampler_init_grammar(vocabulary, raw, b"root")
    if not made:
        # llama.cpp tells its reason to the process's stderr alone.
        raise UsageError(
            "the grammar cannot be read by llama.cpp.",
            hint="Its repetitions may be too many, or its escapes and ranges wrong.",
        )
    return made
