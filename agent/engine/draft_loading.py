"""Load a draft model (`draft_model.py`), or say in one line why it cannot serve a main model.

Its tokens must be those of the main model: by number, each the same text. Many models come with a
few unused tokens at the end, to fill a matrix, and differ in how many; those do not count.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import llama_cpp

from agent.engine.draft_model import DRAFT_ROWS, DraftModel
from agent.engine.gguf_file import GgufFile
from agent.engine.llama import Context, ContextLimits, Weights
from agent.engine.vocabulary import Vocabulary
from agent.errors import ModelError

_HINT = "Take a draft model of the same family, or none (without --draft)."
_SHOWN_CHARACTERS = 40


def load_draft(
    path: Path, main: Weights, name: str, limits: ContextLimits, *, use_extra_bufts: bool,
    gpu_layers: int,
) -> DraftModel:  # fmt: skip
    """Load a draft model for the model `name`, whose part that knows texts is `main`.

    Raises ModelError. It keeps as many tokens as `limits`, the main model's, say, and sequences.
    """
    with GgufFile(path) as file:
        if file.purpose != "text":
            raise ModelError(
                f"{path.name} cannot be a draft model: it is for {file.purpose}.", hint=_HINT
            )
    weights = Weights(path, use_extra_bufts=use_extra_bufts, gpu_layers=gpu_layers)
    try:
        check_draft(weights, main, name)
        return DraftModel(
            Context(
                weights,
                replace(limits, n_batch=DRAFT_ROWS, graph_rows=0),
                keeps_rows=False,
            ),
            Vocabulary(main),
        )
    except BaseException:
        weights.close()
        raise


def check_draft(draft: Weights, main: Weights, name: str) -> None:
    """Raise ModelError unless `draft` can guess tokens of `main`, the model called `name`."""
    if not draft.shares_prefixes:
        raise ModelError(
            f"{draft.path.name} cannot be a draft model: it is recurrent, and cannot go back to"
            " before a wrong guess.",
            hint=_HINT,
        )
    if not main.shares_prefixes:
        raise ModelError(
            f"{name} cannot have a draft model: it is recurrent, and cannot go back to before a"
            " wrong guess.",
            hint="Deploy it without --draft.",
        )
    shorter, longer = sorted((draft, main), key=lambda weights: weights.n_vocab)
    for token in range(longer.n_vocab):
        if token < shorter.n_vocab:
            same = _text(draft, token) == _text(main, token)
        else:
            same = bool(
                llama_cpp.llama_vocab_get_attr(longer.vocabulary, token)
                & llama_cpp.LLAMA_TOKEN_ATTR_UNUSED
            )
        if not same:
            raise ModelError(
                f"{draft.path.name} cannot be the draft model of {name}: its tokens are"
                f" others ({draft.n_vocab} and {main.n_vocab}); the first that differs is {token},"
                f" {_shown(draft, token)} and {_shown(main, token)}.",
                hint=_HINT,
            )


def _text(weights: Weights, token: int) -> bytes:
    return llama_cpp.llama_vocab_get_text(weights.vocabulary, token) or b""


def _shown(weights: Weights, token: int) -> str:
    if token >= weights.n_vocab:
        return "none"
    return repr(_text(weights, token).decode("utf-8", "replace")[:_SHOWN_CHARACTERS])
