"""How a machine becomes a member: by making a mesh, or by redeeming a ticket at its issuer.

Used by the command line while no daemon runs on the state directory, and by a daemon that is
started to join: then libp2p, which takes two seconds to import, is imported once.
"""

from __future__ import annotations

import asyncio
import os
from ipaddress import IPv4Network
from typing import Any

import msgspec

from agent import endpoint
from agent.config import Config
from agent.control import ControlPlane
from agent.errors import ConfigError, UsageError
from agent.identity.keys import NodeId
from agent.membership import issuer, join, naming
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.store import Membership, StateDir
from agent.membership.ticket import Ticket

JOIN_TIMEOUT_S = 15.0


def create_mesh(settings: Config, name: str, *, now: float) -> dict[str, Any]:
    """Make a mesh with this node as its first member and return its facts. Raises CoveyError."""
    with StateDir(settings.state_dir).lock() as state:
        network = _ipv4_network(settings)
        return facts(state.create_mesh(name, _node_name(settings), now, network=network))


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wish to join: the ticket as text, addresses to ask instead of its own, and a name."""

    ticket: str
    bootstrap: tuple[str, ...] = ()  # HOST or HOST:PORT
    name: str = ""

    def check(self, settings: Config, now: float) -> Ticket:
        """Return the ticket to redeem; raises TicketError or UsageError before anyone is asked."""
        ticket = Ticket.parse(self.ticket)
        ticket.check(now)
        if not self.bootstrap:
            return ticket
        port = settings.network.control_port
        return ticket.at([with_port(address, port) for address in self.bootstrap])


async def join_mesh(
    settings: Config, state: StateDir, enrolment: Enrolment, now: float
) -> Membership:
    """Redeem a ticket and store the membership; `state` is locked.

    Raises TicketError, MembershipError, PeerError or StateError; then nothing was stored but the
    node's key.
    """
    ticket = enrolment.check(settings, now)
    state.refuse_second_mesh(allowed=ticket.mesh_id)
    reply = await _redeem(state, ticket, enrolment.name or _node_name(settings))
    return state.accept(ticket, reply, now)


def join_only(settings: Config, enrolment: Enrolment, now: float) -> dict[str, Any]:
    """Join without starting the agent, and return this node's facts."""
    with StateDir(settings.state_dir).lock() as state:
        return facts(asyncio.run(join_mesh(settings, state, enrolment, now)))


def facts(membership: Membership) -> dict[str, Any]:
    """Return what identifies a member, for people and programs."""
    return {
        "mesh": membership.mesh.name,
        "mesh_id": membership.mesh.id.hex(),
        "name": membership.certificate.name,
        "node": str(membership.key.id),
        "ipv6": str(membership.ipv6),
        "ipv4": str(membership.ipv4),
    }


def with_port(address: str, port: int) -> str:
    """Return HOST:PORT for HOST or HOST:PORT; a bare IPv6 address needs no brackets."""
    if address.count(":") > 1 and not address.startswith("["):
        return endpoint.join(address, port)
    if address.startswith("[") and address.endswith("]"):
        return f"{address}:{port}"
    return address if ":" in address else endpoint.join(address, port)


async def _redeem(state: StateDir, ticket: Ticket, name: str) -> JoinReply:
    control = ControlPlane(state.node_key(), ticket.network_key, listen=())
    await control.start()
    try:
        answer = await control.request(
            NodeId(ticket.issuer), ticket.addresses, join.PROTOCOL,
            JoinRequest.to(ticket, name).encode(), timeout_s=JOIN_TIMEOUT_S,
        )  # fmt: skip
    finally:
        await control.stop()
    return JoinReply.decode(answer)


def _node_name(settings: Config) -> str:
    return settings.node.name or naming.name_from_hostname(os.uname().nodename)


def _ipv4_network(settings: Config) -> IPv4Network:
    try:
        return issuer.check_network(settings.network.ipv4_network)
    except UsageError as error:
        raise ConfigError(f"network.ipv4_network: {error.message}", hint=error.hint) from None
