"""How a node's membership begins: a mesh made, a join's reply, or what was stored. A shell.

    with StateDir(path).lock() as state:
        membership = state.membership()          # None: in no mesh yet
        membership = state.create_mesh(…)        # or
        membership = state.accept(ticket, reply, now)

Every change is on the disk before the call returns, and a call that raises has changed nothing
that was promised to anyone. Not for configuration or models. Used by the daemon, and by the command
line while no daemon runs. What a membership then does is in `standing.py` and `issuing.py`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from ipaddress import IPv4Network

from agent.errors import StateError
from agent.identity.addresses import DEFAULT_IPV4_NETWORK
from agent.identity.keys import NodeId
from agent.membership import issuer, join, naming
from agent.membership.certificate import Certificate
from agent.membership.directory import Directory, Mesh
from agent.membership.grant import Signer
from agent.membership.invites import Random
from agent.membership.issuing import Membership
from agent.membership.join import JoinReply, Member
from agent.membership.keyring import KeyRing
from agent.membership.revocation import Revocations
from agent.membership.ticket import Ticket

__all__ = ["FOUNDER_ROLES", "Member", "Membership", "Mesh", "StateDir"]

_log = logging.getLogger(__name__)

FOUNDER_ROLES = ("worker", "gateway", "issuer", "admin")
_NETWORK_KEY_BYTES = 32


class StateDir(Directory):
    """The state directory at `path`: `lock()` it, then ask for the node's membership."""

    def membership(self) -> Membership | None:
        """Return this node's membership, or None when it is in no mesh.

        Raises StateError when a file is damaged, open to others, or from a newer version.
        """
        mesh = self.read_mesh()
        return None if mesh is None else Membership(self, mesh)

    def create_mesh(
        self,
        name: str,
        node_name: str,
        now: float,
        *,
        network: IPv4Network = DEFAULT_IPV4_NETWORK,
        roles: Iterable[str] = FOUNDER_ROLES,
        tags: Iterable[str] = (),
        lifetime_s: float | None = None,
        random: Random = secrets.token_bytes,
    ) -> Membership:
        """Make a mesh with this node as its first member and issuer, and keep its root key here.

        Raises UsageError for a name, network, role or tag that cannot be, StateError when this node
        already is in a mesh, or a file is damaged or cannot be written.
        """
        self.require_lock()
        naming.check_name(name)
        naming.check_name(node_name)
        roles, tags = naming.check_roles(roles), naming.check_tags(tags)
        issuer.check_network(str(network))
        self.refuse_second_mesh()
        key = self.node_key()
        root_key = self.create_root_key()
        # Only where mesh.json was lost but the root key was not are there any to keep.
        known = self._members_under(root_key.id)
        certificate = issuer.issue(
            Signer.of_root(root_key),
            [member.certificate for member in known.values()],
            key.id,
            node_name,
            roles,
            tags,
            network,
            now,
            lifetime_s,
        )
        mesh = Mesh(name, root_key.id, network)
        ring = self.read_network_keys(root_key.id)
        if ring is None:
            ring = KeyRing.founding(random(_NETWORK_KEY_BYTES))
        known[key.id] = Member(certificate)
        revocations = self.read_revocations(root_key.id)
        membership = self._become(mesh, certificate, known, ring, revocations)
        _log.info("mesh.created name=%s root=%s node=%s", name, root_key.id, key.id)
        return membership

    def accept(self, ticket: Ticket, reply: JoinReply, now: float) -> Membership:
        """Check a join's reply and become the member that it makes this node.

        Joining its own mesh again replaces a node's certificate. Raises MembershipError when the
        reply does not fit the ticket and this node, StateError when it is in another mesh.
        """
        self.require_lock()
        key = self.node_key()
        certificate = join.check_reply(ticket, reply, key.id, now)
        self.refuse_second_mesh(allowed=ticket.mesh_id)
        mesh = Mesh(
            ticket.mesh_name,
            NodeId(reply.root),
            issuer.check_network(reply.ipv4_network),
        )
        known = self._members_under(mesh.root)
        known.update({member.node_id: member for member in join.known_members(reply, now)})
        known[key.id] = Member(certificate)
        ring = join.known_keys(reply, now)
        revocations = join.known_revocations(reply, now)
        membership = self._become(mesh, certificate, known, ring, revocations)
        _log.info("mesh.joined name=%s node=%s members=%d", mesh.name, key.id, len(known))
        return membership

    def refuse_second_mesh(self, allowed: bytes | None = None) -> None:
        """Raise StateError when this node is in a mesh whose id is not `allowed`."""
        mesh = self.read_mesh()
        if mesh is not None and mesh.id != allowed:
            raise StateError(
                f"this node is already in the mesh {mesh.name}",
                hint="A node is in one mesh: use another state directory for another mesh.",
            )

    def _members_under(self, root: NodeId) -> dict[NodeId, Member]:
        """Return the stored members of this root's mesh, for one that is joined anew."""
        stored = self.read_members()
        return {node: m for node, m in stored.items() if m.certificate.chains_to(root)}

    def _become(
        self,
        mesh: Mesh,
        certificate: Certificate,
        members: dict[NodeId, Member],
        ring: KeyRing,
        revocations: Revocations,
    ) -> Membership:
        """Store a membership; mesh.json last, so that a crash before it leaves no half member."""
        self.read_certificate()  # a damaged one is for a person to settle
        self.write_members(members.values())
        self.write_revocations(revocations)
        self.write_network_keys(mesh.root, ring)
        self.write_certificate(certificate)
        self.write_mesh(mesh)
        return Membership(self, mesh)
