"""Texts to token ids and back, by the vocabulary of a loaded model.

For the head, which alone sees tokens. Safe to call from any thread: llama.cpp only reads here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp

from agent.engine.llama import Weights
from agent.errors import UsageError

_NONE = -1
_PIECE_BYTES = 64


class Vocabulary:
    """The vocabulary of `weights`, which must stay loaded; `size` counts its tokens."""

    def __init__(self, weights: Weights) -> None:
        self.handle: Any = weights.vocabulary
        self.size = weights.n_vocab
        self._bos: int = llama_cpp.llama_vocab_bos(self.handle)
        self._adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self.handle)
        self.bos = self._text(self._bos)
        self.eos = self._text(llama_cpp.llama_vocab_eos(self.handle))
        self._pieces: dict[int, bytes] = {}
        self._ends: tuple[int, ...] | None = None

    def _text(self, token: int) -> str:
        if token == _NONE:
            return ""
        text: bytes | None = llama_cpp.llama_vocab_get_text(self.handle, token)
        return (text or b"").decode("utf-8", "replace")

    def tokenize(self, text: str, *, special: bool, around: bool = True) -> tuple[int, ...]:
        """Return the ids of `text`, with the BOS that the model wants (once if the text has it).

        `around` False: nothing around it.
        """
        found = self._split(text, around, special)
        if around and self._adds_bos and found[:2] == (self._bos, self._bos):
            return found[1:]
        return found

    def bare(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text` alone: nothing around it, and control tokens in it are text."""
        return self._split(text, False, False)

    def _split(self, text: str, around: bool, special: bool) -> tuple[int, ...]:
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 8
        tokens = (ctypes.c_int32 * room)()
        count = llama_cpp.llama_tokenize(self.handle, raw, len(raw), tokens, room, around, special)
        if count < 0:
            tokens = (ctypes.c_int32 * -count)()
            count = llama_cpp.llama_tokenize(
                self.handle, raw, len(raw), tokens, -count, around, special
            )
        if count < 0:
            raise UsageError(f"a text of {len(raw)} bytes is too long to be split into tokens.")
        return tuple(tokens[:count])

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of a run of tokens; control tokens give none."""
        self.check(ids)
        if self._adds_bos and list(ids[:1]) == [self._bos]:
            ids = ids[1:]  # so that llama.cpp sees the text's first token and drops its space
        tokens = (ctypes.c_int32 * max(1, len(ids)))(*ids)
        room = 16 * len(ids) + 16
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_detokenize(
                self.handle, tokens, len(ids), buffer, room, False, False
            )
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        """Return the bytes that one token adds to an answer; none for a control token."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token, special=False)
        return known

    def label(self, token: int) -> bytes:
        """Return the bytes of a token, a control token's as well."""
        return self.piece(token) or self._piece(token, special=True)

    def labels(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of each token, a control token's as well."""
        self.check(ids)
        return [self.label(token) for token in ids]

    def _piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        count = llama_cpp.llama_token_to_piece(self.handle, token, buffer, _PIECE_BYTES, 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = llama_cpp.llama_token_to_piece(self.handle, token, buffer, -count, 0, special)
        return buffer.raw[:count]

    def ends(self, token: int) -> bool:
        """Say whether the token ends a generation."""
        return bool(llama_cpp.llama_vocab_is_eog(self.handle, token))

    def ends_all(self) -> tuple[int, ...]:
        """Return all tokens that end a generation."""
        if self._ends is None:  # asked for seldom, and a question for each token
            self._ends = tuple(token for token in range(self.size) if self.ends(token))
        return self._ends

    def check(self, ids: Sequence[int]) -> None:
        """Raise UsageError for an id that the model does not have."""
        for token in ids:
            if not 0 <= token < self.size:
                raise UsageError(f"the token {token} is not one of the model's {self.size}.")
