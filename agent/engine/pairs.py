"""A query and a document as the one text by which a model for ranks is asked about them.

For `embedder.py`. The form is llama-server's: the template that the file names `rerank`, or else
both texts with the tokens between and around them that the file's vocabulary asks for.
"""

from __future__ import annotations

from typing import Any

import llama_cpp

from agent.engine.llama import Weights
from agent.engine.vocabulary import Vocabulary

_NONE = -1
_TEMPLATE = b"rerank"


class Pairs:
    """Makes the pairs of a loaded model."""

    def __init__(self, weights: Weights, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._template = weights.template(_TEMPLATE)
        handle: Any = weights.vocabulary
        sep: int = llama_cpp.llama_vocab_sep(handle)
        eos: int = llama_cpp.llama_vocab_eos(handle)
        end = [sep if eos == _NONE else eos] if llama_cpp.llama_vocab_get_add_eos(handle) else []
        between = [sep] if llama_cpp.llama_vocab_get_add_sep(handle) else []
        adds_bos = llama_cpp.llama_vocab_get_add_bos(handle)
        self._before = _known([llama_cpp.llama_vocab_bos(handle)] if adds_bos else [])
        self._between = _known([*end, *between])
        self._behind = _known(end)

    def tokens(self, query: str, document: str) -> tuple[int, ...]:
        """Return the ids of a pair."""
        if self._template is not None:
            # One pass, so that a query that holds "{document}" stays what it is.
            parts = self._template.split("{query}")
            text = query.join(part.replace("{document}", document) for part in parts)
            return self._vocabulary.tokenize(text, special=True)
        query_ids, document_ids = self._vocabulary.bare(query), self._vocabulary.bare(document)
        return (*self._before, *query_ids, *self._between, *document_ids, *self._behind)


def _known(ids: list[int]) -> tuple[int, ...]:
    return tuple(token for token in ids if token != _NONE)
