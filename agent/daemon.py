"""The agent: the one place that knows all its parts, starts them in order, and lets them meet.

    state lock → overlay → control plane → discovery → stage files → local API → deployments

A part that a node can do without (the control plane, when libp2p cannot start) becomes a health
item; everything else that fails at start ends the agent with one line. What it learns of others
comes from discovery; WireGuard and the members' certificates say whom to believe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agent import endpoint, enrol
from agent.api import DeployRequest, InviteRequest, LocalApi
from agent.config import Config
from agent.control import ControlPlane
from agent.deploy import heads, messages
from agent.deploy.blobs import BlobServer
from agent.deploy.engines import Engines
from agent.deploy.heads import Head
from agent.deploy.rings import Rings
from agent.deploy.stages import StageHost
from agent.discovery.node import Discovery
from agent.errors import (
    CoveyError,
    EnvironmentFault,
    MembershipError,
    PeerError,
    to_wire,
)
from agent.health import Health, HealthItem
from agent.identity.keys import NodeId
from agent.membership import join
from agent.membership.join import JoinRequest
from agent.membership.store import Member, Membership, StateDir
from agent.neighbours import Neighbours
from agent.overlay.shell import Overlay

_log = logging.getLogger(__name__)

# How often discovery is asked for heads: the gateway knows a new one within about two seconds.
HEADS_INTERVAL_S = 1.0
# A head that died without a word is believed for so long at most.
HEAD_TTL_S = 30.0


class Starter:
    """Whoever started the daemon and waits: a pipe that takes one JSON line for each step.

    {"joined": facts}, then {"up": facts} or {"error": …}. Without a pipe there is no one to tell.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._pipe = None if descriptor is None else os.fdopen(descriptor, "w")

    @property
    def waits(self) -> bool:
        """Whether someone is there to tell."""
        return self._pipe is not None

    def tell(self, step: str, what: dict[str, Any]) -> None:
        """Write one line; a starter that has gone is no fault."""
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({step: what}), file=self._pipe, flush=True)

    def close(self) -> None:
        """Let it go: nothing more is told."""
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                self._pipe.close()
            self._pipe = None


def serve(settings: Config, starter: Starter, enrolment: enrol.Enrolment | None = None) -> None:
    """Run the agent until SIGTERM, SIGINT or `agent down`; with an enrolment, join first.

    A fault at start is told to the starter, or raised where there is none.
    """
    logging.basicConfig(
        level=settings.node.log_level.upper(), stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )  # fmt: skip
    try:
        asyncio.run(_serve(settings, starter, enrolment))
    except CoveyError as error:
        if not starter.waits:
            raise
        _log.error("%s", error.line())
        starter.tell("error", to_wire(error))
        sys.exit(error.exit_code)
    finally:
        starter.close()


async def _serve(settings: Config, starter: Starter, enrolment: enrol.Enrolment | None) -> None:
    with StateDir(settings.state_dir).lock() as state:
        if enrolment is not None:
            joined = await enrol.join_mesh(settings, state, enrolment, time.time())
            starter.tell("joined", enrol.facts(joined))
        membership = state.membership()
        if membership is None:
            raise MembershipError(
                f"this node is in no mesh ({settings.state_dir} holds no certificate)",
                hint="Run `agent join TICKET`, or `agent mesh create NAME` for a new mesh.",
            )
        agent = Agent(settings, membership)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.request_stop)

        def ready() -> None:
            starter.tell("up", enrol.facts(membership) | {"pid": os.getpid()})
            starter.close()

        await agent.run(ready)


