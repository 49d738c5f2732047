"""How all unit tests run hypothesis: without its deadline, since the machines are shared."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("covey", deadline=None)
settings.load_profile("covey")
