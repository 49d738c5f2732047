"""Who is a member at a moment: the known certificates, and who was put out. A core.

    standing of a node, the first that fits     counts as a member
    ---------------------------------------     ------------------
    unknown: no certificate is known            no
    revoked: an issuer or the root says so      no, for good
    left: it said so itself                     no, for good
    expired: its time is over or not yet come   no
    expired: its issuer was revoked, and an     no: it had HOLD_S to get one from another issuer,
      hour has passed                           and one that was not known here had none
    member                                      yes

A value: what changes it returns another one. `standing.py` keeps one and stores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId
from agent.membership import certificate as certificates
from agent.membership import spell
from agent.membership.certificate import Certificate
from agent.membership.join import Member
from agent.membership.revocation import Exclusion, Revocations
from agent.membership.wire import CLOCK_SKEW_S

# How long what a revoked issuer signed still counts where it was known: time to renew elsewhere.
HOLD_S = 3600
# A member that may still come back after a long holiday is shown as expired, then forgotten.
FORGET_EXPIRED_S = 30 * 86400
# Fewer letters of a node id than this are a typing mistake rather than a choice.
MIN_END_CHARACTERS = 4

State = Literal["member", "expired", "revoked", "left", "unknown"]


@dataclass(frozen=True)
class Roll:
    """The members of the mesh of `root` by node id, and the union of the revocation lists."""

    root: NodeId
    members: Mapping[NodeId, Member]
    revocations: Revocations

    @property
    def mesh_id(self) -> bytes:
        """The mesh id, 32 bytes."""
        return addresses.mesh_id(self.root)

    def state(self, node: NodeId, now: float) -> State:
        """Return a node's standing at `now` (unix seconds); see the table above."""
        member = self.members.get(node)
        if member is None:
            return "unknown"
        out = self.revocations.excluded.get(node)
        if out is not None:
            return "left" if out.left else "revoked"
        voided = self._voided(member.certificate)
        held = voided is None or now <= voided.at + HOLD_S
        return "member" if member.certificate.valid_at(now) and held else "expired"

    def is_member(self, node: NodeId, now: float) -> bool:
        """Say whether a node is a member at `now` (unix seconds)."""
        return self.state(node, now) == "member"

    def live(self, now: float) -> tuple[Member, ...]:
        """Return all members at `now`."""
        return tuple(m for node, m in self.members.items() if self.is_member(node, now))

    def issuers(self, now: float) -> tuple[Member, ...]:
        """Return the members that may issue at `now`."""
        found = []
        for member in self.live(now):
            grant = member.certificate.own_grant
            if grant is not None and grant.valid_at(now):
                found.append(member)
        return tuple(found)

    def check(self, certificate: Certificate, now: float) -> None:
        """Return if the certificate makes its node a member at `now`; else raise MembershipError.

        A certificate that is known here was verified when it came in; only time and the revocations
        are then asked anew.
        """
        node = certificate.node_id
        member = self.members.get(node)
        known = member is not None and member.certificate == certificate
        if known:
            certificates.check_time(certificate, now)
        else:
            certificates.verify(certificate, self.root, self.mesh_id, now)
        out = self.revocations.excluded.get(node)
        if out is not None:
            raise excluded(f"{certificate.name} ({node.short})", out, now)
        voided = self._voided(certificate)
        if voided is not None and not (known and now <= voided.at + HOLD_S):
            raise MembershipError(
                f"the certificate of {certificate.name} ({node.short}) was signed by an issuer "
                "that was revoked",
                hint="Join again with a ticket of another issuer.",
            )

    def next_step(self, now: float) -> float | None:
        """Return when, after `now`, a standing changes by time alone; None: never."""
        times = [float(member.certificate.not_after) for member in self.members.values()]
        times += [m.certificate.not_before - CLOCK_SKEW_S for m in self.members.values()]
        times += [out.at + HOLD_S for out in self.revocations.revoked_signers.values()]
        return min((t for t in times if t > now), default=None)

    def with_member(self, member: Member) -> Roll:
        """Return the roll with this member, in the place of what was known of it."""
        return replace(self, members={**self.members, member.node_id: member})

    def with_revocations(self, revocations: Revocations) -> Roll:
        """Return the roll with other revocations."""
        return replace(self, revocations=revocations)

    def pruned(self, own: NodeId, now: float) -> Roll:
        """Return the roll without those that are gone for good; `own` stays in any case."""
        kept = {
            node: member
            for node, member in self.members.items()
            if node == own or now <= member.certificate.not_after + FORGET_EXPIRED_S
        }
        revocations = self.revocations.pruned(now)
        if len(kept) == len(self.members) and revocations is self.revocations:
            return self
        return replace(self, members=kept, revocations=revocations)

    def resolve(self, text: str, now: float) -> Member:
        """Return the member that a person means: by its name, its node id, or an end of that.

        Who is a member now goes before who was one. Raises UsageError for nobody and for several.
        """
        named = [m for m in self.members.values() if m.certificate.name == text]
        found = named or [
            member
            for node, member in self.members.items()
            if len(text) >= MIN_END_CHARACTERS and str(node).endswith(text)
        ]
        found = [m for m in found if self.is_member(m.node_id, now)] or found
        if not found:
            raise UsageError(
                f"no member is called {text[:80]!r}", hint="`agent members` lists them all."
            )
        if len(found) > 1:
            which = ", ".join(f"…{member.node_id.short}" for member in found[:4])
            raise UsageError(
                f"{text[:80]!r} may be any of {len(found)} members ({which})",
                hint="Give more of the node id, from its end.",
            )
        return found[0]

    def _voided(self, certificate: Certificate) -> Exclusion | None:
        """Return when and why the certificate's issuer was revoked, if it was."""
        return self.revocations.revoked_signers.get(certificate.issuer)


def excluded(whose: str, out: Exclusion, now: float) -> MembershipError:
    """Return the error for a node that is out for good."""
    ago = spell.duration(now - out.at)
    if out.left:
        return MembershipError(
            f"{whose} left the mesh {ago} ago",
            hint="`agent leave` there makes it forget its key; then join with a new ticket.",
        )
    reason = f" ({out.reason})" if out.reason else ""
    return MembershipError(
        f"{whose} was revoked {ago} ago{reason}",
        hint="A revoked key stays out; `agent leave` there makes a new one possible.",
    )
