"""This node as a member, and what it decides as an issuer. A shell around the cores beside it.

    what                  signed by
    ----                  ---------
    ordinary certificate  the root key where it is, else this node's key with its grant
    issuer, admin         the root key alone
    revocation list       this node's key with its grant, else the root key
    key change            like a certificate
    farewell              this node's key

What is decided is on the disk before a call returns; to tell the others is the part of
`agent.authority`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import MembershipError
from agent.identity.keys import NodeId, NodeKey
from agent.membership import keyring, revocation, spell
from agent.membership.certificate import Certificate
from agent.membership.certifying import Certifying
from agent.membership.grant import Signer
from agent.membership.invites import Random
from agent.membership.keyring import KeyChange
from agent.membership.revocation import Revocation, RevocationList

_log = logging.getLogger(__name__)

_NETWORK_KEY_BYTES = 32
# When the root key goes into its safe, what it signed here is made to last from that day.
_FRESH_S = 86400


@dataclass(frozen=True)
class Revoked:
    """What follows from a revocation: the list to tell (None: it was out already).

    `certificates` are new ones for those whose certificates the revoked issuer had signed.
    """

    made: RevocationList | None
    certificates: tuple[Certificate, ...] = ()


class Membership(Certifying):
    """This node as a member: its keys, its mesh, the members it knows, and what an issuer does.

    Made by StateDir.
    """

    # ----------------------------------------------------------- who is out

    def revoke(
        self, node: NodeId, reason: str, now: float, *, root_key: NodeKey | None = None
    ) -> Revoked:
        """Put a node out of the mesh for good, and return what to tell the others.

        Whose certificates a revoked issuer had signed get new ones at once. Raises MembershipError
        for this node itself, for the last issuer, and where nobody may sign; UsageError for the
        reason; StateError.
        """
        if node == self.key.id:
            raise MembershipError(
                "a node does not revoke itself", hint="`agent leave` takes it out of the mesh."
            )
        entry = Revocation(node.ed25519, int(now), revocation.clean_reason(reason))
        with self._changing:
            issuers = {m.node_id for m in self.issuers(now)}
            if issuers == {node} and (root_key or self.root_key) is None:
                raise MembershipError(
                    f"…{node.short} is the mesh's only issuer: nobody could let others in",
                    hint="Make another one first: `agent grant NODE --role issuer`.",
                )
            if node.ed25519 in self.revocations.revoked_signers:
                return Revoked(None)
            certificates = tuple(
                self._made(member.certificate, now, root_key=root_key)
                for member in self.live_members(now)
                if member.certificate.issuer == node.ed25519 and member.node_id != node
            )
            revocations, made = self.revocations.with_entries(
                self._list_signer(now, root_key), [entry, *self._said_by(node)], now
            )
            self._write_revocations(revocations)
            self._write_certificates(certificates)
        _log.info("member.revoked node=%s reissued=%d", node, len(certificates))
        return Revoked(made, certificates)

    def adopt(self, now: float) -> RevocationList | None:
        """Take over what issuers that sign no more had revoked; return the list to tell, if any.

        Without that a newcomer would not learn of it. Raises StateError.
        """
        if not self._grants(now):
            return None
        own = self.key.id.ed25519
        issuers = (member.certificate.node for member in self.issuers(now))
        orphaned = self.revocations.orphaned(own, issuers, now)
        return self._grow((entry for entry in orphaned if entry.node != own), now)

    def reconcile(self, made: RevocationList, now: float) -> RevocationList | None:
        """Take back in what this node itself once signed, and has no more since its state is older.

        Returns the list that holds both, to tell; None when nothing is new. Raises MembershipError
        for a list that is not this node's.
        """
        own = self.key.id.ed25519
        if made.signer != own or made.departure:
            raise MembershipError("the revocation list is not this node's")
        revocation.verify(made, self.mesh.root)
        known = self.revocations.lists.get((own, False))
        if known == made or not self._grants(now):
            return None
        return self._grow(made.entries, now, above=made.number)

    def depart(self, now: float, *, force: bool = False) -> RevocationList:
        """Leave the mesh: return the farewell to tell the others. This node is no member after it.

        Raises MembershipError, unless forced, as `check_departure` does.
        """
        if not force:
            self.check_departure(now)
        made = revocation.farewell(self.key, self._certificate, now)
        self.take_revocations(made, now)
        return made

    def check_departure(self, now: float) -> None:
        """Raise MembershipError when something would be lost for all if this node left."""
        others = [m for m in self.issuers(now) if m.node_id != self.key.id]
        alone = {m.node_id for m in self.live_members(now)} <= {self.key.id}
        if self.root_key is not None:
            raise MembershipError(
                "the mesh's root key lies here and would be lost",
                hint="Move it first (`agent mesh root-key move FILE`), or give --force.",
            )
        if self._certificate.own_grant and not others and not alone:
            raise MembershipError(
                "this node is the mesh's only issuer: nobody could let others in",
                hint="Make another one first (`agent grant NODE --role issuer`), or give --force.",
            )

    # -------------------------------------------------------- network key

    def rotate(
        self,
        now: float,
        overlap_s: float,
        *,
        force: bool = False,
        random: Random = secrets.token_bytes,
    ) -> KeyChange:
        """Begin to change the network key, and return the change to tell the others.

        `force` allows an overlap so short that members may be cut off. Raises UsageError for an
        impossible overlap, MembershipError where nobody may sign or a change is under way.
        """
        shortest_s = keyring.SHORTEST_S if force else keyring.MIN_OVERLAP_S
        with self._changing:
            ring, change = self._ring.rotate(
                self._signer(now, "the key change"),
                random(_NETWORK_KEY_BYTES),
                now,
                overlap_s,
                shortest_s=shortest_s,
            )
            self._write_ring(ring)
        _log.info("network_key.rotated generation=%d overlap=%s", change.generation,
                  spell.duration(overlap_s))  # fmt: skip
        return change

    # ----------------------------------------------------------- root key

    def move_root_key(self, to: Path, now: float) -> Certificate | None:
        """Move the root key into the new file `to`; return this node's new certificate, if any.

        This node's grant is made to last from today first. Raises MembershipError when the root key
        is not here or nobody could let others in without it, StateError; then it is still here.
        """
        if self.root_key is None:
            raise MembershipError("the mesh's root key is not on this node")
        made = None
        with self._changing:
            if not self.issuers(now):
                raise MembershipError(
                    "without the root key nobody could let others in",
                    hint="Make an issuer first: `agent grant NODE --role issuer`.",
                )
            if now - self._certificate.not_before > _FRESH_S:
                made = self._issue(self._certificate, now)
            self._state.move_root_key(self.root_key, to)
            self.root_key = None
        return made

    # ---------------------------------------------------------------- inner

    def _list_signer(self, now: float, root_key: NodeKey | None = None) -> Signer:
        """Return who signs a revocation list here: the node, so that its numbers are its own."""
        if self._grants(now):
            return Signer(self.key, self.mesh.root, self._certificate.own_grant)
        return self._signer(now, "the revocation list", root_key=root_key)

    def _said_by(self, node: NodeId) -> list[Revocation]:
        """What an issuer had revoked, but not this node: its list counts for newcomers no more."""
        made = self.revocations.lists.get((node.ed25519, False))
        own = self.key.id.ed25519
        return [entry for entry in (made.entries if made else ()) if entry.node != own]

    def _grow(
        self, entries: Iterable[Revocation], now: float, *, above: int = 0
    ) -> RevocationList | None:
        """Write this node's list with these entries too; None if nothing is new."""
        with self._changing:
            revocations, made = self.revocations.with_entries(
                self._list_signer(now), entries, now, above=above
            )
            if made is not None:
                self._write_revocations(revocations)
        return made
