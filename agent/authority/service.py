"""The authority: what the daemon starts and the local API asks. A shell; the parts are beside it.

    authority = Authority(membership, control, addresses_of=…, on_change=…)
    authority.begin()                  # before the control plane starts: its protocols and topic
    … authority.run() …                # a task of the daemon's, until it is cancelled
    authority.link_changed(node, up)   # whenever a member's connection comes or goes

`on_change` is awaited whenever `membership.revision` has grown, and when time alone has changed who
is a member or which network keys count; by then everything is stored. Each wish of an operator is
done here if this node may, and else asked of the issuers in turn, which decide whether it may ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from agent.authority import desk, messages
from agent.authority.circle import Circle, Control
from agent.authority.condition import faults
from agent.authority.desk import Desk
from agent.authority.upkeep import Upkeep
from agent.authority.wishes import (
    GrantWish,
    InviteWish,
    LeaveWish,
    MoveRootKeyWish,
    RenameWish,
    RevokeWish,
    RotateWish,
)
from agent.errors import CoveyError, MembershipError, UsageError
from agent.health import HealthItem
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import join, naming, rootkey
from agent.membership.certificate import Certificate
from agent.membership.issuing import Membership
from agent.membership.join import Member
from agent.membership.keyring import KeyChange
from agent.membership.ticket import Ticket

# The service in the DHT under which issuers announce their revocation lists.
SERVICE = "revocations"
# Who leaves tells so many directly, beside the gossip.
_FAREWELLS = 8


class Authority:
    """This node's part in who belongs to the mesh."""

    def __init__(
        self,
        membership: Membership,
        control: Control,
        *,
        addresses_of: Callable[[NodeId], list[str]],
        on_change: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        """`addresses_of` gives where to reach a member's control plane: HOST:PORT, best first."""
        self._membership = membership
        self._control = control
        self._circle = Circle(
            membership, control, addresses_of, on_change, clock, random or SystemRandom()
        )
        self._upkeep = Upkeep(self._circle)
        self._desk = Desk(self._circle, self._upkeep.lacks)

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """Answer join requests and members, and listen to the gossip."""
        self._control.serve(join.PROTOCOL, self._desk.join, strangers=True)
        self._control.serve(messages.PROTOCOL, self._desk.answer)
        self._control.subscribe(messages.TOPIC, self._upkeep.herald.take)

    async def run(self) -> None:
        """Do what time brings, until cancelled."""
        await self._upkeep.run()

    def link_changed(self, node: NodeId, up: bool) -> None:
        """A member's first connection came up, or its last one went."""
        if up:
            self._circle.linked.add(node)
            self._upkeep.linked(node)
        else:
            self._circle.linked.discard(node)

    def announcement(self) -> bytes | None:
        """Return the payload of this node's record of SERVICE; None: it has no list to announce."""
        made = self._membership.revocations.lists.get((self._circle.own.ed25519, False))
        return None if made is None else messages.encode(made.what)

    def heard(self, node: NodeId, payload: bytes) -> None:
        """Look at another node's record of SERVICE, and ask for its list if that is missing here.

        Raises PeerError when the payload makes no sense.
        """
        have = messages.decode_have(payload)
        if have.signer == node.ed25519 and not self._upkeep.herald.knows(have):
            self._upkeep.look_up(node)

    def keys_answer(self) -> bytes:
        """Return the network keys for a member that lacks them: for a server on the overlay alone.

        There WireGuard has proved who asks, and the network key, that it lacks, is not needed.
        """
        offer = self._membership.key_ring.offer(self._circle.now())
        return messages.encode(messages.Keys(offer))

    async def take_keys(self, raw: bytes) -> bool:
        """Take in what another member's `keys_answer` gave; return whether a key was new.

        Raises PeerError or MembershipError for what is not to be believed, StateError.
        """
        offer = messages.decode_answer(raw, messages.Keys).offer
        new = await asyncio.to_thread(self._membership.learn_keys, offer, self._circle.now())
        await self._circle.changed()
        return new

    def health(self, now: float) -> list[HealthItem]:
        """Return what is wrong with this node's membership at `now` (unix seconds)."""
        return faults(self._membership, self._upkeep.trouble, now)

    # -------------------------------------------------- wishes of an operator

    def members(self) -> dict[str, Any]:
        """Describe all who are or were members, by name."""
        now = self._circle.now()
        found = sorted(self._membership.members(), key=lambda member: member.certificate.name)
        return {"members": [self._describe(member, now) for member in found]}

    async def invite(self, wish: InviteWish, own: Sequence[str] = ()) -> Ticket:
        """Return a ticket made here, or by an issuer for an admin.

        `own` are HOST:PORT of this node's control plane; none: those that the others know. Raises
        CoveyError.
        """
        request = messages.Invite(
            wish.ttl_s, wish.uses, naming.check_roles(wish.roles), naming.check_tags(wish.tags)
        )
        if self._membership.can_issue(self._circle.now()):
            return Ticket.parse(await desk.invite(self._circle, request, tuple(own)))
        self._require_admin("make a ticket")
        answer = await self._circle.ask_issuers(request, messages.Invited)
        return Ticket.parse(answer.ticket)

    async def revoke(self, wish: RevokeWish) -> dict[str, Any]:
        """Put a node out of the mesh; raises CoveyError."""
        now = self._circle.now()
        member = self._membership.resolve(wish.node, now)
        if self._membership.can_issue(now):
            await desk.revoke(self._circle, member.node_id, wish.reason)
        else:
            self._require_admin("revoke a node")
            if member.node_id == self._circle.own:
                raise MembershipError(
                    "a node does not revoke itself", hint="`agent leave` takes it out of the mesh."
                )
            request = messages.Revoke(member.node_id.ed25519, wish.reason)
            issuers = {m.node_id for m in self._membership.issuers(now)}
            if issuers == {member.node_id}:
                raise MembershipError(
                    f"{member.certificate.name} is the mesh's only issuer: nobody could let others "
                    "in",
                    hint="Make another one first: `agent grant NODE --role issuer`.",
                )
            await self._circle.ask_issuers(request, messages.Done, without={member.node_id})
        return {"node": str(member.node_id), "name": member.certificate.name}

    async def rename(self, wish: RenameWish) -> dict[str, Any]:
        """Give a node another name; raises CoveyError."""
        naming.check_name(wish.name)
        node = self._resolve(wish.node)
        if node != self._circle.own and not self._membership.can_issue(self._circle.now()):
            self._require_admin("rename another node")
        return await self._reissue(messages.Reissue(node.ed25519, name=wish.name))

    async def grant(self, wish: GrantWish) -> dict[str, Any]:
        """Give a node roles and tags, or only a new certificate; raises CoveyError."""
        node = self._resolve(wish.node)
        request = messages.Reissue(
            node.ed25519,
            roles=None if wish.roles is None else naming.check_roles(wish.roles),
            tags=None if wish.tags is None else naming.check_tags(wish.tags),
        )
        root_key = None
        if wish.root_key:
            path = Path(wish.root_key)
            root_key = await asyncio.to_thread(rootkey.load, path, self._membership.mesh.root)
        elif not self._membership.can_issue(self._circle.now()):
            self._require_admin("change a member's roles or tags")
        return await self._reissue(request, root_key)

    async def rotate(self, wish: RotateWish) -> dict[str, Any]:
        """Change the network key; raises CoveyError."""
        now = self._circle.now()
        if self._membership.can_issue(now):
            change = await asyncio.to_thread(
                self._membership.rotate, now, wish.overlap_s, force=wish.force
            )
            await self._circle.tell_key(change)
            await self._circle.changed()
        else:
            self._require_admin("change the network key")
            request = messages.Rotate(wish.overlap_s, wish.force)
            rotated = await self._circle.ask_issuers(request, messages.Rotated)
            change = KeyChange.decode(rotated.change)
            if await asyncio.to_thread(self._membership.announce_key, change, now):
                self._upkeep.want_keys()
        return {
            "generation": change.generation,
            "active_at": change.active_at,
            "retired_at": change.retired_at,
        }

    async def leave(self, wish: LeaveWish) -> dict[str, Any]:
        """Take this node out of the mesh and tell the others; raises CoveyError.

        `told` is how many said that they know. The caller then withdraws what discovery has, stops
        the agent, and wipes the state directory.
        """
        circle, now = self._circle, self._circle.now()
        others = [m.node_id for m in self._membership.live_members(now) if m.node_id != circle.own]
        issuers = {m.node_id for m in self._membership.issuers(now)}
        made = await asyncio.to_thread(self._membership.depart, now, force=wish.force)
        nearest = sorted(circle.shuffled(others), key=lambda node: node not in issuers)
        farewell = messages.Depart(made.encode())
        results = await asyncio.gather(
            *(circle.ask(node, farewell, messages.Done) for node in nearest[:_FAREWELLS]),
            return_exceptions=True,
        )
        told = sum(isinstance(result, messages.Done) for result in results)
        faults = [r for r in results if not isinstance(r, messages.Done | CoveyError)]
        if faults:
            raise faults[0]
        await circle.tell_list(made)
        own = self._membership.certificate
        return {"mesh": self._membership.mesh.name, "name": own.name, "node": str(circle.own),
                "told": told, "others": len(others)}  # fmt: skip

    async def move_root_key(self, wish: MoveRootKeyWish) -> dict[str, Any]:
        """Move the root key to a file; raises CoveyError."""
        path = Path(wish.path)
        if not path.is_absolute():
            raise UsageError(f"{wish.path} is no absolute path")
        now = self._circle.now()
        made = await asyncio.to_thread(self._membership.move_root_key, path, now)
        if made is not None:
            await self._circle.tell_certificates([made])
        await self._circle.changed()
        return {"moved": str(path), "grant_left_s": self._membership.grant_left_s(now)}

    # ----------------------------------------------------------------- inner

    def _resolve(self, text: str) -> NodeId:
        if not text:
            return self._circle.own
        return self._membership.resolve(text, self._circle.now()).node_id

    def _require_admin(self, what: str) -> None:
        if "admin" not in self._membership.certificate.roles:
            raise MembershipError(
                f"this node may not {what}: it is neither issuer nor admin",
                hint="Run it on one that is; `agent members` shows the roles.",
            )

    async def _reissue(
        self, request: messages.Reissue, root_key: NodeKey | None = None
    ) -> dict[str, Any]:
        """Have a certificate signed: here if the key for it is here, else by another issuer."""
        circle, now = self._circle, self._circle.now()
        node = NodeId(request.node)
        wanted = request.roles if request.roles is not None else self._roles(node)
        here = self._membership.can_issue(now) and (
            self._membership.root_key is not None or not certificates.privileged(wanted)
        )
        if root_key is not None or here:
            made = await asyncio.to_thread(
                self._membership.reissue, node, now, name=request.name, roles=request.roles,
                tags=request.tags, root_key=root_key,
            )  # fmt: skip
            await circle.tell_certificates([made])
            told = await circle.push(made)
        else:
            try:
                answer = await circle.ask_issuers(request, messages.Certified)
            except MembershipError as error:
                if certificates.privileged(wanted):
                    raise certificates.needs_root_key(self._name(node), wanted) from error
                raise
            made = Certificate.decode(answer.certificate)
            await asyncio.to_thread(self._membership.add_member, made, now)
            told = True
        await circle.changed()
        return self._describe(Member(made), now) | {"told": told}

    def _roles(self, node: NodeId) -> tuple[str, ...]:
        member = self._membership.find(node)
        return member.certificate.roles if member else ()

    def _name(self, node: NodeId) -> str:
        member = self._membership.find(node)
        return member.certificate.name if member else node.short

    def _describe(self, member: Member, now: float) -> dict[str, Any]:
        certificate = member.certificate
        out = self._membership.revocations.excluded.get(member.node_id)
        return {
            "name": certificate.name,
            "node": str(member.node_id),
            "self": member.node_id == self._circle.own,
            "roles": list(certificate.roles),
            "tags": list(certificate.tags),
            "ipv6": str(certificate.ipv6),
            "ipv4": str(certificate.ipv4(self._membership.mesh.ipv4_network)),
            "control_addresses": list(member.control_addresses),
            "certificate_left_s": certificate.not_after - now,
            "state": self._membership.state(member.node_id, now),
            "since": out.at if out else None,
            "reason": out.reason if out else "",
        }


__all__ = ["SERVICE", "Authority"]
