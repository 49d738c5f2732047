"""Make a part of a model of which this node has nothing: fetch its tensors alone, and cut them.

The part is the one that any other node cuts of the same layers, byte for byte. Used by
`service.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from agent.engine import cut
from agent.engine.gguf_file import GgufFile
from agent.errors import PeerError
from agent.models import partfile, room
from agent.models.fetch import Watch, fetch_tensors
from agent.models.manifest import Manifest
from agent.models.mesh import Holder, fetch_manifest
from agent.models.origins import HttpOrigin, Tag
from agent.models.transfer import BACKOFF_S
from agent.models.wanted import Networks

_log = logging.getLogger(__name__)


async def fetch_part(
    session: aiohttp.ClientSession, holders: Sequence[Holder], span: tuple[int, int],
    destination: Path, *, networks: Networks, free: int, watch: Watch, backoff_s: float = BACKOFF_S,
) -> cut.PartFile:  # fmt: skip
    """Fetch what layers [start, stop) need of a model from all its holders, and write the part.

    `span` is (start, stop), `free` how many bytes the disk of `destination` has. What came is kept
    beside it when this fails, and used the next time. Raises PeerError naming the members,
    ModelError for a cut that cannot be, EnvironmentFault for the disk.
    """
    manifest = await any_manifest(session, holders)
    members = _origins(session, manifest, holders, networks)
    header = destination.with_name(f"{destination.name}.header")
    await fetch_tensors(manifest, (), members, header, backoff_s=backoff_s)
    with GgufFile(header) as model:
        names = cut.needed(model, *span)
    header.unlink()
    sparse = destination.with_name(f"{destination.name}.tensors")
    wanted = sum(one.size for one in manifest.spans if one.name in names)
    here = partfile.allocated(sparse.with_name(f"{sparse.name}.part"))
    # Its tensors twice: as they come, and in the part.
    room.check_disk(max(0, 2 * wanted - here), free, str(destination.parent))
    await fetch_tensors(manifest, names, members, sparse, watch, backoff_s)
    try:
        return await asyncio.to_thread(cut_part, sparse, span, destination)
    finally:
        sparse.unlink(missing_ok=True)


async def fetch_header(
    session: aiohttp.ClientSession, manifest: Manifest, holders: Sequence[Holder], target: Path, *,
    networks: Networks, backoff_s: float = BACKOFF_S,
) -> Path:  # fmt: skip
    """Fetch a model's header to `target`, a sparse file of the model's size. Raises PeerError."""
    members = _origins(session, manifest, holders, networks)
    return await fetch_tensors(manifest, (), members, target, backoff_s=backoff_s)


def _origins(
    session: aiohttp.ClientSession, manifest: Manifest, holders: Sequence[Holder],
    networks: Networks,
) -> list[HttpOrigin]:  # fmt: skip
    return [
        HttpOrigin(
            session, f"{holder.url}/file", networks=networks, tier=0, name=holder.member,
            tag=Tag(manifest.size),
        )
        for holder in holders
    ]  # fmt: skip


async def any_manifest(session: aiohttp.ClientSession, holders: Sequence[Holder]) -> Manifest:
    """Return the manifest from the first member that gives it; raises PeerError for none."""
    reasons = []
    for holder in holders:
        try:
            return await fetch_manifest(session, holder)
        except PeerError as error:
            _log.warning("model=%s %s", holder.held.id, error.line())
            reasons.append(error.message)
    raise PeerError(f"nobody gives the model's manifest: {'; '.join(reasons) or 'nobody has it'}")


def cut_part(source: Path, span: tuple[int, int], destination: Path) -> cut.PartFile:
    """Cut layers [start, stop) = `span` out of a file that has their tensors. Blocks."""
    with GgufFile(source) as model:
        return cut.write_part(model, *span, destination)
