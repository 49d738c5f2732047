"""What a model for embeddings or ranks is to whoever asks it: the type between it and HTTP.

A core: types only, as `generation.py` for models that make text. `embedder.py` implements
`Encoder`; `agent.engine.serve.embeddings` is written against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.engine.generation import Served
from agent.engine.purpose import Purpose

Vectors = npt.NDArray[np.float32]


class Encoder(Served, Protocol):
    """A loaded model that makes one vector of each text."""

    @property
    def purpose(self) -> Purpose:
        """Embeddings or ranks."""
        ...

    @property
    def width(self) -> int:
        """How many values a vector has."""
        ...

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, with those that the model wants around it."""
        ...

    def pair(self, query: str, document: str) -> tuple[int, ...]:
        """Return the token ids by which a model for ranks is asked about a document."""
        ...

    def check(self, ids: Sequence[int]) -> None:
        """Raise UsageError for an id that the model does not have."""
        ...

    async def encode(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """Return the vectors (texts, width) of texts of 1 to `context` known tokens each.

        Embeddings have length 1; of a rank the first value is the relevance. Cancelling drops what
        is not computed yet. Raises EngineError when the engine is broken.
        """
        ...
