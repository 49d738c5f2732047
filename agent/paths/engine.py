"""All paths of one node: the surface that the shell uses. A core.

    set_local, introduce, want, need, let_go, ready,    what this machine and its user say
     came_up, forget, expel, network_changed
    signal_received, probe_received, wireguard_seen,    what happens
     relay_opened, relay_failed
    tick, wake_at                                       time
    take                                                what is to be done, in order
    describe, nat, places …                             what a person asks

`now` is monotonic seconds. Only peers that are kept cost anything, and have a place in WireGuard:

    kept                                        until
    ----                                        -----
    wanted here (`want`)                        `let_go`, and then as one that was needed
    needed here: `need`, or packets flowed      NEED_S later; USE_BYTES in USE_WINDOW_S are a flow,
                                                 less is keepalives and questions
    wanted there: its signal or ping says so    GUEST_S after the last that did

A member that pings us and wants nothing gets its answer and no more. Each peer has an allowance, so
that a flood of one costs the others nothing.

The rendezvous are asked where they see us at start, on a change, when a path goes silent, and each
OBSERVE_S; we answer the same question for others.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.identity.keys import NodeId
from agent.paths.allowance import Allowance
from agent.paths.candidates import Surroundings, is_private, own_candidates
from agent.paths.credit import Credit
from agent.paths.messages import (
    CANDIDATES_MAX,
    Candidate,
    Kind,
    MtuAnswer,
    MtuProbe,
    NatKind,
    Observe,
    Observed,
    Ping,
    Place,
    Pong,
    Probe,
    RelayOffer,
    Signal,
    pack,
    unpack,
)
from agent.paths.natkind import NatTable
from agent.paths.outputs import Output, PathChanged, PathView, SendProbe
from agent.paths.own import Own, RelayNode, Rendezvous
from agent.paths.pair import Pair

# Also what keeps our mapping at an easy NAT the same (30 s).
OBSERVE_S = 20.0
# Repeated while unanswered; the last is after natkind.BLOCKED_S, which then may be the verdict.
OBSERVE_AGAIN_S = (0.2, 0.3, 0.45)
RENDEZVOUS_MAX = 4
# The answers of several rendezvous come one after the other; peers are told once.
TELL_AFTER_S = 0.03
# One that wants us pings each 14 s, so that three may be lost.
GUEST_S = 60.0
# Between two requests of one who works at a terminal; a path is back in some RTTs.
NEED_S = 120.0
# Above keepalives, handshakes and the questions of presence; below any use.
USE_BYTES, USE_WINDOW_S = 6000, 60.0
GUESTS_MAX = 256
# A hit of a birthday attempt, a burst at 16 places of ours and its repetition are below this.
PROBES_PER_S, PROBES_BURST = 60.0, 200.0
SIGNALS_PER_S, SIGNALS_BURST = 5.0, 20.0
_SENDERS_MAX = 2048
# No timer is due sooner: whatever goes wrong, it is no busy loop.
_TICK_MIN_S = 0.004
_TOKENS_MAX = 64
_NEVER = float("inf")
_LONG_AGO = float("-inf")


@dataclass
class _Sender:
    probes: Allowance
    signals: Allowance
    credit: Credit


@dataclass
class _Kept:
    """A pair, and who needs it: see above."""

    pair: Pair
    standing: bool = False
    needed_at: float = _LONG_AGO
    called_at: float = _LONG_AGO
    wake_at: float = _LONG_AGO
    counted: int = 0
    counted_at: float = _LONG_AGO

    def wanted(self, now: float) -> bool:
        """Say whether somebody here needs the peer."""
        return self.standing or now - self.needed_at < NEED_S

    @property
    def over_at(self) -> float:
        """When nobody needs it any more, as it looks now."""
        if self.standing:
            return _NEVER
        return max(self.needed_at + NEED_S, self.called_at + GUEST_S)

    def count(self, total: int, now: float) -> None:
        """Take how many bytes WireGuard has carried in all."""
        if total - self.counted >= USE_BYTES:
            self.needed_at = now
        elif total >= self.counted and now - self.counted_at < USE_WINDOW_S:
            return
        self.counted, self.counted_at = total, now


class PathEngine:
    """The path engine of one node."""

    def __init__(self, own: NodeId, rng: random.Random, epoch: int) -> None:
        """`rng` has to be unpredictable outside tests. `epoch`: higher at each start, as a clock.

        It goes into signals; a clock that was set back costs `talk.STALE_S` at each peer.
        """
        self._outputs: list[Output] = []
        self._own = Own(own, epoch, rng, self._outputs.append, self._observe_soon)
        self._kept: dict[NodeId, _Kept] = {}
        self._known: set[NodeId] = set()  # who was kept at some time
        self._records: dict[NodeId, tuple[Candidate, ...]] = {}
        self._senders: OrderedDict[NodeId, _Sender] = OrderedDict()
        self._table = NatTable()
        self._rendezvous: tuple[Rendezvous, ...] = ()
        self._asked: OrderedDict[int, tuple[NodeId, Place]] = OrderedDict()
        self._answered: set[Place] = set()
        self._observe_at = self._tell_at = _NEVER
        self._observe_round = 0
        self._observe_begun = _LONG_AGO

    # What this machine says.

    def resume(self, birth: int) -> None:
        """Say which interface of WireGuard this is (`Opened.birth`), before any path is found."""
        self._own.birth = birth

    def set_local(
        self,
        around: Surroundings,
        rendezvous: Sequence[Rendezvous],
        relays: Sequence[RelayNode],
        now: float,
    ) -> None:
        """Say what our network is, who says where we are seen, and who relays, nearest first."""
        asked = tuple(r for r in rendezvous if r.node != self._own.id)[:RENDEZVOUS_MAX]
        if (asked, around.interfaces) != (self._rendezvous, self._own.around.interfaces):
            self._rendezvous = asked
            self._table.keep(r.node for r in asked)
            # Whoever is new is asked as often as the others were, however lately that was.
            self._observe_begun = _LONG_AGO
            self._observe_soon(now)
        changed = around != self._own.around
        before = {relay.node for relay in self._own.relays}
        self._own.around, self._own.relays = around, tuple(relays)
        self._refresh(now, force=changed)
        if not before.issuperset(relay.node for relay in relays):
            for kept in list(self._kept.values()):
                kept.pair.relays_found(now)
                self._run(kept, now)

    def introduce(
        self, peer: NodeId, places: Sequence[Place], now: float, was_at: Place | None = None
    ) -> None:
        """Say where a peer's record says that it is; it is used when the peer is wanted.

        `was_at`: where it was reached before this node started.
        """
        record = tuple(_named(place) for place in places[: CANDIDATES_MAX - 1])
        if was_at is not None and was_at not in places:
            record = (Candidate.of(Kind.OBSERVED, was_at), *record)
        if peer == self._own.id or self._records.get(peer) == record:
            return
        self._records[peer] = record
        kept = self._kept.get(peer)
        if kept is not None and kept.pair.wanted:
            kept.pair.know(record, now)
            self._run(kept, now)

    def want(self, peer: NodeId, now: float) -> None:
        """Find and keep the best path to a peer; again for one that is wanted does nothing."""
        kept = self._keep(peer, now)
        if kept is not None and not kept.standing:
            kept.standing = True
            self._run(kept, now)

    def need(self, peer: NodeId, now: float) -> None:
        """Find a path to a peer, and keep it for as long as packets flow."""
        kept = self._keep(peer, now)
        if kept is not None:
            kept.needed_at = now
            self._run(kept, now)

    def ready(self, peers: Iterable[NodeId], now: float) -> None:
        """Say whom WireGuard takes handshakes from."""
        for peer in peers:
            kept = self._kept.get(peer)
            if kept is not None and kept.pair.ready(now):
                self._run(kept, now)

    def came_up(self, peer: NodeId, now: float) -> None:
        """Say that the peer's agent was just heard of, or signals get through to it only now."""
        kept = self._kept.get(peer)
        if kept is not None:
            kept.pair.came_up(now)
            self._run(kept, now)

    def left(self, peer: NodeId, now: float) -> None:
        """Say that the peer's agent said that it stops."""
        kept = self._kept.get(peer)
        if kept is not None:
            kept.pair.left(now)
            self._run(kept, now)

    def let_go(self, peer: NodeId, now: float) -> None:
        """Take back `want`."""
        kept = self._kept.get(peer)
        if kept is not None and kept.standing:
            kept.standing, kept.needed_at = False, now
            self._run(kept, now)

    def expel(self, peer: NodeId, now: float) -> None:
        """The peer is no member any more."""
        self._records.pop(peer, None)
        self._known.discard(peer)
        self.forget(peer, now)

    def forget(self, peer: NodeId, now: float) -> None:
        """End the pair now, whoever needs it; what was opened for it is closed."""
        kept = self._kept.pop(peer, None)
        if kept is not None:
            kept.pair.close()
            old = kept.pair.view
            if old.path_class is not None:
                gone = PathView(since=now)
                self._outputs.append(PathChanged(peer, old, gone, "nobody wants it any more"))

    def network_changed(self, now: float) -> None:
        """Addresses or routes of this machine changed: nothing that was seen holds any more."""
        self._table.clear()
        self._observe_begun = _LONG_AGO
        self._observe_soon(now)
        self._refresh(now)
        for kept in list(self._kept.values()):
            kept.pair.network_changed(now)
            self._run(kept, now)

    # What happens.

    def signal_received(self, peer: NodeId, signal: Signal, now: float) -> None:
        """Take an opened signal."""
        if peer == self._own.id or not self._sender(peer).signals.take(now):
            return
        kept = self._kept.get(peer)
        if kept is None:
            kept = self._guest(peer, now) if signal.call_me else None
            if kept is None:
                return
        if signal.call_me:
            kept.called_at = now
        kept.pair.signal(signal, now)
        self._run(kept, now)

    def probe_received(
        self, peer: NodeId, place: Place, probe: Probe, now: float, local_port: int = 0
    ) -> None:
        """Take an opened probe that came from `place`.

        `local_port`: where it was heard if not at WireGuard's own port: the second port of a
        rendezvous, or a birthday socket's.
        """
        if not self._sender(peer).probes.take(now):
            return
        kept = self._kept.get(peer)
        if isinstance(probe, Ping) and probe.wants:
            kept = kept or self._guest(peer, now)
            if kept is not None:
                kept.called_at = now
        match probe:
            case Observe():
                seen = Observed(probe.token, pack(place))
                self._outputs.append(SendProbe(peer, place, seen, local_port))
            case Observed():
                self._observed(peer, place, probe, now)
            case MtuProbe():
                answer = MtuAnswer(probe.token, probe.size)
                self._outputs.append(SendProbe(peer, place, answer))
            case Ping() if kept is not None:
                kept.pair.ping(place, probe, local_port, now)
            case Ping() if probe.answer and not local_port:
                pong = Pong(probe.token, pack(place))
                self._outputs.append(SendProbe(peer, place, pong))
            case Pong() if kept is not None:
                if probe.session or probe.provisional or kept.pair.wanted:
                    kept.pair.pong(place, probe, now)
                else:
                    self.forget(peer, now)  # it does not keep us either
                    return
            case MtuAnswer() if kept is not None:
                kept.pair.mtu_answer(probe, now)
        if kept is not None:
            self._run(kept, now)

    def wireguard_seen(
        self, peer: NodeId, endpoint: Place | None, rx: int, tx: int, now: float, *,
        session: bool = True,
    ) -> None:  # fmt: skip
        """Take WireGuard's word on a peer: its endpoint and its counters, about twice a second.

        `session`: whether a handshake was completed since the peer was set.
        """
        kept = self._kept.get(peer)
        if kept is None:
            return
        kept.count(rx + tx, now)
        kept.pair.wireguard(endpoint, rx, tx, now, session=session)
        self._run(kept, now)

    def relay_opened(
        self, peer: NodeId, relay: NodeId, place: Place, offer: RelayOffer | None, now: float
    ) -> None:
        """The relay gave us `place` for the peer; `offer` is for the peer, None if it made it."""
        kept = self._kept.get(peer)
        if kept is not None:
            kept.pair.relay_opened(relay, place, offer, now)
            self._run(kept, now)

    def relay_failed(self, peer: NodeId, relay: NodeId, now: float) -> None:
        """The relay refused, did not answer, or has ended the allocation."""
        kept = self._kept.get(peer)
        if kept is not None:
            kept.pair.relay_failed(relay, now)
            self._run(kept, now)

    # Time, and what is to be done.

    def tick(self, now: float) -> None:
        """Do what is due; call it at `wake_at`, or sooner."""
        if now >= self._observe_at:
            self._observe(now)
        if now >= self._tell_at:
            self._tell_at = _NEVER
            for kept in list(self._kept.values()):
                kept.pair.local_changed(now)
                self._run(kept, now)
        for peer, kept in list(self._kept.items()):
            if now > kept.over_at:
                self.forget(peer, now)
            elif now >= kept.wake_at:
                self._run(kept, now)

    def wake_at(self) -> float:
        """When `tick` has something to do."""
        due = min((kept.wake_at for kept in self._kept.values()), default=_NEVER)
        over = min((kept.over_at + 1 for kept in self._kept.values()), default=_NEVER)
        return min(due, self._observe_at, self._tell_at, over)

    def take(self) -> list[Output]:
        """Return what is to be done since the last call."""
        taken = self._outputs.copy()
        self._outputs.clear()
        return taken

    # What a person asks.

    @property
    def nat(self) -> NatKind:
        """What stands between us and the internet."""
        return self._own.nat

    def places(self, now: float) -> list[Place]:
        """Return where rendezvous see us."""
        return self._table.places(now)

    def peers(self) -> list[NodeId]:
        """Return the peers that have a path or are being looked for."""
        return list(self._kept)

    def describe(self, peer: NodeId, now: float) -> PathView | None:
        """Return how a peer is reached, and why not directly if so; None: nobody wants it."""
        kept = self._kept.get(peer)
        return kept.pair.describe(now) if kept is not None else None

    # Inside.

    def _keep(self, peer: NodeId, now: float) -> _Kept | None:
        if peer == self._own.id:
            return None
        kept = self._kept.get(peer)
        if kept is None:
            # Only the first is as it may have been before: whoever is forgotten loses its session.
            anew = peer in self._known
            self._known.add(peer)
            pair = Pair(peer, self._own, self._sender(peer).credit, now, anew=anew)
            kept = self._kept[peer] = _Kept(pair)
        return kept

    def _guest(self, peer: NodeId, now: float) -> _Kept | None:
        """Take in one that wants us; None when there is no room."""
        return self._keep(peer, now) if self._room(now) else None

    def _run(self, kept: _Kept, now: float) -> None:
        pair, wanted = kept.pair, kept.wanted(now)
        if wanted and not pair.wanted:
            pair.wanted = True
            pair.know(self._records.get(pair.peer, ()), now)
            pair.call(now)
        pair.wanted = wanted
        pair.tick(now)
        kept.wake_at = max(kept.pair.wake_at(), now + _TICK_MIN_S)

    def _sender(self, peer: NodeId) -> _Sender:
        sender = self._senders.get(peer)
        if sender is None:
            sender = self._senders[peer] = _Sender(
                Allowance(PROBES_PER_S, PROBES_BURST),
                Allowance(SIGNALS_PER_S, SIGNALS_BURST),
                Credit(),
            )
            if len(self._senders) > _SENDERS_MAX:
                self._senders.popitem(last=False)
        else:
            self._senders.move_to_end(peer)
        return sender

    def _room(self, now: float) -> bool:
        """Make room for one that calls us: the guest that was idle longest goes."""
        guests = {peer: kept for peer, kept in self._kept.items() if not kept.pair.wanted}
        if len(guests) < GUESTS_MAX:
            return True
        idle = min(guests, key=lambda peer: guests[peer].called_at)
        if now - guests[idle].called_at < GUEST_S / 4:
            return False
        self.forget(idle, now)
        return True

    def _observe_soon(self, now: float) -> None:
        if now - self._observe_begun < sum(OBSERVE_AGAIN_S):
            return
        self._observe_begun = now
        self._observe_round = 0
        self._answered.clear()
        self._observe_at = now

    def _observe(self, now: float) -> None:
        """Ask all rendezvous that have not answered in this round."""
        if self._observe_round > len(OBSERVE_AGAIN_S):
            self._observe_round = 0
            self._observe_begun = now
            self._answered.clear()
        for rendezvous in self._rendezvous:
            for place in (rendezvous.place, rendezvous.second):
                if place is None or place in self._answered:
                    continue
                token = self._own.rng.getrandbits(62)
                self._asked[token] = (rendezvous.node, place)
                if len(self._asked) > _TOKENS_MAX:
                    self._asked.popitem(last=False)
                self._outputs.append(SendProbe(rendezvous.node, place, Observe(token)))
            self._table.asked(rendezvous.node, now)
        step = self._observe_round
        self._observe_round += 1
        rest = OBSERVE_S * self._own.rng.uniform(0.9, 1.1)
        self._observe_at = now + (OBSERVE_AGAIN_S[step] if step < len(OBSERVE_AGAIN_S) else rest)
        self._refresh(now)

    def _observed(self, peer: NodeId, place: Place, probe: Observed, now: float) -> None:
        asked = self._asked.pop(probe.token, None)
        if asked != (peer, place):
            return
        self._answered.add(place)
        self._table.answered(peer, place[1], unpack(probe.seen), now)
        self._refresh(now)

    def _refresh(self, now: float, *, force: bool = False) -> None:
        """Take up what follows from the observations; tell the pairs if it is news."""
        own = self._own
        nat = self._table.kind(own.around, now)
        hosts = self._table.public_hosts(now)
        candidates = own_candidates(own.around, self._table.places(now))
        if not force and (nat, hosts, candidates) == (own.nat, own.public_hosts, own.candidates):
            return
        if not candidates and nat is NatKind.UNKNOWN and not force:
            # Between two networks: what we told last is as good as nothing at all.
            return
        own.nat, own.public_hosts, own.candidates = nat, hosts, candidates
        self._tell_at = min(self._tell_at, now + TELL_AFTER_S)


def _named(place: Place) -> Candidate:
    """Return a place of a record as a candidate: an interface's or the operator's word."""
    host = place[0]
    if ":" in host:
        return Candidate.of(Kind.IPV6, place)
    return Candidate.of(Kind.LAN if is_private(host) else Kind.CONFIGURED, place)
