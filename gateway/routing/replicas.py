"""The words of routing: replicas, what a request needs, an attempt, and what a choice comes to.

A core without behaviour, used by all of `gateway.routing` and by those who ask it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


class Fault(enum.Enum):
    """What went wrong with a request at a replica before the client got a byte, or after."""

    UNREACHABLE = "unreachable"  # no connection, or it broke
    REFUSED = "refused"  # 502, 503, 504: it says itself that it cannot serve now
    ERROR = "error"  # another 5xx
    SLOW = "slow"  # it served, many times later than the others would have


@dataclass(frozen=True)
class Replica:
    """Something that answers OpenAI requests; `url` has no /v1, `source` says who named it.

    `models` is empty for an outside server until its first check; `context` is in tokens; `kinds`
    are the last words of the paths it serves (`embeddings`), empty where that is not known.
    `vision`: the operator says that its models see; some servers say it themselves of some.
    """

    name: str
    url: str
    source: str
    models: tuple[str, ...] = ()
    context: int | None = None
    kinds: tuple[str, ...] = ()
    vision: bool = False


class Shown(NamedTuple):
    """What a request shows that is no text: where, as clients write it, and the part's type."""

    where: str
    type: str


@dataclass(frozen=True)
class Need:
    """What a request needs of a replica, as far as routing is concerned.

    `kind` is the last word of its path; `prefix` the hashes of `prefixes.blocks`; `session` what
    the client calls its conversation; `strategy` its wish. Empty and zero: it does not say.
    With `shown` it is only for replicas that see.
    """

    model: str
    streamed: bool = False
    kind: str = ""
    prompt_bytes: int = 0
    max_tokens: int = 0
    prefix: tuple[int, ...] = ()
    session: str = ""
    strategy: str = ""
    shown: Shown | None = None


@dataclass(eq=False)
class Attempt:
    """A request at a replica, from the choice to its end; `load` is what predicts its time.

    `late_s` is how overdue the replica is with others; `others_s` what the others would take;
    `hedge`: it is the second of a request that waits elsewhere.
    """

    url: str
    need: Need
    begun: float
    predicted_s: float = 0.0
    late_s: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    load: tuple[float, ...] = ()
    # Filled in when the first byte is there; the rest of the answer is timed from then on.
    first_at: float | None = None
    there: float = 0.0  # requests at the replica
    others_s: float | None = None
    hedge: bool = False

    @property
    def expected_s(self) -> float:
        """The seconds to the first byte, as far as can be told."""
        return self.predicted_s + self.late_s

    @property
    def uncached_ktokens(self) -> float:
        """How much of the prompt the replica has to work through, in thousands of tokens."""
        return max(self.prompt_tokens - self.cached_tokens, 0.0) / 1000


@dataclass(frozen=True)
class Picked:
    """The choice for a request: who, when its first byte comes, and the reason in words.

    Before `soonest_s` it hardly ever comes; None: too little is known of the replica.
    """

    replica: Replica
    soonest_s: float | None
    route: str
    attempt: Attempt


@dataclass(frozen=True)
class UnknownModel:
    """No replica has the model, and none is to have it; these are known."""

    known: tuple[str, ...]


@dataclass(frozen=True)
class TextOnly:
    """The model's replicas read text, as far as they tell, and the request shows something else."""

    shown: Shown


@dataclass(frozen=True)
class NoneUsable:
    """Replicas of the model exist, but none can be used for another `retry_after_s` seconds.

    `awaited`: see `router.py`; a request may well wait. `doubted`: those that refused a request:
    each has too much to do, or its ring is being replaced, which a check would tell.
    """

    retry_after_s: float
    reasons: tuple[str, ...]
    awaited: bool = False
    doubted: tuple[Replica, ...] = ()
