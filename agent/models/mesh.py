"""Which models other members have, and how to ask for them. Used by `pull.py`, `service.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from agent import endpoint
from agent.errors import CoveyError, ModelError, PeerError
from agent.identity.keys import NodeId
from agent.models import manifest as manifests
from agent.models.manifest import Manifest
from agent.models.messages import Held, Models
from agent.models.wanted import is_hash_start

_log = logging.getLogger(__name__)

# From memory, over a connection that is up; the local API gives all of it ten seconds.
_ASK_TIMEOUT_S = 3.0
_MANIFEST_TIMEOUT_S = 60.0


class Mesh(Protocol):
    """The other members, as the store needs them."""

    def others(self) -> Sequence[NodeId]:
        """Return the other members that have shown that they are there."""

    def name_of(self, node: NodeId) -> str:
        """Return a member's name."""

    def models_host(self, node: NodeId) -> str | None:
        """Return the overlay address where a member serves its models."""

    async def ask_models(self, node: NodeId, timeout_s: float) -> Models:
        """Ask a member which models it has; raises CoveyError."""


@dataclass(frozen=True)
class Holder:
    """A member that has a model, and where it is fetched: http://ADDRESS:PORT/models/ID."""

    member: str
    url: str
    held: Held
    node: NodeId


class Holders:
    """Asks members for models."""

    def __init__(self, mesh: Mesh, port: int) -> None:
        """`port` is network.overlay_port, the same on every node."""
        self._mesh = mesh
        self._port = port

    async def all(self) -> list[Holder]:
        """Return what every member that answers in time has, by member."""
        nodes = self._mesh.others()
        answers = await asyncio.gather(*map(self._ask, nodes))
        return [holder for found in answers for holder in found]

    async def find(self, text: str, sha256: str = "") -> Holder:
        """Return a member's model by its name, or by the beginning of its id or SHA-256.

        `sha256` is what the file's must be, "" for any. Raises ModelError for none, or for two.
        """
        found = await self.search(text, sha256)
        if found is None:
            raise ModelError(
                f"no member that is there has a model {text}",
                hint="`agent models` lists what members have; a file's path has a / or .gguf.",
            )
        return found

    async def search(self, text: str, sha256: str = "") -> Holder | None:
        """Return what `find` returns, None where there is none; raises ModelError for two."""
        found = [
            holder for holder in await self.all()
            if holder.held.name == text
            or (is_hash_start(text) and (
                holder.held.id.startswith(text) or holder.held.sha256.startswith(text)))
        ]  # fmt: skip
        if sha256:
            found = [holder for holder in found if holder.held.sha256 == sha256]
        if len({holder.held.id for holder in found}) > 1:
            which = ", ".join(f"{h.held.id[:12]} ({h.member})" for h in found[:4])
            raise ModelError(
                f"members have different models called {text}: {which}", hint="Give one's id."
            )
        return found[0] if found else None

    async def _ask(self, node: NodeId) -> list[Holder]:
        host = self._mesh.models_host(node)
        if host is None:
            return []
        try:
            answer = await self._mesh.ask_models(node, _ASK_TIMEOUT_S)
        except CoveyError as error:
            _log.info("node=%s tells no models: %s", node, error.line())
            return []
        base = f"http://{endpoint.join(host, self._port)}/models"
        name = self._mesh.name_of(node)
        return [
            Holder(name, f"{base}/{held.id}", held, node)
            for held in answer.models if held.complete
        ]  # fmt: skip


async def fetch_manifest(session: aiohttp.ClientSession, holder: Holder) -> Manifest:
    """Return the manifest that a member has for its model; raises PeerError."""
    try:
        async with asyncio.timeout(_MANIFEST_TIMEOUT_S):
            async with session.get(f"{holder.url}/manifest", allow_redirects=False) as response:
                if response.status != 200:
                    raise PeerError(f"{holder.member} answered {response.status}")
                raw = bytearray()
                while chunk := await response.content.readany():
                    raw += chunk
                    if len(raw) > manifests.MAX_ENCODED_BYTES:
                        raise PeerError(f"{holder.member} sends a manifest without end")
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        why = str(error) or "it is silent"
        raise PeerError(f"{holder.member} gives no manifest: {why}") from None
    manifest = await asyncio.to_thread(manifests.decode, bytes(raw), holder.held.id)
    if (manifest.size, manifest.sha256) != (holder.held.size, holder.held.sha256):
        raise PeerError(f"{holder.member} says one thing of its model, and its manifest another")
    return manifest
