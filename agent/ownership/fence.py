"""Fencing: a stage host obeys no older token after a newer one of the same ring. A core.

A head passes its owner's token down with every command. When the ring's owner has changed, a
command of the former one that was delayed on its way is refused here. Used by the stage host.
"""

from __future__ import annotations

from agent.ownership.lease import Token

# Commands travel in streams that end within seconds. Forgotten later, so that a head whose own
# memory was lost (and whose epochs start again) is not locked out for ever.
MEMORY_S = 600.0


class Fence:
    """The highest token seen of each ring; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._highest: dict[str, tuple[Token, float]] = {}

    def admit(self, ring: str, token: Token, now: float) -> bool:
        """Say whether to obey a command with `token`, and remember the token if so."""
        self._forget(now)
        seen = self._highest.get(ring)
        if seen is not None and token != seen[0] and token.epoch <= seen[0].epoch:
            return False
        self._highest[ring] = (token, now)
        return True

    def highest(self, ring: str) -> Token | None:
        """Return the highest token seen of a ring."""
        seen = self._highest.get(ring)
        return seen[0] if seen else None

    def _forget(self, now: float) -> None:
        old = [ring for ring, (_, at) in self._highest.items() if now - at > MEMORY_S]
        for ring in old:
            del self._highest[ring]
