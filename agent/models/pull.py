"""Bring one model into the store: find who has it, make room, fetch, check, keep.

| known beforehand                  | what is believed                                            |
|-----------------------------------|-------------------------------------------------------------|
| a manifest (from a member, or ours| each piece by its SHA-256 as it comes, so a member that     |
| when repairing)                   | lies is found out; the whole again at the end               |
| a SHA-256 (--sha256, or the hub's)| the whole, at the end; a member that has this file gives a  |
|                                   | manifest, and is asked before the URL                       |
| nothing                           | what came: the first use is trusted, and that is said       |

Used by `service.py`, which owns the tasks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from agent.errors import CoveyError, EnvironmentFault, ModelError, PeerError
from agent.models import fetch, origins, partfile, pieces, room, survey
from agent.models.fetch import Progress
from agent.models.jobs import Job
from agent.models.joined import members
from agent.models.manifest import PIECE_BYTES, Manifest, fault_of, starts_of
from agent.models.mesh import Holder, Holders, fetch_manifest
from agent.models.origins import Origin, RefusedError
from agent.models.partfile import PartFile
from agent.models.pieces import Piece
from agent.models.sources import Named, look
from agent.models.store import Record, Store
from agent.models.transfer import BACKOFF_S
from agent.models.wanted import Networks, Wanted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """What is fetched: its files' sizes, its manifest or None, from where, why it is believed.

    `expected` is the SHA-256 of the whole, "" where nobody said it; `giver` is whose manifest it
    is; `origin` tells the source's files from later ones under the same URL. `hashes` is what it
    said of each of its files, "" for nothing.
    """

    sizes: Sequence[int]
    manifest: Manifest | None
    origins: Sequence[Origin]
    expected: str
    trust: str
    giver: str = ""
    origin: str = ""
    hashes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """All bytes."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Limits:
    """How patient a pull is, and how it cuts: a source's silence (s), its first rest (s), bytes."""

    silence_s: float = origins.SILENCE_S
    backoff_s: float = BACKOFF_S
    piece_bytes: int = PIECE_BYTES


LIMITS = Limits()


class MismatchError(ModelError):
    """What came is whole, and is not what was announced; it has been thrown away."""


