"""What a node knows of its mesh and whom it believes, kept on the disk. A shell around the cores.

The half of `Membership` that takes in what others signed; `issuing.py` has the half that signs.
Every change is on the disk before the call returns, and a call that raises has changed nothing.
Methods that change something block for a few fsyncs; several threads may call them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from agent import endpoint
from agent.errors import MembershipError, StateError
from agent.identity.keys import NodeId, NodeKey
from agent.membership import issuer
from agent.membership import ticket as tickets
from agent.membership.certificate import Certificate
from agent.membership.directory import Directory, Mesh
from agent.membership.join import Member
from agent.membership.keyring import KeyChange, KeyRing, OfferedKey
from agent.membership.networkkeys import NetworkKeys
from agent.membership.revocation import RevocationList, Revocations
from agent.membership.roll import Roll, State

_log = logging.getLogger(__name__)


class Standing:
    """This node's keys, its mesh, the members it knows, who is out, and the network keys.

    Only certificates that verified are among the members; they may have expired or been revoked
    since, so ask `is_member` or `live_members`, and not the list.
    """

    def __init__(self, state: Directory, mesh: Mesh) -> None:
        certificate = state.read_certificate()
        if certificate is None:
            raise StateError(
                f"{state.path / 'certificate'} is missing",
                hint="Restore it from a backup, or join again with a new ticket.",
            )
        ring = state.read_network_keys(mesh.root)
        if ring is None:
            raise StateError(
                f"{state.path / 'networkkeys.json'} is missing",
                hint="Restore it from a backup, or join again with a new ticket.",
            )
        self.mesh = mesh
        self.key: NodeKey = state.node_key()
        self._state = state
        # Held while a change is decided and written; reading replaces nothing, so needs no lock.
        self._changing = threading.Lock()
        self._certificate = certificate
        members = state.read_members()
        own = members.get(self.key.id) or Member(certificate)
        members[self.key.id] = replace(own, certificate=certificate)
        self._roll = Roll(mesh.root, members, state.read_revocations(mesh.root))
        self._ring = ring
        self._revision = 0
        if certificate.node_id != self.key.id or certificate.mesh_id != mesh.id:
            raise StateError(
                f"{state.path / 'certificate'} does not belong to this node's key and mesh",
                hint="Restore node.key, mesh.json and certificate from the same backup.",
            )

    # ------------------------------------------------------------- this node

    @property
    def certificate(self) -> Certificate:
        """This node's certificate; it may have expired."""
        return self._certificate

    @property
    def ipv6(self) -> IPv6Address:
        """This node's canonical overlay address."""
        return self._certificate.ipv6

    @property
    def ipv4(self) -> IPv4Address:
        """This node's overlay address in the mesh's IPv4 network."""
        return self._certificate.ipv4(self.mesh.ipv4_network)

    @property
    def revision(self) -> int:
        """Grows with each change of certificates, revocations or network keys that came in.

        Not with where members were last seen, and not as time passes: see `next_step`.
        """
        return self._revision

    def next_step(self, now: float) -> float | None:
        """Return when, after `now`, time alone changes who is a member or the keys; or None."""
        steps = (self._roll.next_step(now), self._ring.next_step(now))
        return min((step for step in steps if step is not None), default=None)

    def certificate_left_s(self, now: float) -> float:
        """Return for how many seconds this node's certificate is still good; negative: expired."""
        return self._certificate.not_after - now

    def grant_left_s(self, now: float) -> float | None:
        """Return for how many seconds this node may still issue; None for one that is no issuer."""
        grant = self._certificate.own_grant
        return None if grant is None else grant.not_after - now

    def collision(self, now: float) -> Member | None:
        """Return a member that keeps the name or IPv4 address that this node has too, or None."""
        others = {m.certificate: m for m in self.live_members(now)}
        found = issuer.collision(self._certificate, others, self.mesh.ipv4_network)
        return None if found is None else others[found]

    # ------------------------------------------------------------ the others

    def members(self) -> tuple[Member, ...]:
        """Return all known members, this node too, and those who were."""
        return tuple(self._roll.members.values())

    def peers(self) -> tuple[Member, ...]:
        """Return all known members but this node."""
        return tuple(m for node, m in self._roll.members.items() if node != self.key.id)

    def live_members(self, now: float) -> tuple[Member, ...]:
        """Return all who are members at `now` (unix seconds), this node too."""
        return self._roll.live(now)

    def issuers(self, now: float) -> tuple[Member, ...]:
        """Return the members that may issue at `now`, this node too."""
        return self._roll.issuers(now)

    def find(self, node: NodeId) -> Member | None:
        """Return a member by its node id, or None."""
        return self._roll.members.get(node)

    def resolve(self, text: str, now: float) -> Member:
        """Return the member that a name, a node id or an end of one means; raises UsageError."""
        return self._roll.resolve(text, now)

    def is_member(self, node: NodeId, now: float) -> bool:
        """Say whether `node` is known, its certificate valid at `now`, and it is not out."""
        return self._roll.is_member(node, now)

    def state(self, node: NodeId, now: float) -> State:
        """Return how a node stands at `now`: member, expired, revoked, left or unknown."""
        return self._roll.state(node, now)

    def verify(self, certificate: bytes, now: float) -> NodeId:
        """Return whose certificate these bytes are; raises MembershipError with what is wrong."""
        decoded = Certificate.decode(certificate)
        self._roll.check(decoded, now)
        return decoded.node_id

    def add_member(
        self,
        certificate: Certificate,
        now: float,
        *,
        wireguard_endpoints: Sequence[str] | None = None,
        control_addresses: Sequence[str] | None = None,
        discovery_endpoints: Sequence[str] | None = None,
    ) -> Member:
        """Remember a member, or what is new about one; the newer certificate is kept.

        Endpoints (HOST:PORT) that are None stay as they were, and the first 8 of a kind are kept.
        Writes only what changed. Raises MembershipError for a certificate that does not verify or
        whose node is out, UsageError for an endpoint that is none, StateError when the disk fails.
        """
        self._roll.check(certificate, now)
        with self._changing:
            known = self.find(certificate.node_id) or Member(certificate)
            newer = certificate.newer_than(known.certificate, now)
            member = replace(
                known,
                certificate=certificate if newer else known.certificate,
                wireguard_endpoints=_endpoints(wireguard_endpoints, known.wireguard_endpoints),
                control_addresses=_endpoints(control_addresses, known.control_addresses),
                discovery_endpoints=_endpoints(discovery_endpoints, known.discovery_endpoints),
            )
            self._write_members([member])
            return member

    def add_certificates(self, certificates: Iterable[Certificate], now: float) -> None:
        """Remember many members at once, with one write; the newer certificate of each is kept.

        Raises MembershipError when none of them verifies, StateError when the disk fails.
        """
        believed: list[Certificate] = []
        fault: MembershipError | None = None
        for certificate in certificates:
            try:
                self._roll.check(certificate, now)
            except MembershipError as error:
                fault = error
            else:
                believed.append(certificate)
        if fault is not None and not believed:
            raise fault
        with self._changing:
            news: dict[NodeId, Member] = {}
            for certificate in believed:
                node = certificate.node_id
                known = news.get(node) or self.find(node) or Member(certificate)
                newer = certificate.newer_than(known.certificate, now)
                news[node] = replace(known, certificate=certificate) if newer else known
            self._write_members(news.values())

    # ---------------------------------------------------------- who is out

    @property
    def revocations(self) -> Revocations:
        """All revocation lists that this node believes."""
        return self._roll.revocations

    def take_revocations(self, made: RevocationList, now: float) -> bool:
        """Believe another's list; return whether it brought anything new.

        Raises MembershipError when it is not to be believed, StateError when the disk fails.
        """
        with self._changing:
            taken = self._roll.revocations.take(made, self.mesh.root, now)
            new = taken is not self._roll.revocations
            if new:
                self._write_revocations(taken)
        if new:
            _log.info("revocations.taken signer=%s number=%d entries=%d",
                      NodeId(made.signer), made.number, len(made.entries))  # fmt: skip
        return new

    # ------------------------------------------------------- network keys

    def network_keys(self, now: float) -> NetworkKeys:
        """Return the network key to send with and those to accept at `now` (unix seconds)."""
        return self._ring.at(now)

    @property
    def key_ring(self) -> KeyRing:
        """The network keys and their changes."""
        return self._ring

    def announce_key(self, change: KeyChange, now: float) -> bool:
        """Note that the network key changes; return whether that is news and the key not here.

        Raises MembershipError when it is not to be believed, StateError when the disk fails.
        """
        with self._changing:
            self._refuse_revoked(change)
            self._write_ring(self._ring.announce(change, self.mesh.root, now))
            return change in self._ring.pending

    def learn_keys(self, offer: Iterable[OfferedKey], now: float) -> bool:
        """Take the network keys that a member gave; return whether one was new.

        Raises MembershipError when one is not to be believed, StateError when the disk fails.
        """
        with self._changing:
            ring = self._ring
            for offered in offer:
                if offered.change:
                    self._refuse_revoked(KeyChange.decode(offered.change))
                ring = ring.learn(offered, self.mesh.root, now)
            return self._write_ring(ring)

    # --------------------------------------------------------------- upkeep

    def prune(self, now: float) -> None:
        """Forget who is gone for good, outdated lists, and keys that ended."""
        with self._changing:
            roll = self._roll.pruned(self.key.id, now)
            if roll.revocations is not self._roll.revocations:
                self._write_revocations(roll.revocations)
            if len(roll.members) != len(self._roll.members):
                gone = len(self._roll.members) - len(roll.members)
                self._state.write_members(roll.members.values())
                self._roll = roll
                self._revision += 1
                _log.info("members.pruned gone=%d left=%d", gone, len(roll.members))
            self._write_ring(self._ring.pruned(now))

    # ------------------------------------------- while `_changing` is held

    def _refuse_revoked(self, change: KeyChange) -> None:
        """Raise MembershipError for a new key change that its signer made after it was put out."""
        out = self._roll.revocations.revoked_signers.get(change.signer)
        if out is not None and change.made_at > out.at:
            raise MembershipError("the key change is of an issuer that was revoked before")

    def _write_members(self, changed: Iterable[Member]) -> None:
        """Store members, those that differ from what is known; this node's certificate as well."""
        members = dict(self._roll.members)
        news = [m for m in changed if members.get(m.node_id) != m]
        if not news:
            return
        before = {node: member.certificate for node, member in members.items()}
        members.update({m.node_id: m for m in news})
        own = members[self.key.id].certificate
        if own != self._certificate:
            # Before the list, which takes this node's certificate from here when it is read.
            self._state.write_certificate(own)
        self._state.write_members(members.values())
        self._roll = replace(self._roll, members=members)
        self._certificate = own
        if any(before.get(m.node_id) != m.certificate for m in news):
            self._revision += 1

    def _write_revocations(self, revocations: Revocations) -> None:
        self._state.write_revocations(revocations)
        self._roll = self._roll.with_revocations(revocations)
        self._revision += 1

    def _write_ring(self, ring: KeyRing) -> bool:
        if ring == self._ring:
            return False
        self._state.write_network_keys(self.mesh.root, ring)
        self._ring = ring
        self._revision += 1
        return True


def _endpoints(new: Sequence[str] | None, old: tuple[str, ...]) -> tuple[str, ...]:
    if new is None:
        return old
    kept = tuple(dict.fromkeys(new))[: tickets.MAX_ADDRESSES]
    for text in kept:
        endpoint.split(text)
    return kept
