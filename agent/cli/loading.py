"""Imports what a running agent needs, libp2p included: two seconds on a slow machine.

Whoever starts one can have that done while something else still goes on: the agent that it
replaces, or a machine that boots.
"""

from __future__ import annotations

import contextlib
import gc


def load() -> None:
    """Import it all; Python's collector of garbage is off from then on, until the agent is up.

    Nothing that is imported is garbage, and a fifth of the time would be spent on looking for it.
    """
    gc.disable()
    from agent import daemon, enrol
    from agent.overlay import auto

    del auto, daemon, enrol
    # A node can do without the control plane, which says itself why libp2p cannot be imported.
    with contextlib.suppress(Exception):
        from agent.control import lean

        lean.prepare()
        from agent.control import node

        del node
