"""How fast a link of the ring is: probes to the successor, once the ring is joined.

For `loaded.py`, in a ring whose row types are not set by hand. Each probe is four times as large
as the one before, until one takes a while, or shows that there is plenty for this model's rows, or
no more than the one before: TCP has found its pace. So a link is asked 320 KiB to 5.3 MiB, and a
slow one little; empty ones show how long nothing takes. A slow one is tried again: it may have been
a busy machine. All stages measure at the same time, and each answers its predecessor's probes
meanwhile, and later too (`link.py`).
"""

from __future__ import annotations

import logging
import math
import select
import time

from agent.engine.frames import MAX_PROBE_BYTES
from agent.engine.join import Patience
from agent.engine.link import Inlet, Outlet

log = logging.getLogger(__name__)

_FIRST_BYTES = 64 << 10
# A probe that takes so long tells enough: several turns of a long link, and long for a clock.
_ENOUGH_S = 0.2
# What crosses at once may be a shaper's burst.
_BURST_BYTES = 64 << 10
# TCP's window at least doubles from one probe to the next while it still grows.
_STEADY = 0.25
# A link on which 64 KiB take longer is slow enough to know.
_AT_MOST_S = 3.0
_STEP_S = 0.2
_EMPTY_PROBES = 3


def measure(inlet: Inlet, outlet: Outlet, patience: Patience) -> float:
    """Return the bytes a second that go to the successor; raises Lost when a neighbour is gone.

    Where they are plenty (`row_types.py`), more may go. A link that gives no answer within some
    seconds counts as one that takes that long.
    """
    patience = patience.at_most(_AT_MOST_S)
    bandwidth = before = _FIRST_BYTES / _AT_MOST_S
    empty = [_echo_s(0, inlet, outlet, patience) for _ in range(_EMPTY_PROBES)]
    size = _FIRST_BYTES
    while size <= MAX_PROBE_BYTES:
        took_s = _echo_s(size, inlet, outlet, patience)
        if took_s > _ENOUGH_S:
            took_s = min(took_s, _echo_s(size, inlet, outlet, patience))
        if math.isinf(took_s):
            break
        before, bandwidth = bandwidth, size / max(took_s - min(empty), 1e-6)
        settled = bandwidth >= outlet.types.plenty or abs(bandwidth / before - 1) <= _STEADY
        if took_s > _ENOUGH_S or (size > _BURST_BYTES and settled):
            break
        size *= 4
    log.info("%s takes %.1f Mbit/s", outlet.name, 8e-6 * bandwidth)
    return bandwidth


def _echo_s(size: int, inlet: Inlet, outlet: Outlet, patience: Patience) -> float:
    """Return how long a probe's echo took; infinite when time was up."""
    if not patience.left_s():
        return math.inf
    started = time.perf_counter()
    outlet.probe(size, inlet)
    while left := patience.left_s():
        # A predecessor that has sent a frame asks nothing any more; the frame waits.
        files: list[Inlet | Outlet] = [outlet] if inlet.has_waiting else [outlet, inlet]
        ready, _, _ = select.select(files, [], [], min(left, _STEP_S, outlet.ping_s))
        if outlet in ready and outlet.echoed():
            return time.perf_counter() - started
        if inlet in ready:
            inlet.pump()
        outlet.ping()
    return math.inf
