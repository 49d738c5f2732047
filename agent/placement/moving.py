"""When a ring that runs moves for a gain alone: rarely, and never to and fro.

A core: `now` is in seconds of any clock that does not go back. `gain.py` says what there would be
to gain; `agent.deploy.gain` looks, and does it.

| what is known of the best other ring | then |
|---|---|
| it gains less than `GAIN_LEAST` | the ring stays |
| it, or what it is compared with, is a guess | stays: measuring may show another |
| what it saves in `horizon_tokens` is less than fetching and the pause | stays |
| it has been so for less than `SEEN_S` | it is looked at again |
| its nodes were left for a gain within `BACK_S`, and it gains less than `GAIN_BACK` | stays |
| the last move is less than the rest ago | later: `REST_S`, twice as long after each move |
| else | the ring moves |

A gain of a fifth each way needs figures that differ by a quarter: what wavers by a tenth moves a
ring to where it is better by the truth as well, so no ring is come back to. Figures that change
more, because a line is as full as the ring makes it, are what the rest and `BACK_S` are for.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.placement.gain import Gain

GAIN_LEAST = 0.2
# Less than this is not worth a word: figures waver by as much.
_WORTH_A_WORD = 0.05
# Two looks and some more: a neighbour's download is over, or it is not a short one.
SEEN_S = 45.0
# A ring is built in a few seconds where its weights are there.
PAUSE_S = 5.0
REST_S, REST_MOST_S = 300.0, 6 * 3600.0
# A ring that did not move for so long is one that never did.
_FORGOTTEN_S = 86_400.0
GAIN_BACK, BACK_S = 0.5, 86_400.0


@dataclass(frozen=True)
class Verdict:
    """Whether a ring is to move now, and why or why not, as a sentence; "" where nothing is."""

    moves: bool
    words: str


class Moving:
    """What one deployment's moves were, and since when a better ring is known."""

    def __init__(self) -> None:
        self._rest_s = REST_S
        self._moved_at: float | None = None
        self._since: float | None = None
        self._left: dict[frozenset[str], float] = {}

    @property
    def waits(self) -> bool:
        """Whether a better ring is known, and is to be looked at again soon."""
        return self._since is not None

    def forget(self) -> None:
        """Say that nothing can be compared now; a gain has to be seen anew."""
        self._since = None

    def judge(self, gain: Gain, now: float, *, horizon_tokens: float) -> Verdict:
        """Say what a gain that is seen now is worth."""
        if gain.share < GAIN_LEAST:
            self._since = None
            small = gain.share >= _WORTH_A_WORD
            return Verdict(False, f"{_known(gain)}; that is not worth a move" if small else "")
        if gain.guessed:
            self._since = None
            named = ", ".join(gain.guessed[:3])
            return Verdict(False, f"{_known(gain)}; that is a guess: {named} not measured")
        costs_s = gain.fetch_s + PAUSE_S
        if gain.saved_s * horizon_tokens < costs_s:
            self._since = None
            tokens = costs_s / gain.saved_s
            return Verdict(False, f"{_known(gain)}; moving would take {tokens:,.0f} tokens to pay")
        since = self._since = now if self._since is None else self._since
        if now - since < SEEN_S:
            return Verdict(False, f"{_known(gain)}; it moves if that lasts")
        left_at = self._left.get(frozenset(gain.plan.nodes))
        if left_at is not None and now - left_at < BACK_S and gain.share < GAIN_BACK:
            return Verdict(False, f"{_known(gain)}; it was there before and left for a better one")
        if self._moved_at is not None and now - self._moved_at < self._rest_s:
            left_s = self._rest_s - (now - self._moved_at)
            return Verdict(False, f"{_known(gain)}; it moves in {_minutes(left_s)} if that lasts")
        return Verdict(True, _known(gain))

    def moved(self, left: frozenset[str], to: frozenset[str], now: float) -> None:
        """Note that the ring moves from these nodes (ids) to those, perhaps the same."""
        if self._moved_at is not None:
            recent = now - self._moved_at < _FORGOTTEN_S
            self._rest_s = min(2 * self._rest_s, REST_MOST_S) if recent else REST_S
        self._moved_at, self._since = now, None
        self._left = {nodes: at for nodes, at in self._left.items() if now - at < BACK_S}
        if left != to:
            self._left[left] = now


def _known(gain: Gain) -> str:
    return f"a better ring is known: {gain.words}"


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"
