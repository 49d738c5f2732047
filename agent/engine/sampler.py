"""How one answer's tokens are chosen: a chain of llama.cpp's samplers, and a grammar.

For the head; one for each answer, since samplers remember what they chose. `chain.py` makes them.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from agent.engine.llama import Context
from agent.errors import UsageError

# CPU seconds to go on by one token that is known: usually 0.0001, and where a grammar is so
# ambiguous that it needs more, the next token would take it hundreds of times as long.
GRAMMAR_STEP_S = 0.01
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A chain of samplers, and a grammar if there is one, which it owns."""

    def __init__(self, candidates: Candidates, grammar: Any) -> None:
        parameters = llama_cpp.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self._chain: Any = llama_cpp.llama_sampler_chain_init(parameters)
        self._grammar = grammar
        self._candidates = candidates
        self._forbidden = np.empty(0, np.int32)

    def add(self, link: Any) -> None:
        """Append a sampler, which the chain owns from now on."""
        llama_cpp.llama_sampler_chain_add(self._chain, link)

    def add_biases(self, biases: dict[int, float]) -> None:
        """Append what is added to the logits of these tokens."""
        if biases:
            array = (llama_cpp.llama_logit_bias * len(biases))(*biases.items())
            n_vocab = len(self._candidates.data)
            self.add(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(biases), array))
            self._forbidden = np.array(
                [token for token, bias in biases.items() if bias == -math.inf], np.int32
            )

    def hear(self, tokens: Sequence[int]) -> None:
        """Let the chain know tokens that it did not choose; they are no part of the grammar."""
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, row: int) -> int:
        """Choose the token after a row of the last batch, a marked one, and remember it.

        Raises UsageError when the grammar allows none, or takes too long.
        """
        if self._grammar is None:
            if not context.keeps_logits:
                return int(llama_cpp.llama_sampler_sample(self._chain, context.handle, row))
            self._candidates.fill(context.logits(row))
            token = self._candidates.choose(self._chain)
            llama_cpp.llama_sampler_accept(self._chain, token)
            return token
        token = self._fitting(context.logits(row))
        began = time.thread_time()
        llama_cpp.llama_sampler_accept(self._grammar, token)
        if time.thread_time() - began > GRAMMAR_STEP_S:
            raise UsageError(
                "the grammar is too ambiguous to go on.",
                hint="Its alternatives should begin differently.",
            )
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _fitting(self, logits: Any) -> int:
        """Choose a token that the grammar allows.

        The grammar looks at all tokens only when the chain's own choice does not fit: that costs
        it as much for each token of the vocabulary as for the one.
        """
        candidates = self._candidates
        candidates.fill(logits)
        token = candidates.choose(self._chain)
        if candidates.fits(self._grammar, token):
            return token
        candidates.fill(logits)
        candidates.apply(self._grammar)
        if not candidates.any_left(self._forbidden):
            raise UsageError("the grammar allows no token of this model here.")
        return candidates.choose(self._chain)

    def close(self) -> None:
        """Free the samplers; harmless when done twice."""
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)
            self._grammar = None


class Candidates:
    """The tokens with their logits as llama.cpp's samplers want them, in place."""

    def __init__(self, n_vocab: int) -> None:
        self.data = np.zeros(n_vocab, _CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._array = _array_of(self.data)
        self._single = np.zeros(1, _CANDIDATE)

    def fill(self, logits: Any) -> None:
        """Take the logits (n_vocab) of a row."""
        self.data["id"] = self._ids
        self.data["logit"] = logits
        self.data["p"] = 0.0
        self._array = _array_of(self.data)

    def apply(self, sampler: Any) -> None:
        """Let a sampler change the logits, or leave fewer candidates."""
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def choose(self, chain: Any) -> int:
        """Let a chain choose; returns the token."""
        self.apply(chain)
        return int(self._array.data[self._array.selected].id)

    def fits(self, grammar: Any, token: int) -> bool:
        """Say whether a grammar goes on with a token."""
        self._single[0] = (token, 1.0, 0.0)
        llama_cpp.llama_sampler_apply(grammar, ctypes.byref(_array_of(self._single)))
        return bool(self._single["logit"][0] != -np.inf)

    def any_left(self, forbidden: Any) -> bool:
        """Say whether a token that is not among the forbidden can be chosen."""
        possible = self.data["logit"] != -np.inf
        possible[forbidden] = False
        return bool(possible.any())


def _array_of(data: Any) -> Any:
    pointer = data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    return llama_cpp.llama_token_data_array(pointer, len(data), -1, False)
