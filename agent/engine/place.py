"""A process's place in its ring, and the error that says where the ring broke.

A core. For `link.py` and all that works with its ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine.frames import Hello, Limits, RowType
from agent.engine.silence import LEAST_S
from agent.errors import EngineError

# Pings come this many times within the least silence that is a fault: five a second.
_PINGS_PER_SILENCE = 8
_HINT = "Look at that node's agent log."


class Lost(EngineError):
    """A neighbour's connection ended, fell silent or carried a fault; `stage` is who is broken."""

    def __init__(self, stage: int, reason: str) -> None:
        super().__init__(f"the ring is broken: {reason}.", hint=_HINT)
        self.stage = stage
        self.reason = reason


def blamed(error: Exception) -> int:
    """Return the stage that is to blame for a broken ring, -1 where it is not known."""
    return error.stage if isinstance(error, Lost) else -1


@dataclass(frozen=True)
class Membership:
    """What both ends of a connection must agree on, and this end's place in the ring.

    `stages` counts all processes of the ring with the head, `stage` is this one (the head is 0).
    `row_type` is how rows leave this stage; None: as the link's bandwidth has it. Silence is a
    fault after `silence_s`, on a link that was never late after `least_s` (`silence.py`).
    """

    ring: bytes
    epoch: int
    stage: int
    stages: int
    limits: Limits
    row_type: RowType | None
    model: bytes
    silence_s: float
    least_s: float = LEAST_S

    @property
    def predecessor(self) -> int:
        """The stage whose frames come here."""
        return (self.stage - 1) % self.stages

    @property
    def successor(self) -> int:
        """The stage to which frames go."""
        return (self.stage + 1) % self.stages

    @property
    def ping_s(self) -> float:
        """How long to be quiet before a ping."""
        return min(self.least_s, self.silence_s) / _PINGS_PER_SILENCE

    @property
    def turn_s(self) -> float:
        """How long a frame may take to a neighbour, or round the ring, although everybody lives."""
        return self.silence_s * self.stages

    def hello(self, layer: int) -> Hello:
        """Return this end's hello, for the boundary before `layer`."""
        return Hello(self.ring, self.epoch, self.stage, layer, self.limits.n_embd, self.model)
