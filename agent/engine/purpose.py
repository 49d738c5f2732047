"""What a model is for, as its file says it: text, embeddings of texts, or ranks for pairs of them.

A core. Used by whoever plans and by the engine process: what makes no text runs whole on one node,
and its engine serves other requests.
"""

from __future__ import annotations

from typing import Literal

Purpose = Literal["text", "embeddings", "ranks"]

# llama.cpp's numbers for how the rows of a text become one.
POOLING_NONE = 0
POOLING_MEAN = 1
_POOLING_RANK = 4
POOLINGS = range(1, 5)  # the mean, that of the first row, of the last, ranks

# Architectures of llama.cpp that cannot make text: their attention sees what comes behind as well.
_ENCODERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)

# Tokens of one text, where nobody said. A text lies in one batch, and for each token of a batch
# llama.cpp keeps room for a number for every word: 250 MB here for 30,000 words.
ENCODER_CONTEXT = 2048


def only_encodes(architecture: str) -> bool:
    """Say whether models of an architecture cannot make text."""
    return architecture in _ENCODERS


def purpose(architecture: str, pooling: int | None) -> Purpose:
    """Return it by the architecture and its `pooling_type` (None where the file does not say it).

    A model that was made from one that writes text but says how to pool is one for embeddings.
    """
    if pooling == _POOLING_RANK:
        return "ranks"
    return "embeddings" if only_encodes(architecture) or pooling else "text"
