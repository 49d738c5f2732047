"""What other nodes said of a deployment lately: who coordinates it, and where it runs. A core.

It counts for FRESH_S and is never the reason to act on a ring; a lease is. Used by `owner.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.identity.keys import NodeId
from agent.ownership import rendezvous
from agent.ownership.duty import Phase
from agent.ownership.lease import Token
from agent.ownership.pulse import SILENCE_S

# Four beats: what was not said again for so long is not so any more.
FRESH_S = 2.0
# A deputy that waited out its owner's silence still knows which head there was.
MEMORY_S = 4.0


@dataclass(frozen=True)
class Told:
    """An owner's last beat: what it said, when it came, and whether more follow (`deputy`)."""

    owner: NodeId
    head: NodeId | None
    token: Token | None
    at: float
    deputy: bool


@dataclass
class _Known:
    told: Told | None = None
    heads: dict[NodeId, tuple[Phase, float]] = field(default_factory=dict)


class Hearsay:
    """By deployment; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def beat(self, name: str, told: Told) -> None:
        """Note an owner's beat. Of two that beat, the one who comes first is believed."""
        known = self._known.setdefault(name, _Known())
        old = known.told
        if (
            old is None or old.owner == told.owner or told.at - old.at > SILENCE_S
            or rendezvous.above(name, told.owner, old.owner)
        ):  # fmt: skip
            known.told = told
        if told.head is not None and told.token is not None:
            phase, _ = known.heads.get(told.head, (Phase.BUILDING, told.at))
            known.heads[told.head] = phase, told.at

    def runs(self, name: str, head: NodeId, phase: Phase, now: float) -> None:
        """Note where a deployment runs, or that it does not run there."""
        if phase is not Phase.NONE:
            self._known.setdefault(name, _Known()).heads[head] = phase, now
        elif name in self._known:
            self._known[name].heads.pop(head, None)

    def told(self, name: str, now: float, within_s: float) -> Told | None:
        """Return the last beat if it is not older than `within_s`."""
        known = self._known.get(name)
        told = known.told if known else None
        return told if told is not None and now - told.at <= within_s else None

    def heads(self, name: str) -> dict[NodeId, Phase]:
        """Return where a deployment runs."""
        known = self._known.get(name)
        return {head: phase for head, (phase, _) in known.heads.items()} if known else {}

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        for name, known in list(self._known.items()):
            known.heads = {h: seen for h, seen in known.heads.items() if now - seen[1] <= FRESH_S}
            if not known.heads and (known.told is None or now - known.told.at > MEMORY_S):
                del self._known[name]
