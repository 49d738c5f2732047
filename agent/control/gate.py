"""Who gets in: members, and for a moment those who want to become one. A core.

`links.py` asks about connections, `node.py` about streams, `topics.py` about links. A stranger here
has the network key and has proved an identity, and is no member: a newcomer with a ticket, or one
who was revoked or whose certificate has expired. Of what it may ask, `strangers` is the list.

Before that, a connection is a caller: nothing is known of it. Callers are few at a time; when there
are too many, one of the address with the most is dropped for the new one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

# Connections that have not named themselves yet: of everybody.
MAX_CALLERS = 64
# Strangers' connections: of everybody, and of one address (an office behind one NAT).
MAX_STRANGERS = 32
MAX_STRANGERS_PER_ADDRESS = 8
# A stranger with a request has this long in all, and this long without one.
STRANGER_LIMIT_S = 30.0
STRANGER_IDLE_S = 3.0


class Gate:
    """The members, and what is served to whom."""

    def __init__(self) -> None:
        self.members: frozenset[bytes] = frozenset()
        self._served: dict[str, bool] = {}
        self._strangers: Counter[str] = Counter()

    def set_members(self, nodes: Collection[bytes]) -> None:
        """Replace who is a member (ids of 32 bytes each)."""
        self.members = frozenset(nodes)

    def serve(self, protocol: str, *, strangers: bool) -> None:
        """Answer a protocol: to members, or to strangers as well."""
        self._served[protocol] = strangers

    def serves(self, node: bytes, protocol: str) -> bool:
        """Say whether `node` may open a stream of this protocol."""
        strangers = self._served.get(protocol)
        return strangers is not None and (strangers or node in self.members)

    def admit(self, address: str) -> bool:
        """Count a stranger's connection from an IP address; False when there are too many."""
        if not any(self._served.values()):
            return False
        if self._strangers.total() >= MAX_STRANGERS:
            return False
        if self._strangers[address] >= MAX_STRANGERS_PER_ADDRESS:
            return False
        self._strangers[address] += 1
        return True

    def release(self, address: str) -> None:
        """The stranger's connection has ended, or it has become a member."""
        self._strangers[address] -= 1
        if self._strangers[address] <= 0:
            del self._strangers[address]


class Callers:
    """Connections in their handshake, by a number that the shell gives them."""

    def __init__(self, limit: int = MAX_CALLERS) -> None:
        self._limit = limit
        self._addresses: dict[int, str] = {}

    def enter(self, number: int, address: str) -> int | None:
        """Take a caller in; return another that is to be dropped for it, or None."""
        self._addresses[number] = address
        if len(self._addresses) <= self._limit:
            return None
        most = Counter(self._addresses.values()).most_common(1)[0][0]
        oldest = next(n for n, a in self._addresses.items() if a == most)
        del self._addresses[oldest]
        return oldest

    def leave(self, number: int) -> None:
        """A caller has named itself, or has gone."""
        self._addresses.pop(number, None)
