"""What this node knows of itself and its network, as all its pairs see it. A core.

`engine.py` keeps it up to date; the pairs read it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.identity.keys import NodeId
from agent.paths.allowance import Allowance
from agent.paths.birthday import Turns
from agent.paths.candidates import Surroundings
from agent.paths.messages import SESSION_MAX, Candidate, NatKind, Place
from agent.paths.outputs import Output

# Paths that fail at once, as when a relay or this network does; after so many it is this machine or
# its peers that are too slow to answer, and all that is done in haste makes them slower.
ALARMS_PER_S, ALARMS_BURST = 0.25, 24.0


@dataclass(frozen=True)
class Rendezvous:
    """A member that says where it sees us, on WireGuard's port and on `second`."""

    node: NodeId
    place: Place
    second: Place | None = None


@dataclass(frozen=True)
class RelayNode:
    """A member that relays, and its addresses."""

    node: NodeId
    hosts: frozenset[str]


@dataclass
class Own:
    """One node, and `out`, which takes what is to be done.

    `relays`: nearest first. `observe_soon(now)` has the rendezvous asked at once.
    """

    id: NodeId
    epoch: int
    rng: random.Random
    out: Callable[[Output], None]
    observe_soon: Callable[[float], None]
    around: Surroundings = field(default_factory=Surroundings)
    nat: NatKind = NatKind.UNKNOWN
    public_hosts: frozenset[str] = frozenset()
    candidates: tuple[Candidate, ...] = ()
    relays: tuple[RelayNode, ...] = ()
    birth: int = 0  # of WireGuard's interface, which may be older than this agent; 0: nobody said
    turns: Turns = field(default_factory=Turns)
    alarms: Allowance = field(default_factory=lambda: Allowance(ALARMS_PER_S, ALARMS_BURST))

    def first_session(self, peer: NodeId) -> int:
        """Return the number, up to SESSION_MAX, of WireGuard's first session with a peer.

        An agent that goes on with the interface of a killed one says the same: no session is new.
        """
        if not self.birth:
            return self.rng.randint(1, SESSION_MAX)
        seed = self.birth.to_bytes(8) + peer.ed25519
        return int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest()) % SESSION_MAX + 1

    def relay_host(self, host: str) -> bool:
        """Say whether an address is that of a relay we know."""
        return any(host in relay.hosts for relay in self.relays)