class Puller:
    """Brings models into a store; one `pull` at a time for each name."""

    def __init__(
        self, store: Store, holders: Holders, networks: Networks, quota: int,
        kept: Callable[[], Mapping[str, str]], limits: Limits = LIMITS,
    ) -> None:  # fmt: skip
        """`quota` in bytes, 0 for none; `kept` says which models must stay, and why, by name."""
        self._store = store
        self._holders = holders
        self._networks = networks
        self._quota = quota
        self._kept = kept
        self._limits = limits

    async def pull(self, wanted: Wanted, job: Job) -> Record:
        """Bring a model and return its record. Raises CoveyError; what came then stays."""
        if (record := self._store.whole(wanted.name)) is not None:
            self._store.drop_part(wanted.name)
            return record
        async with origins.session(self._limits.silence_s) as session:
            plan = await self._plan(session, wanted, ask_members=True)
            try:
                return await self._bring(wanted, plan, job)
            except MismatchError as error:
                if not plan.giver or wanted.kind == "mesh":
                    raise
                job.note = f"{plan.giver} is left out: {error.message}"
                _log.warning("model=%s %s", wanted.name, job.note)
            plan = await self._plan(session, wanted, ask_members=False)
            return await self._bring(wanted, plan, job)

    # ------------------------------------------------------------------ from where

    async def _plan(
        self, session: aiohttp.ClientSession, wanted: Wanted, *, ask_members: bool
    ) -> _Plan:
        """Find out what is to be fetched from whom. Raises CoveyError where nobody has it."""
        known = self._store.records.get(wanted.name)
        found: Named | None = None
        fault: CoveyError | None = None
        try:
            found = await look(session, wanted, self._networks, self._limits.backoff_s)
        except CoveyError as error:
            fault = error
        own = [found.origin] if found is not None else []
        if known is not None and wanted.repairs:
            holders = [h for h in await self._holders.all()
                       if h.held.id == self._store.ids[wanted.name]]  # fmt: skip
            return self._from_members(session, known.manifest, holders, own, known.trust, "")
        expected = wanted.sha256 or (found.sha256 if found else "")
        if ask_members and (wanted.kind == "mesh" or expected):
            holders = [
                holder for holder in await self._holders.all()
                if (wanted.kind != "mesh" or holder.held.id == wanted.location)
                and (not expected or holder.held.sha256 == expected)
            ]  # fmt: skip
            for holder in holders:
                same = [other for other in holders if other.held.id == holder.held.id]
                try:
                    manifest = await fetch_manifest(session, holder)
                except PeerError as error:
                    fault = fault or error
                    _log.warning("model=%s %s", wanted.name, error.line())
                    continue
                trust = "the given SHA-256" if wanted.sha256 else (
                    "the hub's SHA-256" if expected else f"the manifest of {holder.member}"
                )  # fmt: skip
                return self._from_members(
                    session, manifest, same, own, trust, holder.member, expected
                )
        if found is None:
            if fault is not None:
                raise fault
            raise PeerError(
                f"no member that is there has the model {wanted.shown}",
                hint="`agent models` lists what members have.",
            )
        trust = "the given SHA-256" if wanted.sha256 else "the source's SHA-256"
        if not expected:
            trust = "a file of this node" if wanted.kind == "file" else "its first use"
        hashes = [file.sha256 for file in found.files]
        return _Plan(found.sizes, None, own, expected, trust, origin=found.tags, hashes=hashes)

    def _from_members(
        self, session: aiohttp.ClientSession, manifest: Manifest, holders: Sequence[Holder],
        own: Sequence[Origin], trust: str, giver: str, expected: str = "",
    ) -> _Plan:  # fmt: skip
        origins = [*members(session, manifest, holders, self._networks), *own]
        return _Plan(manifest.sizes, manifest, origins, expected, trust, giver)

    # ------------------------------------------------------------------ fetch, check, keep

    async def _bring(self, wanted: Wanted, plan: _Plan, job: Job) -> Record:
        path = self._store.part(wanted.name)
        if plan.manifest is None:
            cut = pieces.of_files(plan.sizes, self._limits.piece_bytes)
            if not plan.origin:
                partfile.discard(path)  # nothing says that the rest is of the same file
        else:
            cut = pieces.of_manifest(plan.manifest)
        if not all(plan.sizes):
            raise ModelError(f"{wanted.shown} is empty", hint="Get another file.")
        self._make_room(wanted.name, plan.size)
        self._store.go_on(wanted.name)
        job.phase = "fetching"
        with PartFile(path, cut, plan.sizes, plan.origin if plan.manifest is None else "") as part:
            begins_gguf = functools.partial(_begins_gguf, frozenset(starts_of(plan.sizes)))
            await fetch.fetch(part, plan.origins, job.watch, begins_gguf, self._limits.backoff_s)
        job.phase = "checking"
        job.progress = Progress(0, plan.size, 0.0, job.progress.sources)
        try:
            record = await asyncio.to_thread(self._checked, part.files[0], wanted, plan, job)
        except ModelError:
            partfile.discard(path)
            raise
        self._store.finish(wanted.name, record)
        _log.info("model=%s kept id=%s trust=%s", wanted.name,
                  self._store.ids[wanted.name], plan.trust)  # fmt: skip
        return record

    def _checked(self, path: Path, wanted: Wanted, plan: _Plan, job: Job) -> Record:
        """Read the whole part (`path`: the first one) and return its record.

        Blocks; raises ModelError.
        """
        manifest = plan.manifest
        if manifest is None:
            manifest = survey.survey(path, job.read, self._limits.piece_bytes)
            _check_files(manifest, wanted, plan)
        elif wrong := survey.damaged(path, manifest, job.read):
            raise MismatchError(
                f"the model from {plan.giver or 'its sources'} does not fit its manifest: "
                f"{', '.join(wrong[:3])}"
            )
        if plan.expected and manifest.sha256 != plan.expected:
            raise MismatchError(
                f"what came from {wanted.shown} has the SHA-256 {manifest.sha256}, and "
                f"{plan.expected} was expected",
                hint="It was thrown away. Check the hash, or get the model elsewhere.",
            )
        if fault := fault_of(manifest):
            raise ModelError(f"{wanted.shown} is no model to keep: {fault}")
        said = survey.describe(path)
        old = self._store.records.get(wanted.name)
        pinned = old.pinned if old is not None else wanted.pinned
        kept = old.wanted if old is not None else wanted
        return Record(kept, manifest, time.time(), plan.trust, said.architecture,
                      said.quantisation, said.layers, pinned)  # fmt: skip

    def _make_room(self, name: str, size: int) -> None:
        """Check disk and quota, and remove what must go. Raises EnvironmentFault."""
        store = self._store
        try:
            needed = max(0, size - partfile.allocated(store.part(name)))
            going = room.evictions(name, size, self._quota, store.stored(self._kept()))
            freed = sum(store.taken(other) for other in going)
            needed += store.promised(name)
            room.check_disk(needed, store.free() + freed, str(store.folder))
        except OSError as error:
            raise EnvironmentFault(f"{store.folder} cannot be looked at: {error}") from None
        for other in going:
            _log.warning("model=%s removed: unused for longest, %s needs room", other, name)
            store.remove(other)


def _check_files(manifest: Manifest, wanted: Wanted, plan: _Plan) -> None:
    """Raise ModelError where a model has not the files that were announced."""
    count = len(plan.sizes)
    if len(manifest.sizes) != count:
        raise ModelError(
            f"{wanted.shown} is called like one of {count} files, and is a whole model",
            hint="Give the file another name, and pull it then.",
        )
    for number, (file, said) in enumerate(zip(manifest.files, plan.hashes, strict=False), 1):
        if said not in ("", file.sha256):
            raise ModelError(
                f"file {number} of {count} from {wanted.shown} has the SHA-256 {file.sha256}, and "
                f"{said} was expected",
                hint="All of it was thrown away. Try again, or get the model elsewhere.",
            )


def _begins_gguf(starts: Collection[int], piece: Piece, raw: bytearray) -> None:
    """Raise RefusedError for a file that begins otherwise: most often it is a page of words."""
    if piece.start in starts and raw[:4] != b"GGUF":
        raise RefusedError(f"it sends no GGUF file: it begins with {bytes(raw[:4])!r}")
