"""How far a long piece of work is, as a line. A core."""

from __future__ import annotations

_MIB = 1 << 20
# Before that a rate is that of a cache.
_LEAST_S = 1.0


def line(what: str, done: int, total: int, elapsed_s: float) -> str:
    """Return "Writing: 300 of 1217 MiB, 25.0 MiB/s, 37 s left" for bytes done after some time."""
    shown = f"{what}: {done // _MIB} of {-(-total // _MIB)} MiB"
    if elapsed_s < _LEAST_S or not done:
        return shown
    rate = done / elapsed_s
    return f"{shown}, {rate / _MIB:.1f} MiB/s, {_span((total - done) / rate)} left"


def _span(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"
