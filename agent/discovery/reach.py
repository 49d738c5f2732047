"""Whether this node can be reached from outside, found out by itself. A core.

Used by `protocol.py`, which reports what is sent and what comes, and by `upkeep.py`, which runs the
tests. Only nodes that were reached serve; others ask, publish and find, and stand in nobody's
routing table. Times are loop times in seconds, given as `now`.

A node may be reachable from its LAN and not from beyond its NAT, so there is a verdict for each
scope of addresses (IPv4 or IPv6; loopback, private or global), and it is told to peers in that
scope.

    verdict      serves   becomes
    UNTRIED      no       REACHED by a proof; CLIENT when probes were promised and none came;
                          ASSUMED when nobody could test
    ASSUMED      yes      REACHED or CLIENT, likewise
    REACHED      yes      CLIENT when two tests in a row failed
    CLIENT       no       REACHED by a proof

A proof is a probe with the id of our running test, or any member's question, from a place that this
node has not sent to for as long as a NAT may remember that it did. A probe comes from a fresh port,
which all NATs but those that filter by address alone hold back; so a probe from a host that was
sent to counts only when all that were promised have come.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

# How long a NAT or firewall may let answers in after the last datagram that went out. RFC 4787
# wants at least two minutes and recommends five.
OPEN_S = 330.0
# Places sent to that are remembered; half a megabyte.
SENT_MAX = 4096
# A probe comes within a second, or was lost: three round trips around the world.
PROBE_S = 1.5
# How often a verdict is tested again. A client's tests may have been lost on the way, so they are
# repeated soon at first.
AGAIN_MIN_S, AGAIN_MAX_S = 5.0, 600.0
# After nobody could test.
ASSUMED_S = 30.0
# Contacts that are asked for a probe: one or two may be gone, or lie.
TESTERS = 3

Address = tuple[str, int]


class Verdict(enum.Enum):
    """What is known of one scope; see the table above."""

    UNTRIED = "not tested yet"
    ASSUMED = "nobody could test it"
    REACHED = "was reached from outside"
    CLIENT = "was not reached from outside"


@lru_cache(SENT_MAX)
def scope_of(host: str) -> str:
    """Return the family and kind of an IP address: peers of one scope reach a node alike."""
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    kind = "loopback" if address.is_loopback else "global" if address.is_global else "private"
    return f"IPv{address.version} {kind}"


@lru_cache
def of_use(contact_scope: str, asker_scope: str) -> bool:
    """Say whether who asks from one scope can hope to reach an address of another."""
    kind, asker = contact_scope.partition(" ")[2], asker_scope.partition(" ")[2]
    return kind in ("global", asker) or asker == "loopback"


@dataclass
class _Test:
    """`open` counts the contacts that have not said yet whether they will have a probe sent."""

    probe: bytes
    open: int
    promised: int = 0
    came: set[Address] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        return not self.open and 0 < self.promised <= len(self.came)


@dataclass
class _Scope:
    verdict: Verdict = Verdict.UNTRIED
    due: float = 0.0
    again_s: float = AGAIN_MIN_S
    failures: int = 0
    seen_as: str = ""
    test: _Test | None = None


class Reach:
    """What one node knows of how it can be reached. `fixed`: the operator's word, or None."""

    def __init__(self, fixed: bool | None = None) -> None:
        self._fixed = fixed
        self._scopes: dict[str, _Scope] = {}
        self._sent: OrderedDict[str | Address, float] = OrderedDict()
        self._blurred_until = float("-inf")

    @property
    def reachable(self) -> bool:
        """Whether this node serves anyone; true as long as nothing was tested."""
        if self._fixed is not None:
            return self._fixed
        tried = [s for s in self._scopes.values() if s.verdict is not Verdict.UNTRIED]
        return not tried or any(_serves(scope) for scope in tried)

    def verdicts(self) -> dict[str, Verdict]:
        """Return what is known of each scope of addresses."""
        return {name: scope.verdict for name, scope in self._scopes.items()}

    def serves(self, host: str) -> bool:
        """Say what to tell a peer at this IP address."""
        if self._fixed is not None:
            return self._fixed
        return _serves(self._scope(host))

    # -- what goes out and comes in

    def sent(self, address: Address, now: float) -> None:
        """Note a datagram to there: what comes from there now proves nothing."""
        sent, host = self._sent, address[0]
        sent[address] = now
        sent.move_to_end(address)
        if not _is_loopback(host):
            sent[host] = now
            sent.move_to_end(host)
        while len(sent) > SENT_MAX:
            _, oldest = sent.popitem(last=False)
            self._blurred_until = max(self._blurred_until, oldest + OPEN_S)

    def asked_from(self, address: Address, now: float) -> bool:
        """Note a member's question from there; say whether that changed what we tell others."""
        if self._fixed is not None or not self._unexpected(address, now):
            return False
        return self._reached(self._scope(address[0]), now)

    def seen_as(self, peer_host: str, own_host: str, now: float) -> None:
        """Note under which address a peer sees us: a new one is tested at once."""
        scope = self._scope(peer_host)
        if scope.seen_as and scope.seen_as != own_host:
            scope.due, scope.again_s = now, AGAIN_MIN_S
        scope.seen_as = own_host

    def changed(self, now: float) -> None:
        """Test everything again: this machine's addresses changed."""
        for scope in self._scopes.values():
            scope.due, scope.again_s = now, AGAIN_MIN_S

    # -- tests

    def any_due(self, now: float) -> bool:
        """Say whether any scope is to be tested now."""
        return self._fixed is None and any(
            scope.test is None and scope.due <= now for scope in self._scopes.values()
        )

    def due(self, hosts: list[str], now: float) -> str | None:
        """Return the host, of those that could test, whose scope is to be tested now; or None."""
        if self._fixed is not None:
            return None
        for host in hosts:
            scope = self._scope(host)
            if scope.test is None and scope.due <= now:
                return host
        return None

    def begin(self, host: str, probe: bytes, testers: int) -> None:
        """Begin to test this host's scope: so many are asked for a probe with this id (8 bytes)."""
        self._scope(host).test = _Test(probe, testers)

    def promised(self, host: str, given: bool, now: float) -> bool:
        """Note what a tester said; say whether that changed what we tell others."""
        scope = self._scope(host)
        if scope.test is None:
            return False
        scope.test.open -= 1
        scope.test.promised += given
        return scope.test.passed and self._reached(scope, now)

    def probed(self, probe: bytes, address: Address, now: float) -> bool:
        """Note a probe; say whether that changed what we tell others."""
        scope = self._scope(address[0])
        if scope.test is None or scope.test.probe != probe or not self._closed(address, now):
            return False
        scope.test.came.add(address)
        if self._unexpected(address, now) or scope.test.passed:
            return self._reached(scope, now)
        return False

    def conclude(self, host: str, now: float) -> bool:
        """End the scope's test; say whether that changed what we tell others."""
        scope = self._scope(host)
        test, scope.test = scope.test, None
        if test is None:
            return False
        before = _serves(scope)
        if not test.promised:
            scope.due = now + ASSUMED_S
            if scope.verdict is Verdict.UNTRIED:
                scope.verdict = Verdict.ASSUMED
            return _serves(scope) != before
        scope.failures += 1
        scope.due = now + scope.again_s
        scope.again_s = min(2 * scope.again_s, AGAIN_MAX_S)
        if scope.verdict is not Verdict.REACHED or scope.failures > 1:
            scope.verdict = Verdict.CLIENT
        return _serves(scope) != before

    def testing(self, host: str) -> bool:
        """Say whether a test of the host's scope runs."""
        return self._scope(host).test is not None

    # -- inside

    def _scope(self, host: str) -> _Scope:
        name = scope_of(host)
        found = self._scopes.get(name)
        if found is None:
            found = self._scopes[name] = _Scope()
        return found

    def _unexpected(self, address: Address, now: float) -> bool:
        """Say whether no NAT between can have taken this for an answer."""
        host = address[0]
        return self._closed(address if _is_loopback(host) else host, now)

    def _closed(self, place: str | Address, now: float) -> bool:
        last = self._sent.get(place, float("-inf"))
        return now - last > OPEN_S and now > self._blurred_until

    @staticmethod
    def _reached(scope: _Scope, now: float) -> bool:
        before = _serves(scope)
        scope.verdict, scope.test = Verdict.REACHED, None
        scope.due, scope.again_s, scope.failures = now + AGAIN_MAX_S, AGAIN_MIN_S, 0
        return not before


def _serves(scope: _Scope) -> bool:
    return scope.verdict in (Verdict.REACHED, Verdict.ASSUMED)


def _is_loopback(host: str) -> bool:
    """Say whether it is this machine: nobody stands between, so that each port counts alone."""
    return scope_of(host).endswith("loopback")
