"""Tickets and certificates: what an issuer decides about newcomers and members. A shell.

Half of what `issuing.py` makes whole: see there. Nothing here tells anyone.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace

from agent.errors import MembershipError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import issuer, join, naming, roll
from agent.membership import ticket as tickets
from agent.membership.certificate import Certificate
from agent.membership.directory import Directory, Mesh
from agent.membership.grant import Signer
from agent.membership.invites import InviteBook, Random
from agent.membership.join import JoinReply, JoinRequest, Member
from agent.membership.standing import Standing
from agent.membership.ticket import Ticket

_log = logging.getLogger(__name__)


class Certifying(Standing):
    """A Standing that invites, admits, renews and reissues."""

    def __init__(self, state: Directory, mesh: Mesh) -> None:
        super().__init__(state, mesh)
        self.root_key: NodeKey | None = state.read_root_key(mesh.root)
        self._book = state.read_invites()

    def can_issue(self, now: float) -> bool:
        """Say whether this node may let others in at `now` (unix seconds)."""
        return self.root_key is not None or self._grants(now)

    # ------------------------------------------------------------- joining

    def invites(self) -> InviteBook:
        """Return the invite book; empty on a node that does not issue."""
        return self._book

    def invite(
        self,
        now: float,
        *,
        addresses: Sequence[str],
        ttl_s: float,
        uses: int = 1,
        roles: Iterable[str] = naming.DEFAULT_ROLES,
        tags: Iterable[str] = (),
        random: Random = secrets.token_bytes,
    ) -> Ticket:
        """Return a new ticket, once its invite is stored.

        `addresses` are HOST:PORT of control planes of any members. Raises MembershipError when this
        node may not issue that, UsageError for a value that cannot be, StateError.
        """
        roles = naming.check_roles(roles)
        self._signer(now, "whoever joins", roles)
        with self._changing:
            book, invite, secret = self._book.create(
                random, now, ttl_s=ttl_s, uses=uses, roles=roles, tags=tags
            )
            blank = Ticket(
                version=tickets.VERSION,
                mesh_id=self.mesh.id,
                mesh_name=self.mesh.name,
                network_key=self._ring.at(now).sending,
                issuer=self.key.id.ed25519,
                invite_id=invite.id,
                secret=secret,
                addresses=(),
                not_after=invite.not_after,
            )
            made = blank.at(addresses)
            self._write_book(book)
        _log.info("invite.created id=%s uses=%d ttl_s=%g", invite.id.hex(), uses, ttl_s)
        return made

    def admit(self, request: JoinRequest, now: float, lifetime_s: float | None = None) -> JoinReply:
        """Decide a join request, store what follows, and return the signed reply to send.

        The book is stored before the member. A crash between the two leaves a use taken by a node
        that has no certificate yet: it asks again, takes no further use, and gets it. The other
        order could let one node more in than the invite allows.
        Raises TicketError, MembershipError or UsageError (nothing changed), or StateError (the
        newcomer may ask again).
        """
        node = request.node_id
        join.check_request(request, self.mesh.id)
        if request.issuer != self.key.id.ed25519:
            raise MembershipError(f"the ticket is of another issuer, {request.issuer_id.short}")
        if node == self.key.id:
            raise MembershipError("this node issued the ticket, it need not join")
        with self._changing:
            self._refuse_excluded("this node", node, now)
            roles = next((i.roles for i in self._book.invites if i.id == request.invite_id), ())
            book, certificate = join.answer(
                request,
                self._book,
                self._signer(now, request.name, roles),
                self._counted(node, now),
                self.mesh.ipv4_network,
                now,
                lifetime_s,
            )
            self._write_book(book)
            self._write_certificates([certificate])
        _log.info("join.admitted node=%s name=%s", node, certificate.name)
        return JoinReply(
            certificate=certificate.encode(),
            root=self.mesh.root.ed25519,
            ipv4_network=str(self.mesh.ipv4_network),
            keys=self._ring.offer(now),
            revocations=tuple(made.encode() for made in self.revocations.lists.values()),
            members=tuple(m.info() for m in self.live_members(now) if m.node_id != node),
        ).signed(self.key)

    # --------------------------------------------------------- certificates

    def renew(self, node: NodeId, now: float) -> Certificate:
        """Return the certificate that a member shall have now; a new one if it is time for that.

        It is time after two thirds of its life, when its issuer was revoked, and when a member with
        a lower key has its name or address. Raises MembershipError when `node` is no member, or
        when only the root key could renew it; StateError.
        """
        with self._changing:
            member = self.find(node)
            if member is None or not self.is_member(node, now):
                raise MembershipError(
                    f"…{node.short} is no member, so its certificate is not renewed",
                    hint="Join again with a new ticket.",
                )
            known = member.certificate
            if not self._wants_renewal(known, now):
                return known
            return self._issue(known, now)

    def extend(self, now: float) -> Certificate | None:
        """Renew this node's own certificate and grant with the root key, if that is here, when due.

        Returns the new certificate, or None. Raises StateError.
        """
        if self.root_key is None:
            return None
        with self._changing:
            if not self._wants_renewal(self._certificate, now):
                return None
            return self._issue(self._certificate, now)

    def reissue(
        self,
        node: NodeId,
        now: float,
        *,
        name: str | None = None,
        roles: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
        root_key: NodeKey | None = None,
    ) -> Certificate:
        """Return a new certificate for a known node, with what is given changed.

        `root_key` is used where the root key must sign and is not kept here. Raises UsageError for
        what cannot be, as a name that another has; MembershipError for a node that is out, or when
        this takes another key than is here; StateError.
        """
        with self._changing:
            member = self.find(node)
            if member is None:
                raise UsageError(f"no certificate of …{node.short} is known here")
            known = member.certificate
            self._refuse_excluded(known.name, node, now)
            wanted = known.roles if roles is None else naming.check_roles(roles)
            if not wanted:
                raise UsageError("a member needs a role", hint=f"{', '.join(naming.ROLES)}.")
            if "issuer" in known.roles and "issuer" not in wanted:
                raise MembershipError(
                    f"{known.name} is an issuer, and a grant cannot be taken back",
                    hint="Revoke it, or let it leave; then it joins anew as something else.",
                )
            if name is not None:
                others = (m.certificate for m in self.live_members(now) if m.node_id != node)
                if any(other.name == name for other in others):
                    raise UsageError(f"another member is called {name}", hint="Choose another.")
            return self._issue(
                known,
                now,
                name=name,
                roles=wanted,
                tags=None if tags is None else naming.check_tags(tags),
                root_key=root_key,
            )

    # ---------------------------------------------------------------- inner

    def _grants(self, now: float) -> bool:
        """Whether this node's own grant is good now."""
        grant = self._certificate.own_grant
        return grant is not None and grant.valid_at(now) and self.is_member(self.key.id, now)

    def _signer(
        self,
        now: float,
        name: str,
        roles: Iterable[str] = (),
        root_key: NodeKey | None = None,
    ) -> Signer:
        """Return who signs a certificate with these roles here; raises MembershipError."""
        root_key = root_key or self.root_key
        if root_key is not None:
            return Signer.of_root(root_key)
        if self._grants(now):
            if certificates.privileged(roles):
                raise certificates.needs_root_key(name, roles)
            return Signer(self.key, self.mesh.root, self._certificate.own_grant)
        raise MembershipError(
            "this node cannot let others in: it is no issuer",
            hint="Use an issuer, as the node where `agent mesh create` was run.",
        )

    def _wants_renewal(self, known: Certificate, now: float) -> bool:
        others = (member.certificate for member in self.live_members(now))
        return (
            now >= known.renewal_due
            or known.issuer in self.revocations.revoked_signers
            or issuer.collision(known, others, self.mesh.ipv4_network) is not None
        )

    def _counted(self, node: NodeId, now: float) -> list[Certificate]:
        """The certificates whose names and addresses are taken, and the node's own."""
        known = self.find(node)
        found = [m.certificate for m in self.live_members(now) if m.node_id != node]
        return found if known is None else [*found, known.certificate]

    def _made(
        self,
        known: Certificate,
        now: float,
        *,
        name: str | None = None,
        roles: tuple[str, ...] | None = None,
        tags: tuple[str, ...] | None = None,
        root_key: NodeKey | None = None,
    ) -> Certificate:
        """Return a new certificate in the place of a known one; nothing is stored yet."""
        roles = known.roles if roles is None else roles
        return issuer.issue(
            self._signer(now, name or known.name, roles, root_key),
            self._counted(known.node_id, now),
            known.node_id,
            name or known.name,
            roles,
            known.tags if tags is None else tags,
            self.mesh.ipv4_network,
            now,
        )

    def _issue(
        self,
        known: Certificate,
        now: float,
        *,
        name: str | None = None,
        roles: tuple[str, ...] | None = None,
        tags: tuple[str, ...] | None = None,
        root_key: NodeKey | None = None,
    ) -> Certificate:
        made = self._made(known, now, name=name, roles=roles, tags=tags, root_key=root_key)
        self._write_certificates([made])
        _log.info("certificate.issued node=%s name=%s", made.node_id, made.name)
        return made

    def _refuse_excluded(self, whose: str, node: NodeId, now: float) -> None:
        out = self.revocations.excluded.get(node)
        if out is not None:
            raise roll.excluded(whose, out, now)

    def _write_certificates(self, made: Iterable[Certificate]) -> None:
        members = []
        for certificate in made:
            known = self.find(certificate.node_id) or Member(certificate)
            members.append(replace(known, certificate=certificate))
        self._write_members(members)

    def _write_book(self, book: InviteBook) -> None:
        if book != self._book:
            self._state.write_invites(book)
            self._book = book
