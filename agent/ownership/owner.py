"""Who owns each deployment: this node's part in it, as a state machine without I/O. A core.

For each deployment a worker is in one of two states:

    state    meaning
    -----    -------
    aside    someone who comes before this node is there; the two next in rank hear its beats
    duty     this node coordinates: it has the head's lease, or claims it until it gets it

    from    to      when
    ----    --      ----
    aside   duty    all who come first are silent or gone, and this node has been up for LEASE_S
    duty    aside   one who comes first says that it is there (its beat), or a head says that it
                    acts; the leases are given back, and it is told which heads they were for
    duty    aside   the deployment was removed and runs nowhere any more
    duty    aside   this node is draining, and another worker is not

A head that is draining goes on until another one answers: the new one is meant at once, and the old
one's lease is kept as that of a surplus.

A node on duty acts on a head only while its lease there is valid by its own clock, which counts
from when the claim was sent. Two nodes may both be on duty for a while, but never both hold one
head's lease. `now` is monotonic seconds on this node's clock. Feed it with `tick`, `on_message` and
`suspect`, and send what they return. Used by `service.py`, and by the simulation in the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agent.identity.keys import NodeId
from agent.ownership.duty import RENEW_S, RETRY_S, Duty, Hold, Phase, Want, best_running, new_head
from agent.ownership.headside import HERE_INTERVAL_S, HeadSide
from agent.ownership.hearsay import FRESH_S, MEMORY_S, Hearsay, Told
from agent.ownership.lease import LEASE_S, LeaseBook, Token
from agent.ownership.messages import Beat, Claim, Grant, Here, Hint, Item, Refuse, Release, Report
from agent.ownership.pulse import SILENCE_S
from agent.ownership.ranking import Ranking

__all__ = ["Holding", "Ownership", "Phase", "Report", "Send", "View", "Want"]

BEAT_S = RENEW_S
# A ring that runs is heard of within HERE_INTERVAL_S by who comes first; only after that, and a
# lost packet, may it be taken that there is none.
SETTLE_S = 2 * HERE_INTERVAL_S
# A head that fell silent without any other sign of death is waited for so long before its ring is
# built elsewhere: presence needs as long to be sure.
PATIENCE_S = 3.0


@dataclass(frozen=True)
class Send:
    """Items for one node."""

    to: NodeId
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Holding:
    """A valid lease at `head`; `main` says that the deployment shall run there, else nowhere.

    `sure` is False while the head that this one replaces may still be there: do not build anew yet.
    """

    head: NodeId
    token: Token
    report: Report
    main: bool
    sure: bool


@dataclass(frozen=True)
class View:
    """Who owns a deployment as far as this node knows now, and its head and token.

    `deputy`: this node is among those that take over when the owner falls silent.
    """

    owner: NodeId | None = None
    head: NodeId | None = None
    token: Token | None = None
    deputy: bool = False


class Ownership:
    """All deployments as seen from this node, which is a worker."""

    def __init__(self, own: NodeId, now: float, *, floor: int, limit: int) -> None:
        """Grant epochs above `floor`, up to `limit` (see LeaseBook)."""
        self._own = own
        self._head = HeadSide(LeaseBook(now, floor=floor, limit=limit))
        self._ranking = Ranking(own, now)
        self._hearsay = Hearsay()
        self._ready_at = now + LEASE_S
        self._wants: Mapping[str, Want] = {}
        self._duties: dict[str, Duty] = {}
        self._number = 0
        self._outbox: dict[NodeId, list[Item]] = {}
        self._wake = now

    @property
    def leases(self) -> LeaseBook:
        """What this node grants as a head."""
        return self._head.leases

    @property
    def wake(self) -> float:
        """When to call `tick` next at the latest; inf while there is nothing to do."""
        return self._wake

    def owned(self, now: float) -> dict[str, tuple[Holding, ...]]:
        """Return the valid leases of this node by deployment; nobody else has any of these."""
        found = {}
        for name, duty in self._duties.items():
            holdings = tuple(
                Holding(head, hold.token, hold.report, head == duty.main, self._sure(duty, now))
                for head, hold in duty.holds.items()
                if hold.token is not None and hold.valid(now)
            )
            if holdings:
                found[name] = holdings
        return found

    def view(self, name: str, now: float) -> View:
        """Return what this node knows of a deployment's owner without asking anyone."""
        duty = self._duties.get(name)
        if duty is not None:
            return View(self._own, duty.main, duty.token(now))
        told = self._hearsay.told(name, now, FRESH_S)
        token = self.leases.holder(name, now)
        if token is not None:
            return View(token.owner_id, self._own, token, told is not None and told.deputy)
        return View(told.owner, told.head, told.token, told.deputy) if told else View()

    def first(self, name: str, now: float) -> NodeId | None:
        """Return who comes first for a deployment among those who are there."""
        return next(iter(self._ranking.present(name, now)), None)

    def tick(
        self, now: float, live: Collection[NodeId], wants: Mapping[str, Want],
        running: Mapping[str, Report], draining: Collection[NodeId] = (),
    ) -> list[Send]:  # fmt: skip
        """Move on. `live`: the workers that are there; `running`: the rings whose head is here;
        `draining`: who is to run nothing.
        """
        self._head.running = {n: r for n, r in running.items() if r.phase != Phase.NONE}
        self._wants = wants
        self._hearsay.expire(now)
        self._ranking.update(live, now, draining)
        for node, here in self._head.due(now, lambda name: self._ranking.candidates(name, now)):
            self._post(node, here)
        expected: set[NodeId] = set()
        for name in self._duties.keys() - wants.keys():
            self._abandon(name)
        for want in wants.values():
            expected |= self._tend(want, now)
        self._ranking.expect(expected, now)
        self._talk_to_self(now)
        self._set_wake(now)
        return self._flush()

    def on_message(self, peer: NodeId, items: Sequence[Item], now: float) -> list[Send]:
        """Take in what another worker sent."""
        self._ranking.pulse.hear(peer, now)
        for item in items:
            self._take(peer, item, now)
        self._talk_to_self(now)
        return self._flush()

    def suspect(self, node: NodeId, now: float) -> None:
        """Take a hint that a node died; it is silent until it is heard. Call `tick` next."""
        self._ranking.pulse.suspect(node, now)

    def trust(self, node: NodeId) -> None:
        """Take word that a node is there (again). Call `tick` next."""
        self._ranking.pulse.forget(node)

    def resign(self) -> list[Send]:
        """Give everything back, because this node stops; nothing else may be called after it."""
        for name in list(self._duties):
            self._abandon(name)
        self._outbox.pop(self._own, None)
        return self._flush()

    def _take(self, peer: NodeId, item: Item, now: float) -> None:
        match item:
            case Claim():
                answer = self._head.on_claim(peer, item, now)
                if answer is not None:
                    self._post(peer, answer)
            case Release():
                self._head.on_release(item)
            case Grant():
                self._on_grant(peer, item, now)
            case Refuse():
                self._on_refuse(peer, item, now)
            case Beat():
                self._on_beat(peer, item, now)
            case Hint():
                self._hearsay.runs(item.name, NodeId(item.head), Phase.BUILDING, now)
            case Here():
                self._hearsay.runs(item.name, peer, Phase(item.report.phase), now)

    def _on_grant(self, peer: NodeId, grant: Grant, now: float) -> None:
        duty = self._duties.get(grant.name)
        hold = duty.holds.get(peer) if duty else None
        if hold is None or hold.number != grant.number:
            # Not wanted any more. Never a token in use: that has the present claim's number.
            if hold is None or hold.token != grant.token:
                self._post(peer, Release(grant.name, grant.token))
            return
        hold.granted(grant, now)
        self._hearsay.runs(grant.name, peer, Phase(grant.report.phase), now)

    def _on_refuse(self, peer: NodeId, refuse: Refuse, now: float) -> None:
        duty = self._duties.get(refuse.name)
        hold = duty.holds.get(peer) if duty else None
        if duty is None or hold is None or hold.number != refuse.number:
            return
        hold.report, hold.reported_at = refuse.report, now
        self._hearsay.runs(refuse.name, peer, Phase(refuse.report.phase), now)
        hold.next_claim = now + min(RETRY_S, refuse.left_us / 1e6 + 0.002)
        self._wake = min(self._wake, hold.next_claim)
        if refuse.holder is None or refuse.holder.owner == self._own.ed25519:
            return
        holder = refuse.holder.owner_id
        if hold.token is not None and refuse.holder.epoch > hold.token.epoch:
            hold.lost(self._next_number(now))
        renewed_at = now - refuse.age_us / 1e6
        if self._ranking.precedes(refuse.name, self._own, holder):
            # It acts for a part of the mesh that does not see this node: let it know, and yield.
            duty.rivals.add(holder)
            self._post(holder, self._beat(refuse.name, duty, now))
        elif now - renewed_at < SILENCE_S:
            self._ranking.pulse.hear(holder, renewed_at)
            if not self._ranking.down(holder, now):
                self._yield(refuse.name, duty, holder)

    def _on_beat(self, peer: NodeId, beat: Beat, now: float) -> None:
        head = NodeId(beat.head) if beat.head is not None else None
        self._hearsay.beat(beat.name, Told(peer, head, beat.token, now, beat.deputy))
        duty = self._duties.get(beat.name)
        if duty is None:
            return
        if self._ranking.precedes(beat.name, peer, self._own):
            self._yield(beat.name, duty, peer)
        elif peer not in duty.rivals:
            # Once between two beats: who has not heard yet who is draining thinks the same of us.
            duty.rivals.add(peer)
            self._post(peer, self._beat(beat.name, duty, now))

    def _tend(self, want: Want, now: float) -> set[NodeId]:
        """Do what is due for one deployment; returns from whom something is expected."""
        name, ranking = want.name, self._ranking
        if self._own not in ranking.live:
            self._abandon(name)
            return set()
        duty = self._duties.get(name)
        if duty is None:
            if want.removed and not self._running(name):
                return set()
            first = ranking.present(name, now)[0]
            if first != self._own:
                # Only who hears an owner's beats can miss them.
                told = self._hearsay.told(name, now, MEMORY_S)
                hears = told is not None and told.deputy and told.owner == first
                return {first} if hears and not want.removed else set()
            if now < self._ready_at:
                return set()
            duty = self._duties[name] = Duty(since=now)
        elif self._own in ranking.draining and ranking.present(name, now)[0] != self._own:
            self._yield(name, duty, ranking.present(name, now)[0])
            return set()
        self._choose(want, duty, now)
        self._keep_holds(want, duty, now)
        if want.removed and not duty.holds:
            del self._duties[name]
            return set()
        if now >= duty.next_beat:
            duty.next_beat = now + BEAT_S
            self._beat_all(name, duty, now)
        return set(duty.holds)

    def _choose(self, want: Want, duty: Duty, now: float) -> None:
        """Settle which head is meant: one that runs, else a new one."""
        running = self._running(want.name)
        others = self._ranking.present(want.name, now) if want.avoid else ()

        def usable(node: NodeId) -> bool:
            allowed = want.only is None or node == want.only
            refuses = node in want.avoid and node not in running
            return allowed and not refuses and self._ranking.usable(node, now)

        def stays(node: NodeId | None) -> bool:
            return node is not None and usable(node) and node not in self._ranking.draining

        if want.removed:
            duty.main = None
            return
        if duty.main is not None and not usable(duty.main):
            if duty.main not in want.avoid:  # nothing was begun where it is refused
                duty.lost, duty.lost_at = duty.main, now
            self._drop_hold(want.name, duty, duty.main)
            duty.main = None
        best = best_running(want, running, stays) or best_running(want, running, usable)
        if duty.main is None:
            told = self._hearsay.told(want.name, now, MEMORY_S)
            if best is not None:
                duty.main = best
            elif told and told.token and told.head and usable(told.head):
                duty.main = told.head
            elif told or duty.lost or self._ranking.stable_for(now) >= SETTLE_S:
                # Whoever ran it would have been heard of by now, or is lost.
                duty.main = new_head(want, self._own, stays, others)
                # Once: nobody may be head for a while.
                if told and told.token and told.head and told.head != duty.lost:
                    duty.lost, duty.lost_at = told.head, now
        elif best is not None and (
            running[best] is Phase.READY and running.get(duty.main) is not Phase.READY
            and (stays(best) or not stays(duty.main))
        ):  # fmt: skip
            duty.main = best
        hold = duty.holds.get(duty.main) if duty.main is not None else None
        # Not before its lease is here, and how it is there: what answers is known to be possible.
        if hold is not None and hold.valid(now) and not stays(duty.main):
            other = best_running(want, running, stays) or new_head(want, self._own, stays, others)
            # What does not run on a node that drains is not begun there.
            duty.main = other or (duty.main if duty.main in running else None)
        if duty.main is not None and duty.main not in duty.holds:
            duty.holds[duty.main] = Hold(self._next_number(now), now)

    def _keep_holds(self, want: Want, duty: Duty, now: float) -> None:
        """Say again what holds and claims; take on what is a surplus, let go what has ended."""
        for head in self._running(want.name):
            if head not in duty.holds and self._ranking.usable(head, now):
                duty.holds[head] = Hold(self._next_number(now), now)
        for head, hold in list(duty.holds.items()):
            ended = hold.reported_at > hold.since and hold.report.phase == Phase.NONE
            if head != duty.main and (ended or not self._ranking.usable(head, now)):
                self._drop_hold(want.name, duty, head)
            elif now >= hold.next_claim:
                told = self._hearsay.told(want.name, now, MEMORY_S)
                after = told.token.epoch if told and told.token else 0
                self._post(head, hold.claim(want.name, after, now))

    def _drop_hold(self, name: str, duty: Duty, head: NodeId) -> None:
        """Give a lease back, whether it was granted already or is still asked for."""
        hold = duty.holds.pop(head)
        if hold.token is not None:
            self._post(head, Release(name, hold.token))
        self._hearsay.runs(name, head, Phase.NONE, 0.0)

    def _yield(self, name: str, duty: Duty, to: NodeId) -> None:
        """Leave the duty to one who comes first, with what it needs to know."""
        del self._duties[name]
        running = self._running(name)
        for head in list(duty.holds):
            if head in running:
                self._post(to, Hint(name, head.ed25519))
            self._drop_hold(name, duty, head)

    def _abandon(self, name: str) -> None:
        duty = self._duties.pop(name, None)
        for head in list(duty.holds if duty else ()):
            self._drop_hold(name, duty or Duty(0.0), head)

    def _beat_all(self, name: str, duty: Duty, now: float) -> None:
        """Beat to the deputies, to those who were, and to whoever may own it instead."""
        deputies = self._ranking.deputies(name, now)
        # Who comes first was found silent; if it is there after all, it answers with its own beat.
        others = {*duty.deputies, *duty.rivals, *self._ranking.above(name)} - {*deputies}
        for node in deputies:
            self._post(node, self._beat(name, duty, now, deputy=True))
        for node in sorted(others):
            self._post(node, self._beat(name, duty, now))
        duty.deputies = tuple(deputies)
        duty.rivals.clear()

    def _beat(self, name: str, duty: Duty, now: float, *, deputy: bool = False) -> Beat:
        head = duty.main.ed25519 if duty.main else None
        return Beat(name, head, duty.token(now), deputy)

    def _sure(self, duty: Duty, now: float) -> bool:
        lost = duty.lost
        waited = now - duty.lost_at >= PATIENCE_S
        return lost is None or waited or self._ranking.gone(lost)

    def _running(self, name: str) -> dict[NodeId, Phase]:
        """Return where a deployment runs, as far as was heard lately."""
        found = self._hearsay.heads(name)
        found.pop(self._own, None)
        if name in self._head.running:
            found[self._own] = Phase(self._head.running[name].phase)
        return found

    def _next_number(self, now: float) -> int:
        self._number = max(self._number + 1, int(now * 1e6))
        return self._number

    def _set_wake(self, now: float) -> None:
        busy = self._duties or any(not want.removed for want in self._wants.values())
        if not busy and not self._head.running:
            self._wake = float("inf")
            return
        due = [now + BEAT_S, self._ranking.pulse.next_deadline(), self._head.wake(now)]
        for duty in self._duties.values():
            due += [duty.next_beat, *(hold.next_claim for hold in duty.holds.values())]
        self._wake = min(due)

    def _post(self, to: NodeId, item: Item) -> None:
        self._outbox.setdefault(to, []).append(item)

    def _talk_to_self(self, now: float) -> None:
        """Take in what this node says to itself, as a head and as an owner."""
        while items := self._outbox.pop(self._own, None):
            for item in items:
                self._take(self._own, item, now)

    def _flush(self) -> list[Send]:
        sends = [Send(to, tuple(items)) for to, items in self._outbox.items()]
        self._outbox = {}
        return sends
