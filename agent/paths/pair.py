"""One peer: which path WireGuard uses to reach it, and what is done to find a better one. A core.

    event                         what happens
    -----                         ------------
    the peer is wanted, or comes  signal our candidates and call; ask for a relay
     up, and has no direct path
    it calls                      signal ours in answer, burst at its places that no NAT guards
    it answers our call           signal "go", burst half the signals' round trip later
    it says go                    burst at once, which then is at the same moment
    a relay's place is there      ping it; if there is no path it is WireGuard's endpoint when the
                                   peer answers over it, unproved after PATIENCE_S (`book.py`)
    a ping came                   answer; a place that we did not know is pinged back
    a pong came from the place    the path is proved; if it is better, WireGuard's endpoint
     that was asked
    the path in use is silent     alarm: ping it each FAST_S, burst at all others, ask rendezvous
     for a timeout, or CALM_S if   where they see us, signal and call
     nothing flows
    … by its agent alone          keep it while WireGuard receives on it (`tunnel.py`)
    … too long                    move to the best that answers, or to a relay; ask the silent one
                                   each RETRY_S for RETRY_FOR_S
    relayed or nothing            a round (call, burst), in pauses that grow (`rounds.py`)
    direct, but not on the LAN    a burst at places that would be better, each BETTER_S
    the peer's agent stops        no path, no relay, no call until it is heard again
    relayed, one NAT is hard      birthday probing (`chance.py`)
    WireGuard roamed              to a direct path that is sound: the higher id follows, the lower
                                   sets its own again; to an unknown place: ping it; from a
                                   sound direct path to a relay: set again (`move.py`)
    our network or places changed all is unproved or told anew

Which path is better and how long a silent one is kept: `choice.py`. Make before break: an endpoint
is set only to a place that answered, or to a relay; what was in use stays open until then.

A silent path costs one keepalive at most (ACTIVE_S, while packets flow), a timeout and GIVE_UP_S.
"""

from __future__ import annotations

from agent.identity.keys import NodeId
from agent.paths.beginning import Beginning
from agent.paths.book import Book
from agent.paths.candidates import PathClass
from agent.paths.chance import SETTLE_S, Chance
from agent.paths.choice import NOMINATED_S, better, too_silent
from agent.paths.credit import Credit
from agent.paths.legs import Legs
from agent.paths.messages import (
    Candidate,
    MtuAnswer,
    NatKind,
    Ping,
    Place,
    Pong,
    RelayOffer,
    Signal,
    pack,
    unpack,
)
from agent.paths.move import Mover
from agent.paths.outputs import PathChanged, PathView, RenewSession, SendProbe, SendSignal
from agent.paths.own import Own
from agent.paths.path import Path
from agent.paths.pathmtu import PathMtu
from agent.paths.rhythm import ACTIVE_S, RETRY_S, Rhythm
from agent.paths.rounds import Rounds
from agent.paths.talk import Talk
from agent.paths.tunnel import Tunnel
from agent.paths.why import why_not_direct

# Linux makes a state for what comes in unasked, and our own packet to that place then leaves from
# another port than the peer expects. So both sides have to send before the other's arrives: at the
# same moment. Without a "go" they begin this long after the call.
UNSYNCHRONISED_S = 0.6
# A peer whose record says where it is gets a ping there before it is called and a relay is asked:
# on a LAN, and where it has an address of its own, that is all. Its answer takes a round trip.
HEAD_START_S = 0.4
# Once a peer is reached without any NAT for this long, no relay is kept for it.
REST_AFTER_S = 20.0
# A path that failed is asked again this long, besides the rounds.
RETRY_FOR_S = 60.0
# A path that nothing flows on may be silent for so long before anything is done about it.
CALM_S = 3.0
# Whatever the peer says: WireGuard's session with it is renewed no more often.
RENEW_S = 1.0
# What a peer sent before it left arrives for so long after its goodbye.
_LEAVING_S = 0.5
# A link that went over a path that is lost is itself given up, or made anew, after so long.
DOUBTFUL_S = 10.0
# A ping from a place that answered lately needs none back.
_HEARD_FRESH_S = 5.0
_HEARD_GAP_S = 0.08
_NEVER = float("inf")
_LONG_AGO = float("-inf")


