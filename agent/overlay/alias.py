"""What an interface's alias says of whose it is. A core.

    covey KEY BIRTH PLACE CLAIM

`KEY` is the WireGuard public key (base64), `BIRTH` a number of the interface that it keeps, `PLACE`
a hash of the state directory of its agent, and `CLAIM` a number of the agent that has it now. The
alias lives and dies with the interface, and `ip link` shows it. What has no such alias, or another
key or place, is somebody else's and never touched: two agents cannot have one state directory at
once, so whoever comes upon an interface of its own knows that the agent that made it is dead.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace

_WORD = "covey"
_NUMBER_MAX = 2**32
_PLACE_BYTES = 6


@dataclass(frozen=True)
class Keeping:
    """What becomes of a device whose agent was killed.

    `outlive_s`: seconds that it stays without one. `place`: the agent's state directory, any text.
    """

    outlive_s: float = 0.0
    place: str = ""


NOT_KEPT = Keeping()


@dataclass(frozen=True)
class Alias:
    """An alias, taken apart; `key` is 32 bytes, the numbers are below 2**32."""

    key: bytes
    place: str
    birth: int
    claim: int

    def text(self) -> str:
        """Return it as the interface has it."""
        key = base64.b64encode(self.key).decode()
        return f"{_WORD} {key} {self.birth:x} {self.place} {self.claim:x}"

    def claimed(self, claim: int) -> Alias:
        """Return it as another agent has it that goes on with the interface."""
        return replace(self, claim=claim % _NUMBER_MAX)

    def same_owner(self, other: Alias) -> bool:
        """Say whether both are of one node and its state directory."""
        return (self.key, self.place) == (other.key, other.place)


def of(key: bytes, keeping: Keeping, number: int) -> Alias:
    """Return the alias of a new interface; `number` is by chance, below 2**32."""
    place = hashlib.blake2b(keeping.place.encode(), digest_size=_PLACE_BYTES).hexdigest()
    return Alias(key, place, number % _NUMBER_MAX, number % _NUMBER_MAX)


def parse(text: str) -> Alias | None:
    """Read an alias; None for what is none of a Covey node."""
    words = text.split(" ")
    if len(words) != 5 or words[0] != _WORD:
        return None
    _, key, birth, place, claim = words
    try:
        found = Alias(base64.b64decode(key, validate=True), place, int(birth, 16), int(claim, 16))
    except (ValueError, binascii.Error):
        return None
    return found if len(found.key) == 32 and found.text() == text else None
