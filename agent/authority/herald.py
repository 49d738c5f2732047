"""News of the mesh: what is gossiped about certificates, revocations and keys. A shell.

Whatever comes is believed for its own signatures, not for who brought it. News that makes no sense
is not passed on by the control plane, which is what `take` returning False means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agent.authority import messages
from agent.authority.circle import Circle
from agent.errors import CoveyError, MembershipError, PeerError, UsageError
from agent.identity.keys import NodeId
from agent.membership.certificate import Certificate
from agent.membership.keyring import KeyChange
from agent.membership.revocation import Have, RevocationList

_log = logging.getLogger(__name__)


class Herald:
    """Takes in news, and asks for what is only named in it."""

    def __init__(
        self, circle: Circle, look_up: Callable[[NodeId], None], want_keys: Callable[[], None]
    ) -> None:
        """`look_up`: a member has a list that is missing here; `want_keys`: a key is."""
        self._circle = circle
        self._membership = circle.membership
        self._look_up = look_up
        self._want_keys = want_keys

    async def take(self, author: NodeId, payload: bytes) -> bool:
        """Take in a piece of gossip; False when it makes no sense and should go no further."""
        try:
            news = messages.decode_news(payload)
            await self._believe(author, news)
        except (MembershipError, PeerError, UsageError) as error:
            _log.info("news.refused author=%s: %s", author, error.message)
            return False
        except CoveyError as error:
            # A full disk here is no fault of the news: the others shall have it.
            _log.error("news.not_stored author=%s: %s", author, error.line())
        await self._circle.changed()
        return True

    async def take_list(self, raw: bytes, now: float) -> None:
        """Believe a revocation list; an issuer's own comes back with more than its state holds."""
        made = RevocationList.decode(raw)
        await asyncio.to_thread(self._take_list, made, now)
        if made.signer == self._circle.own.ed25519 and not made.departure:
            await self._circle.tell_list(
                await asyncio.to_thread(self._membership.reconcile, made, now)
            )

    def knows(self, have: Have) -> bool:
        """Say whether this node has that list, or a later one of its signer."""
        known = self._membership.revocations.lists.get((have.signer, have.departure))
        if known is None:
            return False
        return known.number > have.number or known.what == have

    def _take_list(self, made: RevocationList, now: float) -> None:
        try:
            self._membership.take_revocations(made, now)
        except MembershipError:
            # One's own list may hold less than what one knows: that is for `reconcile` to mend.
            if made.signer != self._circle.own.ed25519 or made.departure:
                raise

    async def _believe(self, author: NodeId, news: messages.News) -> None:
        now = self._circle.now()
        match news:
            case messages.NewCertificates():
                certificates = [Certificate.decode(raw) for raw in news.certificates]
                await asyncio.to_thread(self._membership.add_certificates, certificates, now)
            case messages.NewList():
                await self.take_list(news.made, now)
            case messages.NewListThere():
                if not self.knows(news.have):
                    self._look_up(author)
            case messages.NewKey():
                change = KeyChange.decode(news.change)
                if await asyncio.to_thread(self._membership.announce_key, change, now):
                    self._want_keys()
