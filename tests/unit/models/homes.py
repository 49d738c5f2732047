"""Nodes with real stores that share over real HTTP on loopback addresses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from agent import config
from agent.api import PullRequest, VerifyRequest
from agent.deploy.blobs import BlobServer
from agent.errors import NotRunning, from_wire
from agent.identity.keys import NodeId
from agent.models import messages
from agent.models.manifest import MIN_PIECE_BYTES
from agent.models.messages import Models
from agent.models.pull import Limits
from agent.models.service import ModelStore

LIMITS = Limits(silence_s=0.4, backoff_s=0.01, piece_bytes=MIN_PIECE_BYTES)


class Node:
    """A node with a store on a loopback address of its own."""

    def __init__(self, home: Home, name: str, number: int) -> None:
        self.home, self.name, self.host = home, name, f"127.0.0.{number + 2}"
        self.id = NodeId(bytes([number]) * 32)
        self.used: dict[Path, str] = {}
        self.silent = False
        self.folder = home.folder / name
        self.server = BlobServer()
        self.settings: Any = None
        self.store: Any = None

    async def up(self, **models: Any) -> Node:
        self.settings = config.Config(
            node=config.Node(state_dir=str(self.folder)),
            network=config.Network(overlay_port=self.home.port),
            models=config.Models(hub=self.home.hub, **models),
        )
        self.store = ModelStore(self.settings, self, (), lambda: self.used, LIMITS)
        await self.store.start()
        await self.server.start(self.host, self.home.port, self.store.routes())
        return self

    async def down(self) -> None:
        if self.store is not None:
            await self.store.stop()
            await self.server.stop()
            self.store = None

    # What the store needs of the mesh.

    def others(self) -> list[NodeId]:
        return [node.id for node in self.home.nodes if node is not self and node.store]

    def name_of(self, node: NodeId) -> str:
        return self.home.by_id(node).name

    def models_host(self, node: NodeId) -> str:
        return self.home.by_id(node).host

    async def ask_models(self, node: NodeId, timeout_s: float) -> Models:
        other = self.home.by_id(node)
        if other.silent:
            raise NotRunning("no answer")
        request = messages.decode_request(messages.encode(messages.AskModels()))
        return messages.decode_answer(messages.encode(other.store.answer(request)))

    # What a person does.

    async def pull(self, source: str, **more: Any) -> dict[str, Any]:
        return await self.end(await self.store.pull(PullRequest(source, **more)))

    async def end(self, job: dict[str, Any]) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while job["phase"] not in ("done", "failed", "cancelled"):
                await asyncio.sleep(0.01)
                jobs = (await self.store.jobs())["jobs"]
                job = next(one for one in jobs if one["job"] == job["job"])
        if job["error"]:
            raise from_wire(job["error"])
        return job

    async def verify(self, name: str = "", *, repair: bool = False) -> list[dict[str, Any]]:
        job = await self.end(await self.store.verify(VerifyRequest(name, repair)))
        found: list[dict[str, Any]] = job["result"]["models"]
        return found

    async def listed(self) -> dict[str, dict[str, Any]]:
        return {model["name"]: model for model in (await self.store.describe())["models"]}

    @property
    def files(self) -> set[str]:
        return {path.name for path in (self.folder / "models").iterdir()}


class Home:
    """Some nodes, and a hub."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.hub = folder, port, "http://127.0.0.1:9"
        self.nodes: list[Node] = []

    async def node(self, name: str, **models: Any) -> Node:
        node = Node(self, name, len(self.nodes))
        self.nodes.append(node)
        return await node.up(**models)

    def by_id(self, node: NodeId) -> Node:
        return next(one for one in self.nodes if one.id == node)
