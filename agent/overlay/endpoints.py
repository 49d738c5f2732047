"""Which of a peer's candidate endpoints WireGuard shall be given now. A core; direct paths only.

| state | handshake | candidate set for | what happens |
|---|---|---|---|
| any | fresh (under 180 s) | any | stay, and give no endpoint away: WireGuard may have roamed |
| trying i | none or old | under 6 s | stay with i |
| trying i | none or old | 6 s or more | try i + 1, after the last the first again |
| any | any | candidates changed | stay if the current one is still there, else the first |

The daemon calls `advance` about once a second per peer. NATs are for the path engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.overlay.device import Endpoint

# WireGuard sends a handshake again after 5 s (REKEY_TIMEOUT) plus up to a third of a second of
# jitter, so 6 s give every candidate at least one whole try.
TRY_INTERVAL_S = 6.0
# WireGuard throws a session away at 180 s (REJECT_AFTER_TIME) and makes a new one before that.
FRESH_HANDSHAKE_S = 180.0


@dataclass(frozen=True)
class Choice:
    """A peer's candidates, best first, which one is set, and since when (unix seconds)."""

    candidates: tuple[Endpoint, ...] = ()
    index: int = 0
    since: float = 0.0

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint to put into PeerConfig; None when there is no candidate."""
        return self.candidates[self.index] if self.candidates else None


def advance(
    choice: Choice, candidates: Sequence[Endpoint], last_handshake: float | None, now: float
) -> Choice:
    """Return the choice that holds at `now` (unix s), given the newest handshake (None: never)."""
    choice = _with_candidates(choice, tuple(dict.fromkeys(candidates)), now)
    if not choice.candidates:
        return choice
    if last_handshake is not None and now - last_handshake < FRESH_HANDSHAKE_S:
        # When it goes stale this candidate, the one that worked, gets a whole try again.
        return replace(choice, since=now)
    if now - choice.since < TRY_INTERVAL_S:
        return choice
    return replace(choice, index=(choice.index + 1) % len(choice.candidates), since=now)


def _with_candidates(choice: Choice, candidates: tuple[Endpoint, ...], now: float) -> Choice:
    if candidates == choice.candidates:
        return choice
    current = choice.endpoint
    if current is not None and current in candidates:
        return replace(choice, candidates=candidates, index=candidates.index(current))
    return Choice(candidates, 0, now)
