"""Stored models for deployments, by their ids: from this node, or as much of them as is needed.

    header                    a few MB, from which all sizes are known: enough to plan
    layers of a ring          `layers.py`, the tensors of that part alone
    whole                     a pull into the store, for a node that is to hold all of it

Made by `service.py`; `agent.deploy` knows it as `Stored`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.api import PullRequest
from agent.errors import EngineError, EnvironmentFault, PeerError
from agent.identity.keys import NodeId
from agent.models import layers, origins
from agent.models.fetch import Watch, ignore
from agent.models.jobs import Job
from agent.models.mesh import Holder, Holders
from agent.models.pull import Limits
from agent.models.store import Store
from agent.models.wanted import MAX_NAME_CHARACTERS, Networks, is_hash_start

_POLL_S = 0.2
# Of its id, behind the name of a model whose name another one has here.
_ID_CHARACTERS = 8

Part = Callable[[str, tuple[int, int], Path, Watch], Awaitable[object]]
"""Writes layers [first, last) of a model (its id) as a part; raises CoveyError."""

Pull = Callable[[PullRequest], Awaitable[Job]]
"""Begins a pull, or finds the one that is on its way; raises CoveyError."""


class Provision:
    """What deployments take of the stores of this node and of the other members."""

    def __init__(
        self, store: Store, holders: Holders, headers: Path, networks: Networks, limits: Limits,
        part: Part, pull: Pull,
    ) -> None:  # fmt: skip
        """`headers` is a folder for headers of models that are not here."""
        self._store = store
        self._holders = holders
        self._headers = headers
        self._networks = networks
        self._limits = limits
        self._part = part
        self._pull = pull
        self._fetching: dict[str, asyncio.Lock] = {}  # headers, by id

    def path(self, model_id: str) -> Path | None:
        """Return the file of a model that is whole here."""
        found = self._store.by_id(model_id)
        return self._store.file(found[0]) if found is not None else None

    async def named(self, text: str, *, mesh: bool = True) -> tuple[str, str] | None:
        """Return name and id of a model by its name, or by the beginning of its id or SHA-256.

        Those here come first, then, with `mesh`, those of other members; None where there is none.
        Raises ModelError where two have it.
        """
        if self._store.whole(text) is not None:
            return text, self._store.ids[text]
        for name, model_id in sorted(self._store.ids.items()):
            hashes = model_id, self._store.records[name].manifest.sha256
            if is_hash_start(text) and any(one.startswith(text) for one in hashes):
                return name, model_id
        found = await self._holders.search(text) if mesh else None
        return (found.held.name, found.held.id) if found is not None else None

    async def holders(self, model_id: str) -> frozenset[NodeId]:
        """Return which other members say now that all of a model is there."""
        return frozenset(holder.node for holder in await self._holding(model_id))

    async def header(self, model_id: str) -> Path:
        """Return a file that has at least the model's header, fetched if need be.

        Its name is the model's at the member that gave it. Raises CoveyError.
        """
        if (here := self.path(model_id)) is not None:
            return here
        folder = self._headers / model_id
        async with self._fetching.setdefault(model_id, asyncio.Lock()):
            if known := sorted(folder.glob("*.gguf")):
                return known[0]
            holders = await self._holding(model_id)
            if not holders:
                raise PeerError(
                    f"no member that is there has the model {model_id[:12]}…",
                    hint="It goes on when one that has it is back; `agent models` lists who has.",
                )
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise EnvironmentFault(f"{folder} cannot be made: {error.strerror}") from None
            target = folder / f"{holders[0].held.name}.gguf"
            async with origins.session(self._limits.silence_s) as session:
                manifest = await layers.any_manifest(session, holders)
                return await layers.fetch_header(
                    session, manifest, holders, target, networks=self._networks,
                    backoff_s=self._limits.backoff_s,
                )  # fmt: skip

    async def whole(self, model_id: str, name: str, watch: Watch = ignore) -> Path:
        """Return the file of a model, pulled into the store as `name` if it is not here.

        Under that name with a bit of its id where another model has the name. The pull goes on
        when nobody waits for it any more. Raises CoveyError.
        """
        if (here := self.path(model_id)) is not None:
            return here
        job = await self._pull(PullRequest(model_id, name=self._free(name, model_id)))
        while not job.over:
            watch(job.progress)
            await asyncio.sleep(_POLL_S)
        if job.error is not None:
            raise job.error
        if (here := self.path(model_id)) is None:
            raise EngineError(f"the pull of {job.name} was cancelled")
        return here

    async def part(
        self, model_id: str, span: tuple[int, int], destination: Path, watch: Watch = ignore
    ) -> object:
        """Write layers of a model as a part, fetched if need be; raises CoveyError."""
        return await self._part(model_id, span, destination, watch)

    async def _holding(self, model_id: str) -> list[Holder]:
        return [holder for holder in await self._holders.all() if holder.held.id == model_id]

    def _free(self, name: str, model_id: str) -> str:
        """Return a name that no other model has here."""
        taken = name in self._store.records or self._store.foreign(name) is not None
        if not taken or self._store.ids.get(name) == model_id:
            return name
        room = MAX_NAME_CHARACTERS - _ID_CHARACTERS - 1
        return f"{name[:room]}-{model_id[:_ID_CHARACTERS]}"
