"""Discovery measured: real nodes on loopback, and thousands of simulated ones on virtual time.

`rows` and `simulated_rows` are what tests/bench/mesh.py asks for. The unit tests and the fuzz use
`virtual.py`, with its NATs, and `root.py`.
"""

from __future__ import annotations

from typing import Any


def rows(quick: bool) -> list[dict[str, Any]]:
    """Measure real nodes, and the library beside them; see `real.py`."""
    from dht import real

    return real.rows(quick)


def simulated_rows(quick: bool) -> list[dict[str, Any]]:
    """Measure simulated nodes; see `simulate.py`."""
    from dht import simulate

    return simulate.rows(quick)
