"""What went wrong at each address of a peer: the words of the control plane's errors.

A core. `node.py` collects a `Trouble` for each address that it tries; the sentence that a person
reads is made here, in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from agent.errors import PeerError


class Trouble(Enum):
    """Why one address did not lead to the peer; the value follows the address in a sentence."""

    SILENT = "did not answer"
    REFUSED = "refused the connection"
    UNREACHABLE = "cannot be reached"
    UNKNOWN_NAME = "is a name that cannot be resolved"
    HANDSHAKE = "did not complete the handshake"
    OTHER_NODE = "is another node"


# What a request's error begins with when its connection ended under it.
BROKE = "the connection broke before the node had answered"


def unreachable(
    peer: str | None, troubles: Mapping[str, Trouble], addresses: Sequence[str], timeout_s: float
) -> PeerError:
    """Return the error for a peer of which no address led to it.

    `peer` is its full id, None if any node would do; an address without an entry in `troubles` did
    not answer in time.
    """
    who = f"(peer …{peer[-8:]})" if peer else "(any node)"
    if not addresses:
        return PeerError(
            f"no address is known for this node {who}",
            hint="Wait until it has announced itself, or name one with --bootstrap.",
        )
    found = {address: troubles.get(address, Trouble.SILENT) for address in addresses}
    parts = []
    for address, trouble in found.items():
        within = f" within {timeout_s:g} s" if trouble is Trouble.SILENT else ""
        parts.append(f"{address} {trouble.value}{within}")
    return PeerError(f"{'; '.join(parts)} {who}", hint=_advice(set(found.values())))


def _advice(troubles: set[Trouble]) -> str:
    if troubles & {Trouble.SILENT, Trouble.HANDSHAKE}:
        return (
            "Check that an agent runs there, that nothing blocks its TCP port, that both clocks "
            "are right, and that it belongs to the same mesh: a node of another mesh does not "
            "answer."
        )
    if Trouble.REFUSED in troubles:
        return "Check that the agent runs there and listens on this port."
    if Trouble.OTHER_NODE in troubles:
        return "Ask for a new ticket or address: this one now belongs to a different node."
    if Trouble.UNKNOWN_NAME in troubles:
        return "Check the name, or use an IP address."
    return "Check this machine's network and the route to the address."
