"""Invites: how many newcomers a ticket still lets in, and until when. A core.

The book is a value: `create` and `redeem` return a new one, and whoever calls them writes it down
(`store.py`) before anything that follows from it leaves the machine.

    redeem, in this order        result
    ---------------------        ------
    no such id, or not its key   TicketError "not known" (the same for both)
    its time is over             TicketError "expired … ago"
    redeemed by this node        the invite; no further use is taken (its answer was lost)
    no use left                  TicketError "used up"
    otherwise                    the invite, with one use less
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from agent.errors import TicketError, UsageError
from agent.identity.keys import NodeId
from agent.membership import naming, ticket
from agent.membership.certificate import Roles, Tags
from agent.membership.wire import Key, Time

MAX_USES = 1000
MAX_TTL_S = 365 * 86400
# An invite stays in the book this long after its end, so that who comes late is told the reason.
KEEP_EXPIRED_S = 30 * 86400
# Whose signature is checked when there is no such invite, so that both take the same time: the
# public half of the seed of 32 zeros.
_NOBODY = bytes.fromhex("3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29")

Random = Callable[[int], bytes]


class Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ticket as its issuer remembers it; with this alone nobody can redeem it.

    `id` is 8 bytes, `key` the public half of the ticket's key, `redeemed_by` nodes: Ed25519 keys.
    """

    id: ticket.InviteId
    key: Key
    uses_left: Annotated[int, msgspec.Meta(ge=0, le=MAX_USES)]
    not_after: Time
    roles: Roles
    tags: Tags
    redeemed_by: tuple[Key, ...] = ()


class InviteBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All invites of one issuer, oldest first."""

    invites: tuple[Invite, ...] = ()

    def create(
        self,
        random: Random,
        now: float,
        *,
        ttl_s: float,
        uses: int = 1,
        roles: Iterable[str] = naming.DEFAULT_ROLES,
        tags: Iterable[str] = (),
    ) -> tuple[InviteBook, Invite, bytes]:
        """Return the book with a new invite, the invite, and its secret (16 bytes).

        `random(n)` gives n random bytes. Raises UsageError for an impossible value.
        """
        if not 1 <= uses <= MAX_USES:
            raise UsageError(f"an invite cannot have {uses} uses", hint=f"Give 1 to {MAX_USES}.")
        if not 1 <= ttl_s <= MAX_TTL_S:
            raise UsageError(
                f"an invite cannot last {ttl_s:g} seconds", hint="Give 1 second to 365 days."
            )
        secret = random(ticket.SECRET_BYTES)
        invite = Invite(
            id=random(ticket.INVITE_ID_BYTES),
            key=ticket.invite_key(secret).id.ed25519,
            uses_left=uses,
            not_after=int(now + ttl_s),
            roles=naming.check_roles(roles),
            tags=naming.check_tags(tags),
        )
        if not invite.roles:
            raise UsageError("an invite needs a role", hint=f"Roles: {', '.join(naming.ROLES)}.")
        kept = (old for old in self.invites if now <= old.not_after + KEEP_EXPIRED_S)
        return InviteBook((*kept, invite)), invite, secret

    def redeem(
        self, invite_id: bytes, message: bytes, signature: bytes, node: NodeId, now: float
    ) -> tuple[InviteBook, Invite]:
        """Return the book after `node` redeemed an invite, and that invite.

        `message` is what the ticket's key signed; the caller has seen that it names `node`. Raises
        TicketError: not known, expired, or used up (see the table above).
        """
        found = next((invite for invite in self.invites if invite.id == invite_id), None)
        right = NodeId(found.key if found else _NOBODY).verify(signature, message)
        if found is None or not right:
            raise TicketError(
                "this ticket is not known to its issuer",
                hint="Ask for a new one (`agent invite`).",
            )
        if now > found.not_after:
            raise ticket.expired(now - found.not_after)
        if node.ed25519 in found.redeemed_by:
            return self, found
        if found.uses_left == 0:
            raise TicketError("this ticket is used up", hint="Ask for a new one (`agent invite`).")
        redeemed = msgspec.structs.replace(
            found,
            uses_left=found.uses_left - 1,
            redeemed_by=(*found.redeemed_by, node.ed25519),
        )
        others = tuple(redeemed if invite is found else invite for invite in self.invites)
        return InviteBook(others), redeemed
