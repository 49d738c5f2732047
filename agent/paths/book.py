"""The places of one peer: taken up, pinged, matched with their answers. A core.

It sends pings within an allowance and knows which answer belongs to which. Which path is used, and
when each is pinged, is `pair.py`'s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from agent.identity.keys import NodeId
from agent.paths.allowance import Allowance
from agent.paths.candidates import Intake, PathClass, is_private, path_class, permitted, probeable
from agent.paths.credit import Credit
from agent.paths.legs import Leg
from agent.paths.messages import SESSION_MAX, Candidate, Kind, NatKind, Ping, Place
from agent.paths.outputs import SendProbe
from agent.paths.own import Own
from agent.paths.path import Path

# Places that the peer was heard from without having named them; the one heard longest ago goes.
HEARD_MAX = 8
# All places of a full signal burst at once, and again; then what keepalives and retries need.
PROBES_PER_S, PROBES_BURST = 40.0, 80.0
# A handshake that WireGuard sends into the void is repeated after 5 s only, so a relay too is used
# when the peer answered over it, which is one RTT after both are there. Unproved it is used only
# when that takes so long that probes may be what does not get through.
PATIENCE_S = 2.5
_OUTSTANDING_S = 5.0
# Birthday probing has 200 a second under way for some RTTs.
_OUTSTANDING_MAX = 2048
_NEVER = float("inf")


class Book:
    """The paths to one peer, by place."""

    def __init__(self, peer: NodeId, own: Own, credit: Credit, *, anew: bool = False) -> None:
        """`anew`: WireGuard had the peer before, and forgot it meanwhile."""
        self._peer = peer
        self._own = own
        self._paths: dict[Place, Path] = {}
        self._outstanding: OrderedDict[int, tuple[Place, float]] = OrderedDict()
        self._intake = Intake()
        self._allowance = Allowance(PROBES_PER_S, PROBES_BURST)
        self._credit = credit
        self.session = own.first_session(peer)
        if anew:
            self.begin_session()
        self.nat = NatKind.UNKNOWN  # the peer's, by its own word
        self.candidates: tuple[Candidate, ...] = ()

    def begin_session(self) -> None:
        """Tell the peer by the next pings that our WireGuard has no session with it, or another."""
        self.session = self._own.rng.randint(1, SESSION_MAX)

    def get(self, place: Place | None) -> Path | None:
        """Return the path to a place, if it is known."""
        return self._paths.get(place) if place is not None else None

    def all(self) -> list[Path]:
        """Return every path."""
        return list(self._paths.values())

    def sound(self, now: float) -> list[Path]:
        """Return those that may be taken now."""
        return [path for path in self._paths.values() if path.sound(now)]

    def path_class(self, path: Path) -> PathClass:
        """Return how good a path is."""
        if path.relay is not None:
            return PathClass.RELAYED
        own = self._own
        return path_class(path.place, path.kind, own.around, own.nat, self.nat, path.seen)

    def shown_place(self) -> Place | None:
        """Return the public IPv4 place at which the peer's NAT shows it, if we may probe it."""
        for kind in (Kind.OBSERVED, Kind.WIREGUARD, Kind.LAN):
            for candidate in self.candidates:
                place = candidate.place
                public = ":" not in place[0] and not is_private(place[0])
                if candidate.kind is kind and public and place in self._paths:
                    return place
        return None

    def set_candidates(self, candidates: tuple[Candidate, ...], now: float) -> list[Path]:
        """Take the peer's word of where it is; return the paths that are new."""
        self.candidates = candidates
        kept = probeable(candidates, self._own.around, self._own.public_hosts)
        named = {candidate.place for candidate in kept}
        for place, path in list(self._paths.items()):
            gone = path.kind is not None and place not in named and path.relay is None
            if gone and not path.proved(now):
                del self._paths[place]
        new: list[Path] = []
        for candidate in kept:
            place = candidate.place
            known = self._paths.get(place)
            if known is not None:
                known.kind = candidate.kind
            elif self._intake.admit(place, now):
                path = self._paths[place] = Path(place, candidate.kind)
                new.append(path)
        return new

    def set_relays(self, legs: Iterable[Leg], now: float) -> list[Path]:
        """Take the relays that are open; return the paths that are new."""
        wanted = {leg.place: leg for leg in legs if leg.place is not None}
        for place, path in list(self._paths.items()):
            if path.relay is not None and place not in wanted:
                del self._paths[place]
        new: list[Path] = []
        for place, leg in wanted.items():
            known = self._paths.get(place)
            path = known or Path(place, None, leg.relay)
            if known is None:
                self._paths[place] = path
                path.usable_at = now + PATIENCE_S
                new.append(path)
            path.relay, path.trusted = leg.relay, leg.trusted
        return new

    def burst(self, used: Path | None, at: float) -> None:
        """Burst at every place but the one in use, which is pinged once."""
        self.make_ready(used, at, 0.0)

    def make_ready(self, used: Path | None, now: float, wait_s: float) -> None:
        """Burst at what no NAT guards, or what worked before; at all else after `wait_s`.

        What comes to a NAT unasked may spoil the peer's own way out, so it has to be sent when the
        peer sends too.
        """
        natted = NatKind.NONE not in (self._own.nat, self.nat)
        for path in self._paths.values():
            guarded = natted and path.relay is None and path.kind in (Kind.OBSERVED, Kind.WIREGUARD)
            if path is used:
                path.next_at = min(path.next_at, now)
            else:
                path.burst(now + wait_s if guarded and path.rtt is None else now)

    def learn(self, place: Place, now: float) -> Path | None:
        """Take a place that the peer was heard from; None when it may not be probed."""
        path = self._paths.get(place)
        if path is None:
            own = self._own
            if not permitted(place, own.around) or own.relay_host(place[0]):
                return None
            if not self._intake.admit(place, now):
                return None
            heard = [p for p in self._paths.values() if p.kind is None and p.relay is None]
            if len(heard) >= HEARD_MAX:
                spare = [p for p in heard if not p.proved(now)]
                if not spare:
                    return None
                del self._paths[min(spare, key=lambda p: p.heard_at).place]
            path = self._paths[place] = Path(place, None)
        path.heard_at = now
        return path

    def ping(self, path: Path, now: float, *, nominates: bool, wants: bool) -> bool:
        """Ping a place; False when the allowance is used up."""
        unproved = path.rtt is None and path.relay is None
        if (unproved and not self._credit.probes.take(now)) or not self._allowance.take(now):
            return False
        token, relayed = self._token(path.place, now), path.relay is not None
        self._send(path.place, Ping(token, True, nominates, relayed, wants, self.session))
        path.asked(now)
        return True

    def shoot(self, place: Place, now: float) -> None:
        """Ping a random place of a birthday attempt: its rate is bounded by itself."""
        self._send(place, Ping(self._token(place, now)))

    def answered(self, token: int, place: Place) -> float | None:
        """Return when the ping left that this place answers; None when it answers none of ours."""
        asked = self._outstanding.get(token)
        if asked is None or asked[0] != place:
            return None
        del self._outstanding[token]
        return asked[1]

    def network_changed(self) -> None:
        """Nothing that was proved or asked holds any more."""
        self._outstanding.clear()
        for path in self._paths.values():
            path.forget()

    def _token(self, place: Place, now: float) -> int:
        kept = self._outstanding
        while kept:
            sent_at = next(iter(kept.values()))[1]
            if now - sent_at <= _OUTSTANDING_S and len(kept) < _OUTSTANDING_MAX:
                break
            kept.popitem(last=False)
        token = self._own.rng.getrandbits(62)
        kept[token] = (place, now)
        return token

    def _send(self, place: Place, ping: Ping) -> None:
        self._own.out(SendProbe(self._peer, place, ping))
