"""Every state that two slots can be in."""

from __future__ import annotations

from itertools import product

from image.node.slots import Bad, Empty, Good, Standing, State, Trial

STANDINGS: tuple[Standing, ...] = (
    Good(), Empty(), Bad("tries"), Bad("unreadable"), Bad("unhealthy"),
    Trial(3), Trial(2), Trial(1), Trial(0),
)  # fmt: skip
STATES = [
    State(first, a, b)
    for first in ("a", "b")
    for a, b in product(STANDINGS, STANDINGS)
    if Good() in (a, b)
]
