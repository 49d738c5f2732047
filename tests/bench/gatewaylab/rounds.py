"""Figures of several contenders over rounds that had them all, and the rows they make."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from report import Row, row

Figures = dict[str, float]


class Rounds:
    """What was found of each contender, a value of each figure a round.

    `ours` and `direct` name the one that goals are for and the one that is nothing in between;
    `floor` is no peer, but what ours is made on.
    """

    def __init__(self, names: Sequence[str], *, ours: str, direct: str, floor: str) -> None:
        self.names = names
        self._ours, self._direct, self._floor = ours, direct, floor
        self._found: dict[str, list[Figures]] = {name: [] for name in names}

    def note(self, name: str, figures: Figures) -> None:
        """Take one contender's figures of a round, in the order of the rounds."""
        self._found[name].append(figures)

    def words(self, name: str) -> str:
        """Return a contender's last figures in short."""
        last = self._found[name][-1]
        return ", ".join(f"{figure}: {value:.3g}" for figure, value in last.items())

    def absolute(self, figure: str) -> Callable[[str], float]:
        """Return a function of the contender: the figure's median."""
        return lambda name: statistics.median(one[figure] for one in self._found[name])

    def added(self, figure: str) -> Callable[[str], float]:
        """The same of what was added to no gateway's figure in the same round."""
        return lambda name: statistics.median(
            one[figure] - direct[figure]
            for one, direct in zip(self._found[name], self._found[self._direct], strict=True)
        )

    def row(
        self, title: str, of: Callable[[str], float], unit: str, goal: float | None = None, *,
        higher: bool = False,
    ) -> Row:  # fmt: skip
        """Return a row, with the best of the peers beside ours."""
        others = {name: of(name) for name in self.names
                  if name not in (self._ours, self._direct)}  # fmt: skip
        peers = [value for name, value in others.items() if name != self._floor]
        best = (max if higher else min)(peers, default=None)
        words = ", ".join(f"{name} {value:.3f}" for name, value in others.items())
        return row(
            title, of(self._ours), unit, goal=goal, higher=higher, peer=best, limit=words or None
        )