class Agent:
    """One running node. `run` returns after `request_stop`, with everything taken down."""

    def __init__(self, settings: Config, membership: Membership) -> None:
        network = settings.network
        self._settings = settings
        self._membership = membership
        self._own = membership.key.id
        self._started = time.time()
        self._stop = asyncio.Event()
        self._heads: list[dict[str, Any]] = []
        self._control_fault: CoveyError | None = None
        self._health = Health()
        self._overlay = Overlay(network.interface, network.backend)
        self._control = ControlPlane(
            membership.key,
            membership.mesh.network_key,
            listen=[f"0.0.0.0:{network.control_port}", f"[::]:{network.control_port}"],
        )
        self._discovery = Discovery(
            membership.key,
            membership.mesh.id,
            membership.mesh.network_key,
            membership.verify,
            listen=("::", network.discovery_port),
            certificate=membership.certificate.encode(),
        )
        self._neighbours = Neighbours(
            settings, membership, self._overlay, self._discovery, self._health
        )
        self._blobs = BlobServer()
        engines = Engines(settings, membership.mesh.id, self._own)
        self._stages = StageHost(settings.state_dir / "stages", engines)
        self._rings = Rings(
            settings, self._own, membership.certificate.name, engines, self._blobs, self
        )
        self._api = LocalApi(self, settings.socket)

    # ------------------------------------------------------------------ life

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start every part, call `on_ready`, and stay until asked to stop."""
        try:
            await self._start()
            on_ready()
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._neighbours.follow_overlay(), name="overlay"),
                    tasks.create_task(self._neighbours.follow_discovery(), name="members"),
                    tasks.create_task(self._follow_heads(), name="heads"),
                ]
                await self._stop.wait()
                for loop in loops:
                    loop.cancel()
        finally:
            await self._shut_down()

    def request_stop(self) -> None:
        """Begin to shut down."""
        self._stop.set()

    async def _start(self) -> None:
        network, membership = self._settings.network, self._membership
        await self._overlay.start(
            membership.key.wireguard_private,
            network.listen_port,
            self._neighbours.interfaces(),
            network.mtu,
        )
        await self._neighbours.begin()
        self._control.serve(join.PROTOCOL, self._admit)
        self._control.serve(messages.PROTOCOL, self._on_deploy_message)
        try:
            await self._control.start()
        except EnvironmentFault as error:
            if "in use" in error.message:
                raise
            self._control_fault = error
            self._health.set(
                HealthItem(
                    "control-plane-down", "error", "No control plane", error.message, error.hint
                )
            )
        await self._discovery.start()
        await self._blobs.start(str(membership.ipv6), network.overlay_port)
        await self._neighbours.enter_discovery()
        await self._api.start()
        self._rings.restore()
        _log.info("agent up name=%s node=%s ipv6=%s", membership.certificate.name, self._own,
                  membership.ipv6)  # fmt: skip

    async def _shut_down(self) -> None:
        """Take down what is up, in reverse; one part's failure must not keep the next one up."""
        self._neighbours.remember()
        for part in (self._api, self._rings, self._stages, self._blobs, self._discovery,
                     self._control, self._overlay):  # fmt: skip
            try:
                await part.stop()
            except Exception:
                _log.exception("stopping %s failed", type(part).__name__)
        _log.info("agent down node=%s", self._own)

    async def _admit(self, peer: NodeId, payload: bytes) -> bytes:
        """Answer a join request: the member is stored and in WireGuard before it is told."""
        request = JoinRequest.decode(payload)
        reply = await asyncio.to_thread(self._membership.admit, request, peer, time.time())
        await self._neighbours.admitted(peer)
        return reply.encode()

    # -------------------------------------------------- deployments and heads

    async def ask(
        self, node: NodeId, request: messages.Request, timeout_s: float
    ) -> messages.Answer:
        """Send a deployment message to another member and return its answer."""
        member = self._membership.find(node)
        if member is None:
            raise MembershipError(f"{node} is no member of this mesh")
        port = self._settings.network.control_port
        # Over the overlay where it reaches: then the underlay sees WireGuard alone.
        addresses = [endpoint.join(str(member.certificate.ipv6), port)]
        if not self._neighbours.connected(node):
            addresses += member.control_addresses
        answer = await self._control.request(
            node, addresses, messages.PROTOCOL,
            messages.encode(request), timeout_s=timeout_s,
        )  # fmt: skip
        try:
            return messages.decode_answer(answer)
        except (msgspec.DecodeError, ValueError) as error:
            raise PeerError(f"node …{node.short} answered nonsense: {error}") from None

    def known_workers(self) -> int:
        """Return how many other members are workers, connected or not."""
        return sum("worker" in m.certificate.roles for m in self._membership.peers())

    def connected_workers(self) -> list[Member]:
        """Return the other workers that WireGuard reaches now."""
        return self._neighbours.connected_workers()

    async def announce_heads(self, found: Sequence[Head]) -> None:
        """Tell the mesh which heads answer here."""
        if found:
            await self._discovery.announce(heads.SERVICE, heads.encode(found), HEAD_TTL_S)
        else:
            await self._discovery.withdraw(heads.SERVICE)

    async def _follow_heads(self) -> None:
        while True:
            await self._find_heads()
            await asyncio.sleep(HEADS_INTERVAL_S)

    async def _find_heads(self) -> None:
        found = []
        for record in await self._discovery.providers(heads.SERVICE):
            member = self._membership.find(record.id)
            if member is None:
                continue
            try:
                announced = heads.decode(record.payload)
            except PeerError as error:
                _log.warning("node=%s %s", record.id, error.message)
                continue
            address = str(member.certificate.ipv6)
            found += [
                {"model": head.model, "context": head.context, "ring": head.ring,
                 "url": f"http://{endpoint.join(address, head.port)}",
                 "node": str(record.id), "name": member.certificate.name}
                for head in announced
            ]  # fmt: skip
        self._heads = found

    async def _on_deploy_message(self, peer: NodeId, payload: bytes) -> bytes:
        if not self._membership.is_member(peer, time.time()):
            raise MembershipError(f"{peer} is no member of this mesh")
        try:
            request = messages.decode_request(payload)
        except (msgspec.DecodeError, ValueError) as error:
            raise PeerError(f"a deployment message cannot be read: {error}") from None
        return messages.encode(await self._stages.answer(peer, request))

    # ------------------------------------------------------- the local API

    def status(self) -> dict[str, Any]:
        """Describe this node."""
        now, network = time.time(), self._settings.network
        certificate = self._membership.certificate
        control = f"TCP port {network.control_port}"
        contacts = len(self._discovery.contacts())
        return enrol.facts(self._membership) | {
            "pid": os.getpid(),
            "uptime_s": now - self._started,
            "roles": list(certificate.roles),
            "tags": list(certificate.tags),
            "certificate_left_s": certificate.not_after - now,
            "addresses": self._neighbours.addresses,
            "parts": {
                "overlay": f"{self._overlay.name} ({self._overlay.kind}), "
                f"UDP port {self._overlay.listen_port}",
                "control": self._control_fault.line() if self._control_fault else control,
                "discovery": f"UDP port {network.discovery_port}, {contacts} contacts",
            },
            "peers": self._neighbours.count(),
            "engines": [*self._rings.engines(), *self._stages.engines()],
            "health": [msgspec.to_builtins(item) for item in self._health.items()],
        }

    def peers(self) -> dict[str, Any]:
        """Describe the other members and how WireGuard reaches them."""
        return {"peers": self._neighbours.describe()}

    def replicas(self) -> dict[str, Any]:
        """List the heads that discovery knows."""
        return {"replicas": self._heads}

    def deployments(self) -> dict[str, Any]:
        """Describe the deployments whose head is here."""
        return {"deployments": self._rings.describe()}

    async def invite(self, request: InviteRequest) -> dict[str, Any]:
        """Make a ticket that leads to this node."""
        if self._control_fault is not None:
            raise self._control_fault
        port = self._settings.network.control_port
        ticket = await asyncio.to_thread(
            self._membership.invite, time.time(),
            addresses=[endpoint.join(address, port) for address in self._neighbours.addresses],
            ttl_s=request.ttl_s, uses=request.uses, roles=request.roles, tags=request.tags,
        )  # fmt: skip
        return {"ticket": ticket.encode(), "mesh": ticket.mesh_name, "not_after": ticket.not_after,
                "addresses": list(ticket.addresses), "uses": request.uses}  # fmt: skip

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        """Start a deployment with this node as head."""
        return await self._rings.deploy(request)

    async def undeploy(self, name: str) -> dict[str, Any]:
        """End a deployment."""
        return await self._rings.undeploy(name)
