"""What one peer can have us send to places that never answered. A core.

A peer says itself where it is, and may name a third party. What we send there is bounded, so that
its signals cost it as much as they cost whom they name. The credit outlives the pair: else a peer
would be let go and begin anew.
"""

from __future__ import annotations

from agent.paths.allowance import Allowance

# Two rounds of a full signal, and then less than its signals cost.
PROBES_PER_S, PROBES_BURST = 4.0, 256.0
# Attempts on random ports (birthday.py) that did not hit: 1,600 datagrams each.
SALVOS_PER_S, SALVOS_BURST = 1 / 300, 4.0


class Credit:
    """One peer's."""

    __slots__ = ("probes", "salvos")

    def __init__(self) -> None:
        self.probes = Allowance(PROBES_PER_S, PROBES_BURST)
        self.salvos = Allowance(SALVOS_PER_S, SALVOS_BURST)
