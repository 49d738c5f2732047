"""What this node answers: newcomers who want to join, and members who ask something. A shell.

The join protocol is the only one that strangers may use. It takes no more than a request that the
sender itself signed, and little of anyone's time. Who may ask what of whom is in `messages.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from agent.authority import messages
from agent.authority.circle import Circle
from agent.authority.pace import Allowance
from agent.errors import CoveyError, MembershipError, NotRunning, PeerError, TicketError
from agent.identity.keys import NodeId
from agent.membership import join
from agent.membership.certificate import Certificate
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.revocation import Have, RevocationList

_log = logging.getLogger(__name__)

# A newcomer's own wait is 15 s; the issuer writes two files.
_FORWARD_TIMEOUT_S = 10.0
_COMMANDERS = frozenset(("issuer", "admin"))


class Desk:
    """Answers the join protocol and the authority's own."""

    def __init__(self, circle: Circle, lacks: Callable[[NodeId, tuple[Have, ...]], None]) -> None:
        """`lacks` hears which lists a member has, so that this node can ask for what it lacks."""
        self._circle = circle
        self._membership = circle.membership
        self._lacks = lacks
        # A newcomer asks once, and again when its answer was lost. Whoever has the network key can
        # make up identities, so all together are held to what one core verifies in passing.
        self._joins = Allowance(burst=5, per_s=0.2, peers=1024)
        self._all_joins = Allowance(burst=200, per_s=50.0, peers=1)
        # Members ask rarely: a sync for each link that comes up, a renewal in two months.
        self._asks = Allowance(burst=40, per_s=2.0, peers=4096)

    # ------------------------------------------------------------- joining

    async def join(self, peer: NodeId, payload: bytes) -> bytes:
        """Answer a newcomer: decide here, or pass it on to the ticket's issuer.

        Raises TicketError, MembershipError, UsageError or PeerError, which the newcomer gets.
        """
        now = self._circle.now()
        request = JoinRequest.decode(payload)
        if peer != request.node_id:
            raise MembershipError("the join request is of another node than the one that sent it")
        # The node's own share first: who spends that may not spend everyone's.
        if not self._joins.take(peer, now) or not self._all_joins.take("all", now):
            raise _busy()
        join.check_request(request, self._membership.mesh.id)
        if request.issuer_id == self._circle.own:
            return (await self._admit(request)).encode()
        return await self._pass_on(request, now)

    async def _admit(self, request: JoinRequest) -> JoinReply:
        """The newcomer is a member here and everyone is told before it is told itself."""
        reply = await asyncio.to_thread(self._membership.admit, request, self._circle.now())
        await self._circle.changed()
        await self._circle.tell_certificates([Certificate.decode(reply.certificate)])
        return reply

    async def _pass_on(self, request: JoinRequest, now: float) -> bytes:
        issuer = self._membership.find(request.issuer_id)
        if issuer is None or not self._membership.is_member(issuer.node_id, now):
            raise TicketError(
                "the issuer of this ticket is in the mesh no more",
                hint="Ask for a new one (`agent invite`).",
            )
        try:
            joined = await self._circle.ask(
                issuer.node_id, messages.Join(request.encode()), messages.Joined,
                timeout_s=_FORWARD_TIMEOUT_S,
            )  # fmt: skip
        except (PeerError, NotRunning):
            raise PeerError(
                f"the issuer of this ticket, {issuer.certificate.name}, does not answer now",
                hint="Try again when it is up, or ask for a ticket of another issuer.",
            ) from None
        reply = JoinReply.decode(joined.reply)
        await self._believe(reply.certificate)
        await self._circle.changed()
        return joined.reply

    # ------------------------------------------------------------- members

    async def answer(self, peer: NodeId, payload: bytes) -> bytes:
        """Answer a member's request; raises what the member gets."""
        now = self._circle.now()
        if not self._membership.is_member(peer, now):
            raise MembershipError(f"…{peer.short} is no member of this mesh")
        if not self._asks.take(peer, now):
            raise _busy()
        return messages.encode(await self._decide(peer, messages.decode_request(payload), now))

    async def _decide(self, peer: NodeId, request: messages.Request, now: float) -> messages.Answer:
        match request:
            case messages.Renew():
                return await self._renew(peer, request, now)
            case messages.Reissue():
                return await self._reissue(peer, request, now)
            case messages.Revoke():
                self._require_command(peer)
                await revoke(self._circle, NodeId(request.node), request.reason)
                return messages.Done()
            case messages.Invite():
                self._require_command(peer)
                return messages.Invited(await invite(self._circle, request, ()))
            case messages.Rotate():
                self._require_command(peer)
                change = await asyncio.to_thread(
                    self._membership.rotate, now, request.overlap_s, force=request.force
                )
                await self._circle.tell_key(change)
                await self._circle.changed()
                return messages.Rotated(change.encode())
            case messages.Join():
                asked = JoinRequest.decode(request.request)
                return messages.Joined((await self._admit(asked)).encode())
            case messages.Depart():
                await self._depart(request, now)
                return messages.Done()
            case messages.Sync():
                return self._sync(peer, request, now)
            case messages.GetKeys():
                return messages.Keys(self._membership.key_ring.offer(now))
            case messages.Push():
                await self._push(request, now)
                return messages.Done()

    async def _renew(self, peer: NodeId, request: messages.Renew, now: float) -> messages.Certified:
        if not self._membership.can_issue(now):
            raise MembershipError("this node issues no certificates: it is no issuer")
        # What the member knows, and this node perhaps not: its newest certificate, its rival's.
        await self._believe(request.certificate)
        if request.against:
            await self._believe(request.against)
        known = self._membership.find(peer)
        made = await asyncio.to_thread(self._membership.renew, peer, now)
        if known is None or made != known.certificate:
            await self._circle.tell_certificates([made])
        await self._circle.changed()
        return messages.Certified(made.encode())

    async def _reissue(
        self, peer: NodeId, request: messages.Reissue, now: float
    ) -> messages.Certified:
        node = NodeId(request.node)
        if node != peer or request.roles is not None or request.tags is not None:
            self._require_command(peer)
        made = await asyncio.to_thread(
            self._membership.reissue, node, now,
            name=request.name, roles=request.roles, tags=request.tags,
        )  # fmt: skip
        await self._circle.tell_certificates([made])
        if node != peer:
            await self._circle.push(made)
        await self._circle.changed()
        return messages.Certified(made.encode())

    async def _depart(self, request: messages.Depart, now: float) -> None:
        made = RevocationList.decode(request.farewell)
        if not made.departure:
            raise MembershipError("a farewell is a node's word about itself")
        if await asyncio.to_thread(self._membership.take_revocations, made, now):
            await self._circle.tell_list(made)
            # Not here: it would close the connection before the answer is out.
            self._circle.change_soon.set()

    async def _push(self, request: messages.Push, now: float) -> None:
        certificate = Certificate.decode(request.certificate)
        if certificate.node_id != self._circle.own:
            raise MembershipError("the certificate is another node's")
        await asyncio.to_thread(self._membership.add_member, certificate, now)
        await self._circle.changed()

    def _sync(self, peer: NodeId, request: messages.Sync, now: float) -> messages.Synced:
        self._lacks(peer, request.have)
        lists: list[bytes] = []
        left = messages.MAX_LISTS_BYTES
        for made in self._membership.revocations.lacking(request.have):
            raw = made.encode()
            left -= len(raw)
            if left < 0:
                break  # what is missing is asked for again, with what came in `have`
            lists.append(raw)
        ring, known = self._membership.key_ring, self._membership.find(peer)
        changes = [key.change for key in ring.keys if key.change] + list(ring.pending)
        certificate = known.certificate.encode() if known else b""
        return messages.Synced(
            lists=tuple(lists),
            changes=tuple(change.encode() for change in changes),
            certificate=b"" if certificate == request.certificate else certificate,
        )

    async def _believe(self, raw: bytes) -> None:
        """Take in a certificate that someone showed, if it is one to believe."""
        with contextlib.suppress(MembershipError):
            certificate = Certificate.decode(raw)
            await asyncio.to_thread(self._membership.add_member, certificate, self._circle.now())

    def _require_command(self, peer: NodeId) -> None:
        member = self._membership.find(peer)
        if member is None or _COMMANDERS.isdisjoint(member.certificate.roles):
            raise MembershipError(
                "this takes the role issuer or admin",
                hint="`agent members` shows who has it.",
            )


async def revoke(circle: Circle, node: NodeId, reason: str) -> None:
    """Revoke a node as an issuer, and tell everyone. Raises CoveyError like `Membership.revoke`."""
    done = await asyncio.to_thread(circle.membership.revoke, node, reason, circle.now())
    await circle.tell_list(done.made)
    await circle.tell_certificates(done.certificates)
    await circle.changed()


async def invite(circle: Circle, request: messages.Invite, own: tuple[str, ...]) -> str:
    """Return a ticket's text, made as an issuer; `own` are addresses to name, else those known.

    Raises CoveyError like `Membership.invite`.
    """
    me = circle.membership.find(circle.own)
    addresses = own or (me.control_addresses if me else ())
    ticket = await asyncio.to_thread(
        circle.membership.invite, circle.now(), addresses=circle.ticket_addresses(addresses),
        ttl_s=request.ttl_s, uses=request.uses, roles=request.roles, tags=request.tags,
    )  # fmt: skip
    return ticket.encode()


def _busy() -> CoveyError:
    return PeerError("this node has been asked too often", hint="Try again in a few seconds.")