class Pair:
    """This node and one peer."""

    def __init__(
        self, peer: NodeId, own: Own, credit: Credit, now: float, *, anew: bool = False
    ) -> None:
        """`anew`: there was a pair with the peer before, which was given up."""
        self.peer = peer
        self.wanted = False  # somebody here needs the peer; else the peer needs us
        self._ready = own.id < peer  # WireGuard here takes handshakes of the peer, or begins them
        self._peer_session = 0
        self._renewed_at = _LONG_AGO
        self._own = own
        self._book = Book(peer, own, credit, anew=anew)
        self._tunnel = Tunnel()
        self._legs = Legs(peer, own)
        self._talk = Talk()
        self._chance = Chance(peer, own, credit)
        self._mtu = PathMtu(peer, own)
        self._rhythm = Rhythm(own.rng)
        self._leads = own.id < peer
        self._since = self._called_at = now
        self._calls = False  # our signals ask the peer to answer and to probe us
        self._go = False  # the next one says: now
        self._used: Path | None = None
        self._view = PathView(since=now)
        self._lost_at: float | None = None
        self._left_at: float | None = None
        self._heard = False
        self._alarmed = False
        self._nominated: Place | None = None
        self._nominated_at = _LONG_AGO
        self._mover = Mover(peer, own)
        self._beginning = Beginning(leads=own.id < peer)
        self._rounds = Rounds(own.rng)

    # What the engine says.

    def know(self, candidates: tuple[Candidate, ...], now: float) -> None:
        """Take where the peer's record says that it is; its own signals are newer."""
        if not self._talk.heard_epoch:
            for path in self._book.set_candidates(candidates, now):
                path.burst(now)

    def call(self, now: float) -> None:
        """Somebody here needs the peer: find it."""
        if self._direct(now) or self._left_at is not None:
            return
        self._calls = True
        self._called_at = now + HEAD_START_S if self._book.candidates else now
        self._rounds.begin(now)
        self._talk.say(self._called_at)

    def ready(self, now: float) -> bool:
        """WireGuard has the peer: tell it so by a ping. Returns whether that is news."""
        if self._ready:
            return False
        self._ready = True
        for path in self._book.all():
            if now - path.heard_at < _HEARD_FRESH_S:
                path.next_at = min(path.next_at, now)
        return True

    def came_up(self, now: float) -> None:
        """The peer's agent has come up, or signals get through to it only now: try as at first."""
        self._left_at = None
        self._heard = True
        if self.wanted and not self._direct(now):
            self._legs.retry()
            self._rounds.begin(now)
            self._book.make_ready(self._used, now, UNSYNCHRONISED_S)
            self._call_again(now)

    def left(self, now: float) -> None:
        """The peer's agent said that it stops: there is no path, and nobody to call."""
        self._left_at = now
        self._heard = self._calls = False
        self._talk.hush()
        self._legs.close()
        self._book.set_relays([], now)
        self._book.network_changed()
        self._chance.close()
        self._used = None
        self._mtu.stop()
        self._show(now, "its agent stopped", moved=True)

    def local_changed(self, now: float) -> None:
        """Our own places or our NAT's kind are others now."""
        if not self._outright(now):
            self._talk.say(now)
        if self._own.nat is NatKind.BLOCKED:
            self._legs.blocked(now)
        elif self._own.nat is not NatKind.UNKNOWN:
            self._legs.unblocked(now)
        self._sync_relays(now)
        for path in self._book.set_candidates(self._book.candidates, now):
            path.burst(now)
        self._show(now, "what we know of our network changed")

    def relays_found(self, now: float) -> None:
        """Others are known to relay than before."""
        if self._left_at is None and not self._outright(now):
            self._legs.found(now)

    def network_changed(self, now: float) -> None:
        """We are on another network: what is used is kept until something answers."""
        self._book.network_changed()
        self._chance.network_changed()
        self._doubt(now)
        self._call_again(now)

    def signal(self, signal: Signal, now: float) -> None:
        """Take what the peer tells."""
        self._hear(now)
        first = self._talk.heard_epoch != signal.epoch
        if not self._talk.accept(signal, self._own.epoch, now):
            return
        if not self._talk.unheard:
            self._calls = False
        if first:
            self._chance.began_anew()
        if first and not self._talk.unheard and signal.heard_epoch != self._own.epoch:
            self._talk.say(now)  # it has started again and knows nothing of us
        new = self._book.set_candidates(signal.candidates, now)
        self._book.nat = signal.nat
        self._legs.set_offers(signal.offers, now)
        self._sync_relays(now)
        rtt = self._talk.call_rtt(signal, self._own.epoch, now)
        if signal.go:
            self._book.burst(self._used, now)
        elif rtt is not None and (self._leads or not signal.call_me):
            self._go = True
            self._talk.say(now)
            self._book.make_ready(self._used, now, min(rtt / 2, UNSYNCHRONISED_S))
        elif signal.call_me or new or first:
            self._book.make_ready(self._used, now, UNSYNCHRONISED_S)
        if new or first:
            self._rounds.begin(now)
        elif signal.call_me and not self._direct(now):
            self._rounds.passed(now)  # its round is ours: not each of us one
        if signal.answer or signal.call_me:
            self._talk.answer(now)
        self._chance.told(signal.birthday, self._book.shown_place(), self._direct(now), now)
        self._show(now, "the peer told of its network")

    def ping(self, place: Place, ping: Ping, local_port: int, now: float) -> None:
        """Answer the peer's ping; `local_port`: the birthday socket that heard it, 0: WireGuard."""
        if local_port and not self._chance.attempt:
            return
        self._hear(now)
        self._in_session(ping.session, now)
        if ping.answer:
            session = self._book.session if self._ready else 0
            pong = Pong(ping.token, pack(place), local_port != 0, session)
            self._own.out(SendProbe(self.peer, place, pong, local_port))
        if local_port:
            if self._chance.heard(place, local_port, now):
                self._expect(place, now)
            return
        path = self._book.get(place)
        if path is None and not ping.relayed:
            path = self._book.learn(place, now)
        if path is None:
            return
        path.heard_at = now
        if ping.nominates and not self._leads:
            self._nominated, self._nominated_at = place, now
        stale = now - path.answered_at > _HEARD_FRESH_S or path.silent_since is not None
        if stale and now - path.asked_at > _HEARD_GAP_S:
            path.next_at = min(path.next_at, now)
        self._choose(now, "the peer nominated it")

    def pong(self, place: Place, pong: Pong, now: float) -> None:
        """Take an answer: from the place that was asked, it proves the path."""
        sent_at = self._book.answered(pong.token, place)
        if sent_at is None:
            return
        self._agent_heard(now)
        self._in_session(pong.session, now)
        if pong.provisional:
            self._expect(place, now)
            return
        if not pong.session:
            return  # a handshake would come too early, and the next one is 5 s later
        path = self._book.learn(place, now)
        if path is None:
            return
        if self._chance.salvo is not None and self._book.path_class(path) < PathClass.RELAYED:
            self._chance.settled(place)
        path.answered(sent_at, unpack(pong.seen), now)
        path.next_at = self._rhythm.after_answer(path, path is self._used, now)
        if path is self._used:
            if self._beginning.proved(now):
                self._begin_again(now)
            if self._alarmed and self._book.path_class(path) < PathClass.PUNCHED:
                # What was asked of the peer is settled, and needs no repetition.
                self._calls = False
                self._talk.hush()
            self._alarmed = False
        self._choose(now, "it answered")
        self._show(now, "it answered")

    def mtu_answer(self, answer: MtuAnswer, now: float) -> None:
        """Take the answer to an MTU probe."""
        self._mtu.answered(answer, now)

    def wireguard(
        self, endpoint: Place | None, rx: int, tx: int, now: float, *, session: bool
    ) -> None:
        """Take what WireGuard says of the peer; about twice a second while packets flow.

        `session`: whether a handshake with the peer was ever completed.
        """
        used = self._used
        if endpoint is not None:
            self._mover.begun(now)
        if self._beginning.seen(session, proved=used is not None and used.proved(now), now=now):
            self._begin_again(now)
        self._tunnel.seen(rx, endpoint, now)
        on_path = used is not None and endpoint == used.place
        self._rhythm.traffic(rx, tx, on_path, now)
        if used is not None:
            used.next_at = min(used.next_at, self._rhythm.hasten(used, now))
            if self._rhythm.active(now):
                self._mtu.flows(now)
        if endpoint is None or on_path:
            return
        path = self._book.get(endpoint) or self._book.learn(endpoint, now)
        if used is None and path is not None and path.trusted and not path.failed:
            self._use(path, "WireGuard roamed to it", now)  # a relay over which the peer came
        elif self._used_again(path, now):
            return
        elif path is None or path.relay is not None or not path.sound(now):
            if path is not None and path.relay is None and now - path.asked_at > 1.0:
                path.next_at = min(path.next_at, now)
            if used is not None and used.sound(now) and (path is None or path.relay is not None):
                self._mover.again(endpoint, now)
        elif used is None or not used.sound(now) or not self._leads or used.relay is not None:
            self._use(path, "WireGuard roamed to it", now)
        else:
            self._mover.again(endpoint, now)

    def relay_opened(
        self, relay: NodeId, place: Place, offer: RelayOffer | None, now: float
    ) -> None:
        """A relay gave us a place, and what the peer has to know to join."""
        if self._legs.opened(relay, place, offer, now):
            self._sync_relays(now)
            if offer is not None:
                self._talk.say(now)

    def relay_failed(self, relay: NodeId, now: float) -> None:
        """A relay refused, or is gone."""
        self._legs.failed(relay, now)
        self._sync_relays(now)

    def close(self) -> None:
        """Undo what stands outside: relays, sockets, rules."""
        self._mover.close()
        self._legs.close()
        self._chance.close()

    # What is asked of it.

    @property
    def view(self) -> PathView:
        """How the peer is reached, without the sentence."""
        return self._view

    def describe(self, now: float) -> PathView:
        """Return how the peer is reached, and why not directly if it is not."""
        view = self._view
        why = ""
        if not view.direct:
            why = why_not_direct(
                self._own, self._book, self._chance, self._talk, self._lost_at, self._since, now
            )
        if self._left_at is not None:
            why = "The peer's agent has stopped."
        used = self._used
        if used is None:
            return PathView(view.path_class, view.place, view.relay, None, view.since, why)
        return PathView(
            view.path_class, view.place, view.relay, used.rtt, view.since, why, used.variation,
            used.loss.share,
        )  # fmt: skip

    def wake_at(self) -> float:
        """When `tick` has something to do."""
        return min(
            min((path.next_at for path in self._book.all()), default=_NEVER),
            self._talk.wake_at,
            self._legs.wake_at,
            self._chance.wake_at,
            self._rounds.next_at,
            self._mtu.wake_at,
            self._mover.wake_at,
        )

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._judge(now)
        self._tend_relays(now)
        self._chance.tick(now)
        if self._chance.consider(self._book, self._since, self._direct(now), now):
            self._talk.say(now)
        self._next_round(now)
        self._mover.tick(now)
        self._ping_due(now)
        self._signal_due(now)
        self._mtu.tick(self._used, now)

    # The rules.

    def _hear(self, now: float) -> None:
        self._agent_heard(now)
        if self._left_at is not None and now - self._left_at > _LEAVING_S:
            self._left_at = None
        if self._left_at is None:
            self._heard = True

    def _agent_heard(self, now: float) -> None:
        used = self._used
        if used is not None and self._tunnel.goes_on(used, now):
            used.heard_again(now)
        self._tunnel.agent_heard(now)

    def _in_session(self, session: int, now: float) -> None:
        """Note which session the peer has with us; 0: it does not say, or has none."""
        if not session or session == self._peer_session or now - self._renewed_at < RENEW_S:
            return
        # The side that leads begins handshakes; else both would, and each drop the other's.
        if self._peer_session and self._leads:
            self._renewed_at = now
            self._own.out(RenewSession(self.peer))
        self._peer_session = session

    def _begin_again(self, now: float) -> None:
        """Have WireGuard begin a session anew, here or, if the peer leads, there."""
        if self._leads:
            self._own.out(RenewSession(self.peer))
        elif self._used is not None:
            self._book.begin_session()
            self._used.next_at = min(self._used.next_at, now)

    def _tend_relays(self, now: float) -> None:
        """See that there are relays, unless packets go the whole way without a NAT."""
        if self._left_at is not None:
            return
        if self._outright(now):
            rested = now - self._view.since >= REST_AFTER_S
            self._legs.rest(self._view.since + REST_AFTER_S, rested=rested)
            if rested:
                self._book.set_relays([], now)
            return
        relays = [path for path in self._book.all() if path.relay is not None]
        self._legs.tick(
            now,
            self._called_at if self._calls else self._since,
            called=self._calls,
            proved=frozenset(p.relay for p in relays if p.relay is not None and p.proved(now)),
            dead={p.relay: p.failures[-1] for p in relays if p.relay and p.failed and p.failures},
        )
        self._sync_relays(now)

    def _choose(self, now: float, reason: str) -> None:
        recent = now - self._nominated_at < NOMINATED_S
        nominated = self._book.get(self._nominated) if recent else None
        path = better(self._book, self._used, nominated, self._view.since, now)
        if path is not None:
            self._use(path, reason, now)

    def _use(self, path: Path, reason: str, now: float) -> None:
        if path is self._used:
            return
        wait_s = self._beginning.used(path.rtt, proved=path.proved(now), now=now)
        self._mover.move(self._used, path, now, wait_s=wait_s)
        self._used = path
        self._alarmed = False
        path.next_at = min(path.next_at, now if self._leads else now + ACTIVE_S)
        self._show(now, reason, moved=True)
        self._mtu.restart(path, now)
        if path.relay is None and path.proved(now):
            self._chance.settled(path.place)
            self._lost_at = None
            if not self._talk.sequence:
                self._calls = False
                self._talk.hush()  # it was found by its record alone
            self._rounds.direct(now, best=self._book.path_class(path) is PathClass.LAN)
        else:
            self._rounds.begin(now)

    def _judge(self, now: float) -> None:
        """Leave the path in use when it is silent for too long."""
        used = self._used
        if used is None or not used.suspect(now):
            return
        # With nothing under way there is no haste, and a machine that is too busy to answer must
        # not get more to do for it.
        if not self._alarmed and (self._rhythm.active(now) or used.silent_for(now) >= CALM_S):
            self._alarm(now)
        if self._tunnel.goes_on(used, now):
            return
        if too_silent(self._book, used, receiving=self._rhythm.receiving(now), now=now):
            self._give_up(used, now)

    def _used_again(self, path: Path | None, now: float) -> bool:
        """Take a path again that was given up, if only the peer's agent is silent on it."""
        if self._used is not None or path is None or path.relay is not None:
            return False
        if not path.failed or not self._tunnel.goes_on(path, now):
            return False
        self._use(path, "its agent is silent, its WireGuard goes on", now)
        return True

    def _give_up(self, used: Path, now: float) -> None:
        used.fail(now)
        self._used = None
        used.retry_until = now + RETRY_FOR_S
        used.next_at = min(used.next_at, now + RETRY_S)
        if used.relay is None:
            self._lost_at = now
            self._chance.path_failed(used.place, now)
        self._rounds.begin(now)
        self._choose(now, "the path before is silent")
        if self._used is None:
            self._use_relay("the path before is silent", now)
        if self._used is None:
            self._show(now, "nothing answers any more", moved=True)
            self._mtu.stop()

    def _doubt(self, now: float) -> None:
        self._alarmed = True
        self._book.make_ready(self._used, now, UNSYNCHRONISED_S)

    def _alarm(self, now: float) -> None:
        """Something is wrong with the path in use: do at once all that may find another."""
        self._doubt(now)
        if not self._own.alarms.take(now):
            return
        self._own.observe_soon(now)
        # While nothing flows, rounds are soon enough for that.
        if self._rhythm.active(now):
            self._call_again(now)

    def _call_again(self, now: float) -> None:
        """Ask the peer to probe us, unless nobody here wants it and nothing flows."""
        if self._left_at is None and (self.wanted or self._rhythm.active(now)):
            self._calls = True
            self._called_at = now
            self._talk.say(now)

    def _expect(self, place: Place, now: float) -> None:
        """A birthday hit: this place is about to become a path."""
        path = self._book.learn(place, now)
        if path is None:
            return
        if self._chance.salvo is not None:
            self._chance.settled(place)
        path.provisional_until = now + SETTLE_S
        path.next_at = min(path.next_at, now)

    def _use_relay(self, reason: str, now: float) -> None:
        """Take a relay unproved: better than nothing."""
        relays = [p for p in self._book.all() if p.trusted and not p.failed and now >= p.usable_at]
        if relays:
            self._use(min(relays, key=lambda p: (not p.proved(now), p.rtt or 0.0)), reason, now)

    def _sync_relays(self, now: float) -> None:
        for path in self._book.set_relays(self._legs.open_legs(), now):
            path.next_at = now
        used = self._used
        if used is not None and self._book.get(used.place) is not used:
            self._used = None  # its relay is gone
            self._choose(now, "the relay is gone")
        if self._used is None:
            self._use_relay("a relay is there", now)
        if self._used is None and used is not None:
            self._show(now, "the relay is gone", moved=True)

    def _next_round(self, now: float) -> None:
        if now < self._rounds.next_at:
            return
        used = self._used
        if used is not None and used.relay is None:
            limit = self._book.path_class(used)
            for path in self._book.all():
                if self._book.path_class(path) < limit:
                    path.burst(now)
            self._rounds.direct(now, best=limit is PathClass.LAN)
            return
        self._book.make_ready(self._used, now, UNSYNCHRONISED_S)
        self._call_again(now)
        self._rounds.passed(now)

    def _ping_due(self, now: float) -> None:
        salvo = self._chance.salvo
        if salvo is not None:
            for port in salvo.due(now):
                self._book.shoot((salvo.host, port), now)
        for path in self._book.all():
            if path.next_at > now:
                continue
            used = path is self._used
            if self._book.ping(path, now, nominates=used and self._leads, wants=self.wanted):
                path.next_at = self._rhythm.after_ping(path, used, now)
            else:
                path.next_at = now + 0.1

    def _signal_due(self, now: float) -> None:
        if self._outright(now):
            self._talk.settle()
        if not self._talk.due(now):
            return
        call = self._calls and not self._direct(now)
        sequence = self._talk.sent(now, call=call and not self._go)
        signal = Signal(
            epoch=self._own.epoch,
            sequence=sequence,
            heard_epoch=self._talk.heard_epoch,
            heard=self._talk.heard,
            nat=self._own.nat,
            answer=self._talk.unheard,
            call_me=call and not self._go,
            go=self._go,
            candidates=self._own.candidates,
            offers=self._legs.offers(),
            birthday=self._chance.attempt,
        )
        self._go = False
        lost = self._lost_at is not None and now - self._lost_at < DOUBTFUL_S
        doubtful = self._alarmed or lost
        self._own.out(SendSignal(self.peer, signal, doubtful=doubtful, unheard=not self._heard))

    def _show(self, now: float, reason: str, *, moved: bool = False) -> None:
        """Say how the peer is reached, if that is another way than before."""
        used, old = self._used, self._view
        kind = self._book.path_class(used) if used is not None else None
        place = used.place if used is not None else None
        if (old.path_class, old.place) == (kind, place) and (moved is False or used is None):
            return
        relay = used.relay if used is not None else None
        rtt = used.rtt if used is not None else None
        since = now if old.place != place else old.since
        self._view = PathView(kind, place, relay, rtt, since)
        if (old.path_class, old.place) != (kind, place):
            self._own.out(PathChanged(self.peer, old, self._view, reason))

    def _outright(self, now: float) -> bool:
        """Say whether packets go without a NAT in between that could forget us.

        Such a path needs no relay in reserve, and the peer no news of our network: if it fails, all
        is told anew. A late answer is no failure while nothing flows.
        """
        used = self._used
        if used is None or self._book.path_class(used) >= PathClass.PUNCHED:
            return False
        return not self._alarmed or not self._rhythm.active(now)

    def _direct(self, now: float) -> bool:
        used = self._used
        return used is not None and used.relay is None and not used.suspect(now)
