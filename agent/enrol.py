"""How a machine becomes a member: by making a mesh, or by redeeming a ticket at any member.

Used by the command line while no daemon runs on the state directory, and by a daemon that is
started to join: then libp2p, which takes two seconds to import, is imported once. A ticket's
addresses are asked, and whichever members of its mesh the LAN has; the first answer counts.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Coroutine
from ipaddress import IPv4Network
from typing import Any

import msgspec

from agent import endpoint
from agent.config import Config
from agent.control import ControlPlane
from agent.control.troubles import BROKE
from agent.errors import ConfigError, EnvironmentFault, PeerError, UsageError
from agent.lan import newcomer
from agent.membership import issuer, join, naming
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.networkkeys import NetworkKeys
from agent.membership.store import Membership, StateDir
from agent.membership.ticket import Ticket

_log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 15.0
# For one whose connection broke under the request.
_TRIES, _TRY_AGAIN_S = 3, 0.5
# The LAN is asked if the ticket's addresses have not answered by then: most joins end before.
_LAN_AFTER_S = 0.5
# Beside addresses that may just be wrong: a LAN's members answer within a second.
_LAN_S = 5.0


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
        return ticket.at([endpoint.with_port(address, port) for address in self.bootstrap])


async def join_mesh(
    settings: Config, state: StateDir, enrolment: Enrolment, now: float
) -> Membership:
    """Redeem a ticket and store the membership; `state` is locked.

    Raises TicketError, MembershipError, PeerError or StateError; then nothing was stored but the
    node's key.
    """
    ticket = enrolment.check(settings, now)
    state.refuse_second_mesh(allowed=ticket.mesh_id)
    reply = await _redeem(settings, state, ticket, enrolment.name or _node_name(settings))
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


async def _redeem(settings: Config, state: StateDir, ticket: Ticket, name: str) -> JoinReply:
    """Return the answer of the first member that gives one; a refusal is an answer, too."""
    key = state.node_key()
    request = JoinRequest.to(ticket, name, key).encode()
    control = ControlPlane(key, NetworkKeys.single(ticket.network_key), listen=())
    await control.start()
    try:
        ways = [_ask_addresses(control, ticket, request)]
        if settings.network.mdns:
            ways.append(_ask_lan(control, ticket, request, settings.network.interface))
        _log.info("join.asking addresses=%s", ticket.addresses)
        answer = await first(ways)
        _log.info("join.answered bytes=%d", len(answer))
    finally:
        await control.stop()
    return JoinReply.decode(answer)


async def _ask_addresses(control: ControlPlane, ticket: Ticket, request: bytes) -> bytes:
    if not ticket.addresses:
        raise PeerError(
            "the ticket names no address, and no member was found on this LAN",
            hint="Give one with `--bootstrap HOST`, or join on a member's LAN.",
        )
    for tries_left in reversed(range(_TRIES)):
        try:
            return await control.request(
                None, ticket.addresses, join.PROTOCOL, request, timeout_s=JOIN_TIMEOUT_S
            )
        except PeerError as error:
            # Whoever asks again with the same ticket and key gets the same answer, and no second
            # use of the ticket is counted.
            if not tries_left or not error.message.startswith(BROKE):
                raise
            _log.info("join.again %s", error.message)
            await asyncio.sleep(_TRY_AGAIN_S)
    raise AssertionError("the last try returns or raises")


async def _ask_lan(control: ControlPlane, ticket: Ticket, request: bytes, own: str) -> bytes:
    """Ask each member that is found on the LAN, as it is found; not on the interface `own`."""
    fault = PeerError("no member was found on this LAN")
    if ticket.addresses:
        await asyncio.sleep(_LAN_AFTER_S)
    peers = newcomer.find(
        ticket.mesh_id, ticket.network_key,
        timeout_s=_LAN_S if ticket.addresses else JOIN_TIMEOUT_S, excluded_interfaces=(own,),
    )  # fmt: skip
    try:
        async for peer in peers:
            addresses = [endpoint.join(host, peer.control_port) for host in peer.addresses]
            try:
                return await control.request(
                    peer.node, addresses, join.PROTOCOL, request, timeout_s=JOIN_TIMEOUT_S
                )
            except PeerError as error:
                fault = error
    except EnvironmentFault as error:
        fault = PeerError(error.message, hint=error.hint)
    finally:
        if isinstance(peers, AsyncGenerator):
            await peers.aclose()  # closes its sockets now, not when it is collected
    raise fault


async def first(ways: list[Coroutine[Any, Any, bytes]]) -> bytes:
    """Return what the first way to succeed returns, and end the others.

    A PeerError ends its way alone; when all have, the first way's is raised. Any other error is an
    answer, and raised at once.
    """
    tasks = [asyncio.ensure_future(way) for way in ways]
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not isinstance(task.exception(), PeerError):
                    return task.result()
        return tasks[0].result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _node_name(settings: Config) -> str:
    return settings.node.name or naming.name_from_hostname(os.uname().nodename)


def _ipv4_network(settings: Config) -> IPv4Network:
    try:
        return issuer.check_network(settings.network.ipv4_network)
    except UsageError as error:
        raise ConfigError(f"network.ipv4_network: {error.message}", hint=error.hint) from None
