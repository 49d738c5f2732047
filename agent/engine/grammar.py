"""GBNF grammars, as llama.cpp reads them: what is too large is refused before it does.

For `sampler.py`. llama.cpp's parser calls itself for each bracket, and writes out repetitions; a
grammar that it cannot read gives None, and its reason goes to the process's stderr.
"""

from __future__ import annotations

import re
from typing import Any

import llama_cpp

from agent.errors import UsageError

# JSON schemas of a hundred properties give some 20 KB.
MAX_BYTES = 128 * 2**10
MAX_DEPTH = 100
# llama.cpp takes at most 2,000 in one place.
MAX_REPEATED = 20_000

# Comments, literals and classes may hold brackets that are none; what is left over is skipped.
_PARTS = re.compile(
    r'#[^\n]*|"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{(?P<counts>[\d\s,]*)\}|(?P<bracket>[()])'
)


def check_size(text: str) -> None:
    """Raise UsageError for a grammar that would cost too much to read."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise UsageError(f"the grammar is larger than {MAX_BYTES} bytes.", hint="Make it smaller.")
    depth = repeated = 0
    for part in _PARTS.finditer(text):
        if part["bracket"]:
            depth += 1 if part["bracket"] == "(" else -1
        elif part["counts"] is not None:
            repeated += sum(
                min(int(n[:9]), MAX_REPEATED) for n in part["counts"].split(",") if n.strip()
            )
        if depth > MAX_DEPTH:
            raise UsageError(
                f"the grammar's brackets are more than {MAX_DEPTH} deep.", hint="Use more rules."
            )
        if repeated > MAX_REPEATED:
            raise UsageError(
                f"the grammar repeats more than {MAX_REPEATED} times in all.",
                hint="Use `*` instead of large counts.",
            )


def compile_grammar(text: str, vocabulary: Any) -> Any:
    """Return llama.cpp's sampler of a grammar whose first rule is `root`; the caller frees it.

    Raises UsageError when it is too large or cannot be read.
    """
    check_size(text)
    raw = text.encode("utf-8", "replace")
    made = None if b"\0" in raw else llama_cpp.llama_sampler_init_grammar(vocabulary, raw, b"root")
    if not made:
        raise UsageError(
            "the grammar cannot be read.",
            hint="It needs a rule `root`, every rule that it names, and no left recursion.",
        )
    return made
