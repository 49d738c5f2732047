"""The model store, for the daemon: pulls that outlive whoever asked, verification, the lists.

Its tasks belong to it. A pull that was not over when the agent stopped goes on when it starts.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from agent.api import PullRequest, VerifyRequest
from agent.config import Config
from agent.engine import cut
from agent.errors import CoveyError, ModelError, StateError, UsageError
from agent.models import bundled, catalogue, layers, origins, partfile, sharing
from agent.models.fetch import Progress, Watch, ignore
from agent.models.jobs import EndedError, Job
from agent.models.listing import listed
from agent.models.mesh import Holders, Mesh
from agent.models.messages import AskModels, Models
from agent.models.provision import Provision
from agent.models.pull import LIMITS, Limits, Puller
from agent.models.store import Record, Store
from agent.models.verification import verify
from agent.models.wanted import Networks, Wanted, check_name, is_hash_start, is_no_name, parse

_log = logging.getLogger(__name__)

# Jobs that are over and still told of.
_JOBS_KEPT = 50


class ModelStore:
    """All that has to do with stored models on this node."""

    def __init__(
        self, settings: Config, mesh: Mesh, networks: Networks,
        in_use: Callable[[], Mapping[Path, str]], limits: Limits = LIMITS,
    ) -> None:  # fmt: skip
        """`networks` are the overlay's; `in_use` says which files deployments use, and which do."""
        self._settings = settings
        self._networks = networks
        self._in_use = in_use
        self._limits = limits
        self._store = Store(settings.models_dir)
        self._holders = Holders(mesh, settings.network.overlay_port)
        self._puller = Puller(
            self._store, self._holders, networks, settings.models.quota_bytes, self._kept, limits
        )
        self.provision = Provision(
            self._store, self._holders, settings.state_dir / "headers", networks, limits,
            self.part, self._pulled,
        )  # fmt: skip
        self._loaded = False
        self._jobs: list[Job] = []
        self._numbers = itertools.count(1)

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Read the store and go on with what was being fetched. Raises EnvironmentFault."""
        if not self._loaded:
            self.load()
        for wanted in self._store.wishes().values():
            self._begin_pull(wanted)

    def load(self) -> None:
        """Read what is here, which members and deployments may then ask for.

        Raises EnvironmentFault.
        """
        self._store.load()
        self._loaded = True

    async def stop(self) -> None:
        """Stop all tasks; what came is kept."""
        running = [job for job in self._jobs if not job.over]
        for job in running:
            await self._stop(job)

    def routes(self) -> list[web.RouteDef]:
        """Return what members get on the overlay."""
        return sharing.routes(self._store)

    def answer(self, _: AskModels) -> Models:
        """Tell a member what is here."""
        return sharing.told(self._store)

    async def part(
        self, model_id: str, span: tuple[int, int], destination: Path, watch: Watch = ignore
    ) -> cut.PartFile:
        """Write layers [start, stop) = `span` of a model as a part, for a stage.

        Out of the model if it is here, else of the tensors that it needs, from all members that
        have the model. Raises CoveyError; what came by then is used the next time.
        """
        found = self._store.by_id(model_id)
        if found is not None:
            path = self._store.file(found[0])
            return await asyncio.to_thread(layers.cut_part, path, span, destination)
        holders = [holder for holder in await self._holders.all() if holder.held.id == model_id]
        free = shutil.disk_usage(destination.parent).free
        async with origins.session(self._limits.silence_s) as session:
            return await layers.fetch_part(
                session, holders, span, destination, networks=self._networks, free=free,
                watch=watch, backoff_s=self._limits.backoff_s,
            )  # fmt: skip

    # ------------------------------------------------------------------ the local API

    async def describe(self) -> dict[str, Any]:
        """Describe every model, here and at other members, and the folder's room."""
        held = await self._holders.all()
        return listed(self._store, self._pulls(), held, self._used()) | {
            "folder": str(self._store.folder),
            "free_bytes": self._store.free(),
            "quota_bytes": self._settings.models.quota_bytes,
            "faults": self._store.faults,
        }

    async def pull(self, request: PullRequest) -> dict[str, Any]:
        """Begin to fetch a model, or tell how far that is. Raises CoveyError.

        A name of the catalogue stands for that model's file of the hub.
        """
        source, name = catalogue.source_of(request.source)
        request = msgspec.structs.replace(request, source=source, name=request.name or name)
        wanted = self._resumed(request) or parse(
            request.source, request.name, request.sha256, self._settings.models.hub, self._networks
        )
        if wanted.name == bundled.NAME:
            raise UsageError(
                f"{bundled.NAME} is the bundled model's name", hint="Give another one with --name."
            )
        if (running := self._pulls().get(wanted.name)) is not None and not running.over:
            self._check_same(wanted, running.wanted)
            return running.describe()
        if (record := self._store.whole(wanted.name)) is not None:
            return self._already(wanted, record, request.pinned)
        if wanted.kind == "mesh" and not wanted.repairs:
            holder = await self._holders.find(wanted.location, wanted.sha256)
            name = request.name or (
                holder.held.name if is_hash_start(wanted.location) else wanted.name
            )
            check_name(name)
            wanted = msgspec.structs.replace(wanted, location=holder.held.id, name=name)
            if (record := self._store.whole(name)) is not None:
                return self._already(wanted, record, request.pinned)
        if (path := self._store.foreign(wanted.name)) is not None:
            raise StateError(
                f"{path} is in the way, and is not this store's or cannot be read",
                hint=f"Move it away, or `agent rm {wanted.name}`; or give another --name.",
            )
        wanted = msgspec.structs.replace(wanted, pinned=bool(request.pinned) or wanted.pinned)
        if (unfinished := self._store.wishes().get(wanted.name)) is not None:
            self._check_same(wanted, unfinished)
        self._store.keep_wish(wanted)
        return self._begin_pull(wanted).describe()

    async def cancel(self, name: str) -> dict[str, Any]:
        """End a pull and throw away what came; a repair leaves the model as it was."""
        wanted = self._store.wishes().get(name)
        job = self._pulls().get(name)
        if wanted is None and (job is None or job.over):
            raise UsageError(f"nothing named {name} is being pulled", hint="See `agent models`.")
        if job is not None and not job.over:
            await self._stop(job, "cancelled")
        if wanted is not None and wanted.repairs:
            self._store.end_repair(name)
        elif self._store.whole(name) is None:
            self._store.remove(name)
        return {"name": name, "phase": "cancelled"}

    async def remove(self, name: str) -> dict[str, Any]:
        """Remove a model. Raises UsageError for one that is not here, or that is used."""
        if (deployment := self._used().get(name)) is not None:
            raise UsageError(
                f"{name} is used by the deployment {deployment}",
                hint=f"`agent undeploy {deployment}` first.",
            )
        job = self._pulls().get(name)
        known = name in self._store.records or name in self._store.wishes()
        if not known and (is_no_name(name) or self._store.foreign(name) is None):
            raise UsageError(
                f"there is no model {name} in the store", hint="`agent models` lists them."
            )
        if job is not None and not job.over:
            await self._stop(job, "cancelled")
        size = self._store.records[name].manifest.size if name in self._store.records else 0
        self._store.remove(name)
        return {"name": name, "size": size}

    async def verify(self, request: VerifyRequest) -> dict[str, Any]:
        """Begin to read a model, or all, against the manifests. Raises CoveyError."""
        whole = [name for name in sorted(self._store.records) if self._store.whole(name)]
        if request.name and request.name not in whole:
            raise UsageError(
                f"there is no whole model {request.name} in the store",
                hint="`agent models` lists them.",
            )
        names = [request.name] if request.name else whole
        job = Job(next(self._numbers), "verify", request.name)
        repair = self._begin_pull if request.repair else None
        self._start(job, verify(self._store, job, names, self._used, repair))
        return job.describe()

    async def jobs(self) -> dict[str, Any]:
        """Describe what is being done, and what was done last."""
        return {"jobs": [job.describe() for job in self._jobs]}

    # ------------------------------------------------------------------ pulls

    def _resumed(self, request: PullRequest) -> Wanted | None:
        """Return what was being fetched under the name that is asked for."""
        return self._store.wishes().get(request.source) if not request.name else None

    async def _pulled(self, request: PullRequest) -> Job:
        """Begin the pull of a model by its id, or find the one that is on its way."""
        for job in self._pulls().values():
            if not job.over and job.wanted is not None and job.wanted.location == request.source:
                return job
        answer = await self.pull(request)
        return self._pulls().get(answer["name"]) or Job(0, "pull", answer["name"], phase="done")

    def _pulls(self) -> dict[str, Job]:
        return {job.name: job for job in self._jobs if job.kind == "pull"}

    def _check_same(self, wanted: Wanted, other: Wanted | None) -> None:
        if other is not None and (wanted.kind, wanted.source) != (other.kind, other.source):
            if wanted.source == other.name:
                return
            raise UsageError(
                f"{other.name} is being pulled from {other.shown}",
                hint=f"Give another --name, or `agent pull --cancel {other.name}` first.",
            )

    def _already(self, wanted: Wanted, record: Record, pinned: bool | None) -> dict[str, Any]:
        """Say that a model is here, if it is the one that is asked for."""
        name, manifest = wanted.name, record.manifest
        same = (wanted.kind, wanted.source) == (record.wanted.kind, record.wanted.source)
        named = wanted.kind == "mesh" and wanted.location in (
            name, manifest.sha256, self._store.ids[name]
        )  # fmt: skip
        if wanted.sha256 and wanted.sha256 != manifest.sha256:
            raise ModelError(
                f"{name} is here with the SHA-256 {manifest.sha256}, not {wanted.sha256}",
                hint=f"Give another --name, or `agent rm {name}` first.",
            )
        if not (same or named or wanted.sha256):
            raise UsageError(
                f"there is a model {name} already, from {record.wanted.shown}",
                hint=f"Give another --name, or `agent rm {name}` first.",
            )
        if pinned is not None and pinned != record.pinned:
            self._store.keep(name, msgspec.structs.replace(record, pinned=pinned))
        job = Job(0, "pull", name, wanted, "done", Progress(manifest.size, manifest.size, 0.0))
        job.note, job.result = "it is here already", _result(self._store, name, record)
        return job.describe()

    def _begin_pull(self, wanted: Wanted) -> Job:
        job = Job(next(self._numbers), "pull", wanted.name, wanted)
        self._jobs = [j for j in self._jobs if not (j.kind == "pull" and j.name == wanted.name)]
        self._start(job, self._pull(job, wanted))
        return job

    async def _pull(self, job: Job, wanted: Wanted) -> None:
        try:
            record = await self._puller.pull(wanted, job)
        except CoveyError as error:
            # What is wrong would come again as it is, whenever the agent starts; and where nothing
            # came at all, there is nothing to go on with.
            nothing = not partfile.allocated(self._store.part(wanted.name))
            if (nothing or isinstance(error, ModelError)) and not wanted.repairs:
                self._store.drop_part(wanted.name)
            raise
        job.result = _result(self._store, wanted.name, record)

    # ------------------------------------------------------------------ tasks

    def _start(self, job: Job, work: Any) -> None:
        over = [other for other in self._jobs if other.over]
        for old in over[: max(0, len(over) - _JOBS_KEPT)]:
            self._jobs.remove(old)
        self._jobs.append(job)
        job.task = asyncio.get_running_loop().create_task(
            self._run(job, work), name=f"{job.kind} {job.name}"
        )

    async def _run(self, job: Job, work: Any) -> None:
        try:
            await work
        except CoveyError as error:
            _log.warning("%s model=%s failed: %s", job.kind, job.name, error.line())
            job.end("failed", error)
        except EndedError:
            job.end("cancelled")
        except Exception:
            _log.exception("%s model=%s failed", job.kind, job.name)
            job.end("failed", CoveyError("the agent made a mistake.", hint="See its log."))
        else:
            job.end("done")

    async def _stop(self, job: Job, phase: Any = "cancelled") -> None:
        job.end(phase)
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait([job.task])
        job.end(phase)

    def _used(self) -> dict[str, str]:
        """Return which stored models deployments use, by name, and which deployment does."""
        folder = self._store.folder.resolve()
        return {
            path.stem: deployment
            for path, deployment in self._in_use().items()
            if path.parent == folder and path.suffix == ".gguf"
        }

    def _kept(self) -> Mapping[str, str]:
        return {name: f"used by {deployment}" for name, deployment in self._used().items()}


def _result(store: Store, name: str, record: Record) -> dict[str, Any]:
    return {"id": store.ids[name], "sha256": record.manifest.sha256,
            "size": record.manifest.size, "trust": record.trust,
            "file": str(store.file(name))}  # fmt: skip
