"""What the local API answers: this node, the mesh as it sees it, and the operator's wishes.

Implements `api.Target` over the daemon's parts. Reading answers from memory; a wish is passed to
the part that does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import msgspec

from agent import __version__, endpoint, enrol
from agent.acl.service import Acl, CheckRequest
from agent.api import DeployRequest, DrainRequest, PingRequest, PullRequest, VerifyRequest
from agent.authority import Authority
from agent.authority.wishes import (
    GrantWish,
    InviteWish,
    LeaveWish,
    MoveRootKeyWish,
    RenameWish,
    RevokeWish,
    RotateWish,
)
from agent.company import Company
from agent.config import Config
from agent.control import ControlPlane
from agent.deploy.deployments import Deployments
from agent.deploy.drain import Drain
from agent.discovery.node import Discovery
from agent.errors import NotRunning, UsageError
from agent.figures import Figures
from agent.health import Health
from agent.identity.keys import NodeId
from agent.lan.peers import LanPeer
from agent.membership.store import Membership
from agent.models.service import ModelStore
from agent.neighbours import Neighbours
from agent.overlay.shell import Overlay
from agent.page.overview import overview
from agent.page.shelf import shelf
from agent.presence.service import Presence
from agent.relay.service import Relay
from agent.traversal.service import Traversal

# A path to who was asleep takes some RTTs, by birthday some seconds.
_PATH_LIMIT_S = 5.0


class Answers:
    """Asks the parts, and puts what they say into the form of the API."""

    def __init__(
        self, settings: Config, membership: Membership, overlay: Overlay, control: ControlPlane,
        discovery: Discovery, neighbours: Neighbours, company: Company, authority: Authority,
        presence: Presence, acl: Acl, deployments: Deployments, traversal: Traversal,
        relay: Relay, models: ModelStore, health: Health, drain: Drain,
        on_lan: Callable[[], list[LanPeer]], request_stop: Callable[[], None],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._membership = membership
        self._overlay = overlay
        self._control = control
        self._discovery = discovery
        self._neighbours = neighbours
        self._company = company
        self._authority = authority
        self._presence = presence
        self._acl = acl
        self._deployments = deployments
        self._traversal = traversal
        self._relay = relay
        self._models = models
        self._health = health
        self._drain = drain
        self._on_lan = on_lan
        self._started = time.time()
        self.request_stop = request_stop

    # --------------------------------------------------------------- reading

    async def status(self) -> dict[str, Any]:
        """Describe this node."""
        now, network = time.time(), self._settings.network
        certificate = self._membership.certificate
        contacts = len(self._discovery.contacts())
        links = ", ".join(self._company.name_of(node) for node in self._presence.links())
        control = f"TCP port {network.control_port}, links to {links or 'nobody'}"
        served = "serves" if self._discovery.reachable else "client: not reached from outside"
        return enrol.facts(self._membership) | {
            "pid": os.getpid(),
            "software": __version__,
            "uptime_s": now - self._started,
            "roles": list(certificate.roles),
            "tags": list(certificate.tags),
            "draining": self._drain.on,
            "certificate_left_s": certificate.not_after - now,
            "addresses": self._neighbours.addresses,
            "parts": {
                "overlay": f"{self._overlay.name} ({self._overlay.kind}), "
                f"UDP port {self._overlay.listen_port}",
                "control": control if self._control.running else "down",
                "discovery": f"UDP port {network.discovery_port}, {contacts} contacts, {served}",
                "paths": self._traversal.summary(),
                "relay": self._relay_summary(),
            },
            "network": {
                "overlay": self._overlay.kind,
                "port": self._overlay.listen_port,
                "lan": [self._company.name_of(peer.node) for peer in self._on_lan()],
            }
            | self._traversal.surroundings(),
            "peers": self._neighbours.count()
            | {"alive": len(self._presence.alive()), "linked": len(self._presence.links())},
            "engines": self._deployments.engines(),
            "computes": self._deployments.hardware.describe(),
            "health": [msgspec.to_builtins(item) for item in self._health.items()],
        }

    def _relay_summary(self) -> str:
        if not self._settings.network.relay:
            return "off (network.relay)"
        relay = self._relay.describe()
        how = "by the kernel" if relay["forwarding"] == "kernel" else (
            f"by the agent itself: {relay['reason']}"
        )  # fmt: skip
        tunnel = relay["tunnel_port"]
        by_tcp = f", WebSocket on TCP port {tunnel}" if tunnel else ""
        if relay["tunnel_fault"]:
            by_tcp = f", no WebSocket: {relay['tunnel_fault']}"
        return f"{len(relay['pairs'])} pairs, UDP ports {relay['ports']}, {how}{by_tcp}"

    async def peers(self) -> dict[str, Any]:
        """Describe the other members: how WireGuard reaches them, and how they do."""
        return {
            "peers": [
                peer | self._presence.describe(node) | self._deployments.links.describe(node)
                for peer in self._neighbours.describe()
                for node in [NodeId.parse(peer["node"])]
            ]
        }

    async def figures(self) -> Figures:
        """Return what metrics are made of."""
        status, peers = await self.status(), await self.peers()
        return Figures(
            status=status, peers=peers["peers"], contacts=len(self._discovery.contacts()),
            reachable=self._discovery.reachable, discovery=self._discovery.counters,
            relay=self._relay.describe() if self._settings.network.relay else None,
            wanted=self._deployments.wanted(),
            ready=Counter(head["model"] for head in self._company.heads),
            engines=await self._deployments.figures(), now=time.time(),
        )  # fmt: skip

    async def netcheck(self) -> dict[str, Any]:
        """Check what this node's network lets through."""
        contacts = dict(self._discovery.contacts())
        found = await self._traversal.netcheck(linked=bool(self._presence.links()))
        asked = [(node, place) for node, place in found.pop("rendezvous") if node in contacts]
        rtts = await asyncio.gather(
            *(self._discovery.ping(node, contacts[node]) for node, _ in asked)
        )
        return found | {
            "relays": [self._company.name_of(node) for node in found["relays"]],
            "rendezvous": [
                {"name": self._company.name_of(node), "place": endpoint.join(*place),
                 "rtt_ms": None if rtt_s is None else 1000 * rtt_s}
                for (node, place), rtt_s in zip(asked, rtts, strict=True)
            ],
        }  # fmt: skip

    async def ping(self, request: PingRequest) -> dict[str, Any]:
        """Ask a member over the overlay, and say how it is reached."""
        member = self._membership.resolve(request.peer, time.time())
        node = member.node_id
        if node == self._membership.key.id:
            raise UsageError("that is this node itself", hint="`agent members` lists the others.")
        port = self._settings.network.discovery_port
        self._traversal.need(node)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATH_LIMIT_S):
                while not self._neighbours.connected(node):  # noqa: ASYNC110 - WireGuard's word
                    await asyncio.sleep(0.05)
        rtt_s = await self._discovery.ping(node, (str(member.certificate.ipv6), port))
        described = next(
            (peer for peer in self._neighbours.describe() if peer["node"] == str(node)), {}
        )
        relay = described.get("relay")
        return {
            "name": member.certificate.name, "node": str(node),
            "rtt_ms": None if rtt_s is None else 1000 * rtt_s,
            "route": described.get("route", "none"), "why": described.get("why", ""),
            "endpoint": described.get("endpoint"),
            "relay": self._company.name_of(NodeId.parse(relay)) if relay else None,
        }  # fmt: skip

    async def members(self) -> dict[str, Any]:
        """Describe all who are or were members."""
        draining = {str(node) for node in self._company.draining()}
        found = self._authority.members()
        return {"members": [m | {"draining": m["node"] in draining} for m in found["members"]]}

    async def replicas(self) -> dict[str, Any]:
        """List the heads that discovery knows, and the deployments that shall run."""
        return {"replicas": self._company.heads, "deployed": self._deployments.wished()}

    async def deployments(self) -> dict[str, Any]:
        """Describe the mesh's deployments."""
        return {"deployments": await self._deployments.describe()}

    async def drained(self) -> dict[str, Any]:
        """Say whether this node drains, and describe what runs on it still."""
        name = self._membership.certificate.name
        return {"name": name, "draining": self._drain.on, "work": await self._deployments.work()}

    async def catalogue(self, name: str) -> dict[str, Any]:
        """Describe the models that Covey knows, and what fits the mesh."""
        return await self._deployments.offers.describe(name)

    async def logs(self, name: str, node: str, lines: int) -> dict[str, Any]:
        """Describe what engines said last: of a deployment, of a node, or here."""
        member = self._membership.resolve(node, time.time()) if node else None
        return await self._deployments.logs(name, member.node_id if member else None, lines)

    async def events(self, after: int) -> dict[str, Any]:
        """List what happened after an event's number."""
        return self._presence.events.describe(after)

    async def overview(self) -> dict[str, Any]:
        """Describe the mesh in one piece, for the dashboard."""
        rings = await self.deployments()
        found = overview(
            time.time(), status=await self.status(), load=self._presence.load(),
            peers=(await self.peers())["peers"], rings=rings["deployments"],
            jobs=(await self.model_jobs())["jobs"],
            events=(await self.events(0))["events"],
        )  # fmt: skip
        return cast("dict[str, Any]", msgspec.to_builtins(found))

    async def shelf(self) -> dict[str, Any]:
        """Describe the models that there are and could be, for the dashboard."""
        models, catalogue = await asyncio.gather(self.models(), self.catalogue(""))
        return cast("dict[str, Any]", msgspec.to_builtins(shelf(models["models"], catalogue)))

    async def acl(self) -> dict[str, Any]:
        """Describe the ACL in force, with its counters."""
        return await self._acl.describe()

    # ---------------------------------------------------------------- wishes

    async def check_acl(self, request: CheckRequest) -> dict[str, Any]:
        """Say whether and why one member may reach another's port."""
        return self._acl.check(request.src, request.dst, request.port)

    async def invite(self, wish: InviteWish) -> dict[str, Any]:
        """Make a ticket that leads to this node, and to some others."""
        if not self._control.running:
            raise NotRunning(
                "the control plane is not running, so nobody could join here",
                hint="`agent status` says why.",
            )
        port = self._settings.network.control_port
        ticket = await self._authority.invite(
            wish, [endpoint.join(address, port) for address in self._neighbours.addresses]
        )
        return {"ticket": ticket.encode(), "mesh": ticket.mesh_name, "not_after": ticket.not_after,
                "addresses": list(ticket.addresses), "uses": wish.uses}  # fmt: skip

    async def revoke(self, wish: RevokeWish) -> dict[str, Any]:
        """Put a node out of the mesh."""
        return await self._authority.revoke(wish)

    async def rename(self, wish: RenameWish) -> dict[str, Any]:
        """Give a node another name."""
        return await self._authority.rename(wish)

    async def grant(self, wish: GrantWish) -> dict[str, Any]:
        """Give a node roles and tags."""
        return await self._authority.grant(wish)

    async def rotate(self, wish: RotateWish) -> dict[str, Any]:
        """Change the network key."""
        return await self._authority.rotate(wish)

    async def leave(self, wish: LeaveWish) -> dict[str, Any]:
        """Take this node out of the mesh and stop; the caller wipes the state directory."""
        left = await self._authority.leave(wish)
        self.request_stop()
        return left

    async def move_root_key(self, wish: MoveRootKeyWish) -> dict[str, Any]:
        """Move the root key to a file."""
        return await self._authority.move_root_key(wish)

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        """Say that a model shall run."""
        return await self._deployments.deploy(request)

    async def drain(self, request: DrainRequest) -> dict[str, Any]:
        """Have this node drain, or take that back; then as `drained`."""
        if request.off and request.once:
            raise UsageError("off and once are two wishes", hint="Send one.")
        if self._drain.once() if request.once else self._drain.set(not request.off):
            kind, text = (
                ("node.undrained", "it may be used again") if request.off
                else ("node.draining", "nothing new runs there, and what runs there moves away")
            )  # fmt: skip
            self._presence.note(kind, self._membership.key.id, text, tell=True)
            self._presence.models_changed()
            self._deployments.draining_changed()
        return await self.drained()

    async def plan(self, request: DeployRequest) -> dict[str, Any]:
        """Say how a model would run; nothing moves."""
        return await self._deployments.plan(request)

    async def undeploy(self, name: str) -> dict[str, Any]:
        """End a deployment."""
        return await self._deployments.undeploy(name)

    # ---------------------------------------------------------------- models

    async def models(self) -> dict[str, Any]:
        """Describe the models here and at other members."""
        return await self._models.describe()

    async def model_jobs(self) -> dict[str, Any]:
        """Describe what the model store is doing, and what it did last."""
        return await self._models.jobs()

    async def pull(self, request: PullRequest) -> dict[str, Any]:
        """Begin to fetch a model, or tell how far that is."""
        return await self._models.pull(request)

    async def cancel_pull(self, name: str) -> dict[str, Any]:
        """End a pull and throw away what came."""
        return await self._models.cancel(name)

    async def verify_models(self, request: VerifyRequest) -> dict[str, Any]:
        """Begin to read models against their manifests."""
        return await self._models.verify(request)

    async def remove_model(self, name: str) -> dict[str, Any]:
        """Remove a model from the store."""
        return await self._models.remove(name)
