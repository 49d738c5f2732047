"""The relays of one pair: asked for, opened, offered by the other side. A core.

    state      event                              what happens
    -----      -----                              ------------
    none       a path is wanted, and we called    ask our nearest relay for an allocation
    none       we were called, and no offer came  the same, OFFER_WAIT_S later
                within OFFER_WAIT_S
    one        it works, or WARM_AFTER_S passed   the side with the lower id asks for a second, so
                                                   that one may die
    asked      no word for ASK_TIMEOUT_S, refused ask the next; this one again after RETRY_S, or
                                                   after ALONE_S, then twice as long each time,
                                                   if there is none else
    open       its path is silent                 ask the next; when one works close the silent one,
                                                   until then ask that anew each ASK_ANEW_S
    any        the peer offers one                join it; by WebSocket if no UDP gets through here;
                                                   one that failed not before RETRY_S
    none       one that it offers failed          join it again after RETRY_S; it says it only once
    any        the peer offers it no more         gone

At most OWN_MAX of our own and OFFERS_MAX of the peer's. A relay gives a pair one allocation, and
each node its own side of it, whoever asks: so two that ask the same relay have what they want.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agent.identity.keys import NodeId
from agent.paths.candidates import is_private, permitted
from agent.paths.messages import OFFERS_MAX, NatKind, Place, RelayOffer
from agent.paths.outputs import CloseRelay, OpenRelay
from agent.paths.own import Own

OWN_MAX = 2
OFFER_WAIT_S = 0.4
WARM_AFTER_S = 1.5
# The other side opens the second when the one whose turn it is has not.
_OTHER_AFTER_S = 5.0
ASK_TIMEOUT_S = 3.0
RETRY_S = 20.0
ALONE_S = 3.0
# A relay that lost the allocation tells the shell so (`failed`); one that is only silent is likely
# to be as before when it is back, and a new place has to be signalled first.
ASK_ANEW_S = 60.0
_IN_VAIN_MAX = 8
_NEVER = float("inf")


@dataclass
class Leg:
    """Our place on one relay. `offer`: what the peer gets, of an allocation that we made."""

    relay: NodeId
    asked_at: float
    tunnel: bool = False
    place: Place | None = None
    offer: RelayOffer | None = None
    ticket: bytes | None = None  # ours, on an allocation that the peer made
    udp_place: Place | None = None
    offered: bool = False
    trusted: bool = True


class Legs:
    """All relays of a pair."""

    def __init__(self, peer: NodeId, own: Own) -> None:
        self._peer = peer
        self._own = own
        self._legs: dict[NodeId, Leg] = {}
        self._not_before: dict[NodeId, float] = {}
        self._dead_ticket: dict[NodeId, bytes | None] = {}
        self._in_vain = 0  # how many were asked since one gave a place
        self._offers: tuple[RelayOffer, ...] = ()  # the peer's, by its last signal
        self.wake_at = _NEVER

    def open_legs(self) -> list[Leg]:
        """Return those that have a place."""
        return [leg for leg in self._legs.values() if leg.place is not None]

    @property
    def asking(self) -> bool:
        """Whether a relay has been asked and has not said anything yet."""
        return any(leg.place is None for leg in self._legs.values())

    def offers(self) -> tuple[RelayOffer, ...]:
        """Return what our signals offer."""
        mine = [leg.offer for leg in self._legs.values() if leg.offer is not None]
        return tuple(mine[:OFFERS_MAX])

    def tick(
        self,
        now: float,
        since: float,
        *,
        called: bool,
        proved: frozenset[NodeId],
        dead: dict[NodeId, float],
    ) -> None:
        """Ask for what is missing. `since`: when the pair began, or called.

        `proved`: the relays over which the peer answered; `dead`: since when others are silent.
        """
        for leg in list(self._legs.values()):
            if leg.place is None and now - leg.asked_at >= ASK_TIMEOUT_S:
                self.failed(leg.relay, now)
            elif leg.relay in dead:
                self._replace(leg, max(dead[leg.relay], leg.asked_at), bool(proved), now)
        offers_due = self._join_again(now)
        count = sum(relay not in dead for relay in self._legs)
        due = _NEVER
        if count == 0:
            due = since if called else since + OFFER_WAIT_S
        elif count == 1 and not self.asking:
            first = self._own.id < self._peer
            due = since + (WARM_AFTER_S if first else _OTHER_AFTER_S)
            if proved and first:
                due = now
        if now >= due:
            due = self._open_next(now, dead, alone=count == 0)
        asked = min((e.asked_at for e in self._legs.values() if e.place is None), default=_NEVER)
        again = min(
            (max(at, self._legs[r].asked_at) for r, at in dead.items() if r in self._legs),
            default=_NEVER,
        )
        self.wake_at = min(due, asked + ASK_TIMEOUT_S, again + ASK_ANEW_S, offers_due)

    def _join_again(self, now: float) -> float:
        """Join what the peer still offers and could not be joined; return when it is due."""
        missing = [
            self._not_before[offer.node]
            for offer in self._offers[:OFFERS_MAX]
            if offer.node not in self._legs and offer.node in self._not_before
        ]
        due = min(missing, default=_NEVER)
        if now < due:
            return due
        self.set_offers(self._offers, now)
        # What is not joined now may not be joined at all.
        self._offers = tuple(offer for offer in self._offers if offer.node in self._legs)
        return _NEVER

    def _replace(self, leg: Leg, since: float, others: bool, now: float) -> None:
        """A relay is silent: do without it if another works, else ask it anew at times.

        It may only be that nothing gets through for a moment, and then the place is still good.
        """
        if others:
            self.failed(leg.relay, now)
        elif not leg.offered and now - since >= ASK_ANEW_S:
            leg.asked_at = now
            self._own.out(OpenRelay(self._peer, leg.relay, leg.tunnel))

    def rest(self, until: float, *, rested: bool) -> None:
        """No relay is needed now; those that are open are closed if that is so for long."""
        self.wake_at = until if self._legs and not rested else _NEVER
        if rested:
            self.close()

    def opened(self, relay: NodeId, place: Place, offer: RelayOffer | None, now: float) -> bool:
        """Take the place that the shell got; False when it is not wanted any more."""
        leg = self._legs.get(relay)
        if leg is None:
            # Meanwhile it failed.
            self._own.out(CloseRelay(self._peer, relay))
            return False
        leg.place = place
        self._in_vain = 0
        if not leg.offered:
            leg.offer = offer
        return True

    def failed(self, relay: NodeId, now: float) -> None:
        """The relay refused, or is dead."""
        leg = self._legs.pop(relay, None)
        if leg is None:
            return
        if leg.place is None:
            self._in_vain = min(self._in_vain + 1, _IN_VAIN_MAX)
        self._not_before[relay] = now + RETRY_S
        self._dead_ticket[relay] = leg.ticket
        self._own.out(CloseRelay(self._peer, relay))

    def set_offers(self, offers: tuple[RelayOffer, ...], now: float) -> None:
        """Take what the peer offers now."""
        self._offers = offers
        current = {offer.node: offer for offer in offers[:OFFERS_MAX]}
        for relay, leg in list(self._legs.items()):
            if leg.offered and relay not in current:
                self._own.out(CloseRelay(self._peer, relay))
                del self._legs[relay]
        for relay, offer in current.items():
            known = self._legs.get(relay)
            if known is not None:
                if not known.offered:
                    continue  # both asked it, and got the two sides of one allocation
                same = known.offered and known.ticket == offer.ticket
                if same and known.udp_place == offer.place:
                    continue
            dead = self._dead_ticket.get(relay) == offer.ticket
            if dead and now < self._not_before.get(relay, 0.0):
                continue
            if relay != self._own.id:
                self._join(relay, offer, now)

    def blocked(self, now: float) -> None:
        """No UDP gets through here: reach the relays by WebSocket."""
        for leg in self._legs.values():
            if not leg.tunnel:
                leg.tunnel, leg.place, leg.offer, leg.asked_at = True, None, None, now
                self._own.out(OpenRelay(self._peer, leg.relay, True, leg.ticket))

    def unblocked(self, now: float) -> None:
        """UDP gets through again: no need to go by WebSocket, which is slower."""
        for leg in self._legs.values():
            if not leg.tunnel:
                continue
            leg.tunnel, leg.place, leg.offer, leg.asked_at = False, None, None, now
            self._own.out(OpenRelay(self._peer, leg.relay, False, leg.ticket))

    def retry(self) -> None:
        """Ask those that failed again: what was in the way may be gone."""
        self._not_before.clear()

    def found(self, now: float) -> None:
        """Who relays is known better: join what the peer offers and could not be joined before."""
        self.retry()
        self._in_vain = 0
        self.set_offers(self._offers, now)

    def close(self) -> None:
        """The pair ends."""
        for leg in self._legs.values():
            self._own.out(CloseRelay(self._peer, leg.relay))
        self._legs.clear()

    def _join(self, relay: NodeId, offer: RelayOffer, now: float) -> None:
        host = offer.place[0]
        known = any(relay == r.node and host in r.hosts for r in self._own.relays)
        if not permitted(offer.place, self._own.around):
            return
        if not known and is_private(host) and not self._own.around.on_link(host):
            return
        tunnel = self._own.nat is NatKind.BLOCKED
        self._legs[relay] = Leg(
            relay, now, tunnel, ticket=offer.ticket, offered=True, trusted=known,
            udp_place=offer.place,
        )  # fmt: skip
        self._own.out(OpenRelay(self._peer, relay, tunnel, offer.ticket))

    def _open_next(self, now: float, dead: Collection[NodeId], *, alone: bool) -> float:
        """Ask the nearest relay that is not in use; return when to try again.

        `alone`: no other works. Then those that failed follow soon, the one longest ago first: it
        may have been let go only because another worked then.
        """
        mine = [leg for leg in self._legs.values() if not leg.offered and leg.relay not in dead]
        if len(mine) >= OWN_MAX:
            return _NEVER
        again = _NEVER
        relays, sooner_s = self._own.relays, 0.0
        if alone:
            sooner_s = max(0.0, RETRY_S - ALONE_S * 2**self._in_vain)
            relays = tuple(sorted(relays, key=lambda r: self._not_before.get(r.node, 0.0)))
        for relay in relays:
            if relay.node in self._legs or relay.node in (self._own.id, self._peer):
                continue
            not_before = self._not_before.get(relay.node, 0.0) - sooner_s
            if now < not_before:
                again = min(again, not_before)
                continue
            tunnel = self._own.nat is NatKind.BLOCKED
            self._legs[relay.node] = Leg(relay.node, now, tunnel)
            self._own.out(OpenRelay(self._peer, relay.node, tunnel))
            return _NEVER
        return again
