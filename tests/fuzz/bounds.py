"""Smaller limits for the time of a run, so that a store is full early and its eviction is at work.

A store of thousands fills over most of a million inputs, and while it fills nobody can tell it from
one that grows for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

SHARE = 16


@contextlib.contextmanager
def small(limits: Mapping[ModuleType, Sequence[str]]) -> Iterator[None]:
    """Divide these constants of modules by SHARE until the end of the block."""
    whole = {(module, name): getattr(module, name) for module in limits for name in limits[module]}
    try:
        for (module, name), value in whole.items():
            setattr(module, name, value // SHARE)
        yield
    finally:
        for (module, name), value in whole.items():
            setattr(module, name, value)
