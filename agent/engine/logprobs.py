"""How likely tokens were, by the logits of a row: for the head, and only where it is asked for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]

# OpenAI's word for what cannot come: JSON has no infinity.
IMPOSSIBLE = -9999.0


def logprobs(logits: Logits, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the natural logprob of a token, and the `count` likeliest ones with theirs, in order.

    `logits` are those of the whole vocabulary, as the model gave them.
    """
    most = logits.max()
    total = float(most) + float(np.log(np.exp(logits - most).sum(dtype=np.float64)))
    own = _told(logits[token], total)
    if not count:
        return own, []
    rest = max(0, len(logits) - count)
    likeliest = np.argpartition(logits, rest)[rest:]
    ordered = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    return own, [(int(found), _told(logits[found], total)) for found in ordered]


def _told(logit: np.float32, total: float) -> float:
    return max(float(logit) - total, IMPOSSIBLE)
