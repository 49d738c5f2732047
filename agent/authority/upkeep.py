"""What time brings: renewal, adoption, pruning, and asking others for what was missed. A shell.

every      what
-----      ----
30 s       one's own certificate: extended with the root key, or renewed by an issuer when its
           time has come or a member with a lower key has the name or address; an issuer takes
           over the revocations of issuers that sign no more
link up    sync with that member: revocations, key changes, one's newest certificate
5 min      sync with any linked member
key known  by its change alone: the key is fetched, again and again
any step   of time that changes who is a member or which keys count: the daemon is told
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict

from agent.authority import messages, pace
from agent.authority.circle import Circle
from agent.authority.herald import Herald
from agent.authority.pace import Backoff
from agent.errors import CoveyError, MembershipError
from agent.identity.keys import NodeId
from agent.membership.certificate import Certificate
from agent.membership.keyring import KeyChange
from agent.membership.revocation import Have

_log = logging.getLogger(__name__)

_TICK_S = 30.0
_SHORTEST_S = 0.05
_PRUNE_S = 3600.0
_SYNC_S = 300.0
# Links come and go; one sync with a member in this time brings all there is.
_SYNC_AGAIN_S = 20.0
_MAX_SYNCS = 64
# What is told over a connection must be out before the connection is closed.
_AFTER_ANSWER_S = 0.2
# Much news at once is one occasion to look at what is due.
_CALM_S = 0.5
# All members hear of a key change in the same second, and must not all ask in it.
_KEY_SPREAD_S = 2.0
_KEYS_IDLE_S = 60.0
_KEY_AGAIN_S = 3.0


class Upkeep:
    """Runs what nobody asks for."""

    def __init__(self, circle: Circle) -> None:
        self._circle = circle
        self._membership = circle.membership
        self.herald = Herald(circle, self.look_up, self.want_keys)
        self._renewal = Backoff(first_s=10.0, most_s=3600.0)
        self._pruned = 0.0
        self._syncs: OrderedDict[NodeId, None] = OrderedDict()
        self._synced: OrderedDict[NodeId, float] = OrderedDict()
        self._sync_wanted = asyncio.Event()
        self._keys_wanted = asyncio.Event()
        # Why one's own certificate could not be renewed, while that is so; for the health items.
        self.trouble: CoveyError | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_time(), name="authority time")
            tasks.create_task(self._follow_syncs(), name="authority syncs")
            tasks.create_task(self._follow_keys(), name="authority keys")
            tasks.create_task(self._follow_answers(), name="authority answers")

    def want_keys(self) -> None:
        """A key change was heard of whose key is not here."""
        self._keys_wanted.set()

    def look_up(self, node: NodeId) -> None:
        """Sync with a member soon, though that was just done: it has something new."""
        self._synced.pop(node, None)
        self._want_sync(node)

    def linked(self, node: NodeId) -> None:
        """A member's connection came up: sync with it soon."""
        last = self._synced.get(node)
        if last is None or not 0 <= self._circle.now() - last < _SYNC_AGAIN_S:
            self._want_sync(node)

    def lacks(self, node: NodeId, have: tuple[Have, ...]) -> None:
        """A member that asked has these lists: ask it for those that are missing here."""
        if not all(self.herald.knows(each) for each in have):
            self.linked(node)

    def _want_sync(self, node: NodeId) -> None:
        if len(self._syncs) < _MAX_SYNCS:
            self._syncs[node] = None
        self._sync_wanted.set()

    # ----------------------------------------------------------------- time

    async def _follow_time(self) -> None:
        stirred = self._circle.stirred
        while True:
            stirred.clear()
            now = self._circle.now()
            try:
                await self.tick(now)
            except CoveyError as error:
                _log.error("upkeep failed: %s", error.line())
            step = self._membership.next_step(now)
            wait_s = _TICK_S if step is None else min(_TICK_S, step - now + _SHORTEST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_SHORTEST_S, wait_s)):
                    await stirred.wait()
                    await asyncio.sleep(_CALM_S)
            passed = step is not None and self._circle.now() > step
            await self._circle.changed(anyway=passed)

    async def tick(self, now: float) -> None:
        """Do what is due at `now`; raises StateError when the disk fails."""
        membership, circle = self._membership, self._circle
        if not 0 <= now - self._pruned < _PRUNE_S:
            self._pruned = now
            await asyncio.to_thread(membership.prune, now)
        made = await asyncio.to_thread(membership.extend, now)
        if made is not None:
            await circle.tell_certificates([made])
        await self._renew(now)
        await circle.tell_list(await asyncio.to_thread(membership.adopt, now))
        await circle.changed()

    async def _renew(self, now: float) -> None:
        """Ask an issuer for this node's next certificate, if it is time."""
        membership, circle = self._membership, self._circle
        own, collides = membership.certificate, membership.collision(now)
        signer_out = own.issuer in membership.revocations.revoked_signers
        wanted = collides is not None or signer_out or now >= pace.renew_at(own)
        if not wanted or not membership.is_member(circle.own, now):
            self.trouble = None
            self._renewal.succeeded()
            return
        if not self._renewal.ready(now):
            return
        against = collides.certificate.encode() if collides else b""
        try:
            made = await self._renewed(messages.Renew(own.encode(), against), now)
        except CoveyError as error:
            self.trouble = error
            self._renewal.failed(now, circle.random.random())
            _log.warning("certificate.not_renewed: %s", error.line())
            return
        if made == own:
            # The issuer sees no reason: its clock is behind ours, or it lacks what we know.
            self._renewal.failed(now, circle.random.random())
            return
        self.trouble = None
        self._renewal.succeeded()
        _log.info("certificate.renewed name=%s not_after=%d", made.name, made.not_after)

    async def _renewed(self, request: messages.Renew, now: float) -> Certificate:
        """Return this node's newest certificate, from here or from another issuer."""
        membership, circle = self._membership, self._circle
        if membership.can_issue(now):
            try:
                made = await asyncio.to_thread(membership.renew, circle.own, now)
            except MembershipError:
                pass  # what only the root key renews: perhaps another node has it
            else:
                await circle.tell_certificates([made])
                return made
        answer = await circle.ask_issuers(request, messages.Certified)
        certificate = Certificate.decode(answer.certificate)
        if certificate.node_id != circle.own:
            raise MembershipError("an issuer sent another node's certificate")
        await asyncio.to_thread(membership.add_member, certificate, now)
        return membership.certificate

    async def _follow_answers(self) -> None:
        """Call `changed` a moment after an answer that had to be out first."""
        while True:
            await self._circle.change_soon.wait()
            await asyncio.sleep(_AFTER_ANSWER_S)
            self._circle.change_soon.clear()
            await self._circle.changed()

    # ---------------------------------------------------------------- syncs

    async def _follow_syncs(self) -> None:
        while True:
            self._sync_wanted.clear()
            if not self._syncs:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SYNC_S):
                        await self._sync_wanted.wait()
            if not self._syncs and self._circle.linked:
                self._syncs[self._circle.shuffled(self._circle.linked)[0]] = None
            if self._syncs:
                node, _ = self._syncs.popitem(last=False)
                try:
                    await self.sync(node)
                except CoveyError as error:
                    _log.info("sync.failed node=%s: %s", node, error.message)

    async def sync(self, node: NodeId) -> None:
        """Ask a member for what this node lacks. Raises PeerError, NotRunning or StateError."""
        membership, circle = self._membership, self._circle
        now = circle.now()
        if not membership.is_member(node, now):
            return
        self._synced[node] = now
        self._synced.move_to_end(node)
        if len(self._synced) > _MAX_SYNCS:
            self._synced.popitem(last=False)
        have = membership.revocations.have()[: messages.MAX_HAVE]
        request = messages.Sync(membership.certificate.encode(), have)
        synced = await circle.ask(node, request, messages.Synced)
        for raw in synced.lists:
            with contextlib.suppress(MembershipError):
                await self.herald.take_list(raw, now)
        for raw in synced.changes:
            with contextlib.suppress(MembershipError):
                change = KeyChange.decode(raw)
                await asyncio.to_thread(membership.announce_key, change, now)
        if synced.certificate:
            with contextlib.suppress(MembershipError):
                certificate = Certificate.decode(synced.certificate)
                if certificate.node_id == circle.own:
                    await asyncio.to_thread(membership.add_member, certificate, now)
        if membership.key_ring.pending:
            self.want_keys()
        await circle.changed()

    # ----------------------------------------------------------------- keys

    async def _follow_keys(self) -> None:
        """Fetch keys of which only the change is known, from one member after another."""
        while True:
            self._keys_wanted.clear()
            pending = self._membership.key_ring.pending
            if not pending:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KEYS_IDLE_S):
                        await self._keys_wanted.wait()
                continue
            now = self._circle.now()
            left_s = max(0.0, min(change.active_at for change in pending) - now)
            spread_s = min(_KEY_SPREAD_S, left_s / 4) * self._circle.random.random()
            await asyncio.sleep(spread_s)
            for node in self._key_holders(now):
                if not self._membership.key_ring.pending:
                    break
                try:
                    await self.fetch_keys(node)
                except CoveyError as error:
                    _log.info("network_key.not_fetched node=%s: %s", node, error.message)
            if self._membership.key_ring.pending:
                await asyncio.sleep(min(_KEY_AGAIN_S, max(_SHORTEST_S, left_s / 4)))

    def _key_holders(self, now: float) -> list[NodeId]:
        """Who may have a key: two linked members, then who made the change, then any other."""
        circle = self._circle
        live = [m.node_id for m in self._membership.live_members(now) if m.node_id != circle.own]
        makers = [NodeId(change.signer) for change in self._membership.key_ring.pending]
        mixed = circle.shuffled(live)
        found = [*mixed[:2], *(node for node in makers if node in live), *mixed[2:4]]
        return list(dict.fromkeys(found))

    async def fetch_keys(self, node: NodeId) -> bool:
        """Ask a member for the network keys; return whether one was new.

        Raises PeerError, NotRunning, MembershipError or StateError.
        """
        keys = await self._circle.ask(node, messages.GetKeys(), messages.Keys)
        new = await asyncio.to_thread(self._membership.learn_keys, keys.offer, self._circle.now())
        if new:
            _log.info("network_key.learnt from=%s", node)
            await self._circle.changed()
        return new
